"""What goes wrong from without: disks, kills, bad files and settings. One sentence, and nothing lost."""

import json
import math
import os
import pickle
import resource
import shutil
import subprocess
import sys
import weakref
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from hydra.errors import CompactHydraException
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from shadow.artifacts import hub
from shadow.artifacts.files import alone, require_room, writing
from shadow.data.calibration import TextFiles
from shadow.errors import UserError
from shadow.fit.checkpoints import WholeCheckpoints
from shadow.front import sparse
from shadow.jobs import (
    checks,
    config,
    estimate,
    fitting,
    ingredients,
    keys,
    loading,
    measures,
    method,
    policies,
    stores,
)
from shadow.jobs.folders import require_writable
from shadow.jobs.run import job
from shadow.measures.evaluation import perplexity, task_metrics
from shadow.models.kinds import find_sites
from shadow.models.load import LM, load, random_llama
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import Zero
from shadow.scorers.fixed import Fixed, random_scores

SMALL = [
    "model=tiny-llama",
    "data.windows=16",
    "data.tokens=24",
    "traces.batch_size=4",
    "traces.shard_windows=8",
    "traces.tokens_per_window=6",
    "callbacks.progress=null",
    "trainer.accelerator=cpu",
    "measure.windows=4",
    "measure.tokens=24",
    "measure.choices=false",
]
TINY = partial(random_llama, 2, 16, 4, 2, 32, 64, 0)
FIT = ["predictor.epochs=2", "predictor.rank=4", "predictor.batch_size=32"]
TRAIN = [word for word in SMALL if not word.startswith("measure")]


@contextmanager
def files_of_at_most(size: int):
    """The system refuses to make any file larger, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.part"))


# Disks


def test_a_disk_that_is_full_while_traces_are_written_is_one_sentence_and_loses_no_shard(compose):
    cfg = compose("train", *TRAIN)
    lm, folder = loading.load_lm(cfg), keys.traces_folder(cfg)
    with (
        files_of_at_most(25_000),
        pytest.raises(UserError, match=r"l2_norm-00000.*could not be written.*room"),
    ):
        stores.get_traces(cfg, lm)
    (kept,) = folder.glob("features*")
    changed = kept.stat().st_mtime_ns
    assert left(folder) == []
    assert stores.get_traces(cfg, lm).windows == 16
    assert kept.stat().st_mtime_ns == changed


@pytest.mark.parametrize(
    "asked",
    [
        ["criterion=l2_norm", "traces.criteria=[fisher,jacov]"],
        ["criterion=l2_deviation"],  # which needs the means first
        ["predictor=layerwise_paper", "sparsity.decided_at=sequence"],
        ["predictor=unified_sequence", "sparsity.decided_at=prompt"],
    ],
    ids=["criteria", "deviations", "contexts", "embeddings"],
)
def test_a_store_that_the_disk_has_no_room_for_is_refused_before_it_is_collected(compose, monkeypatch, asked):
    cfg = compose("train", *TRAIN, *asked)
    lm, folder = loading.load_lm(cfg), keys.traces_folder(cfg)
    sizes = estimate.estimate_of(cfg)["bytes"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=sum(sizes.values()) - 1))
    with pytest.raises(UserError, match=r"needs another .* GB, and its disk has .* GB left: make room"):
        stores.get_traces(cfg, lm)
    assert not list(folder.glob("*"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=sum(sizes.values())))
    stores.get_traces(cfg, lm)
    for part, size in sizes.items():
        written = [load_file(file) for file in folder.glob(f"{part}-*")]
        assert sum(values.nbytes for arrays in written for values in arrays.values()) == size, part
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    stores.get_traces(cfg, lm)  # it is there


def test_room_that_is_lacking_is_told_in_whole_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=697.2e9))
    with pytest.raises(UserError, match=r"needs another 701\.5 GB, and its disk has 697\.2 GB left"):
        require_room(tmp_path / "not" / "there", 701.5e9, "ask for less")


def test_a_disk_that_is_full_when_the_record_is_written_is_one_sentence(compose, tmp_path):
    cfg = compose("train", *TRAIN, "logger.csv=null")
    (tmp_path / "output").mkdir()
    with (
        pytest.raises(CompactHydraException, match=r"run\.json could not be written \(File too large\)"),
        files_of_at_most(100),
        job(cfg),
    ):
        pass


def test_a_record_that_cannot_be_written_does_not_hide_what_ended_the_job(compose, tmp_path, caplog):
    cfg = compose("train", *TRAIN, "logger.csv=null")
    with pytest.raises(CompactHydraException, match="the cause"), files_of_at_most(100), job(cfg):
        raise UserError("the cause")
    assert "run.json could not be written" in caplog.text


@pytest.mark.parametrize("told", [UserError, ValueError])
def test_the_error_of_a_failed_job_holds_nothing_that_the_job_had_made(compose, told):
    """A sweep keeps the errors of its failed jobs, and would run out of memory."""
    held: list[weakref.ref] = []
    cfg = compose("train", *TRAIN, "hydra.mode=MULTIRUN")

    def fill(made: torch.Tensor) -> None:
        held.append(weakref.ref(made))
        raise OSError("no room")

    def work() -> None:
        try:
            fill(torch.ones(3))
        except OSError as error:
            scores = torch.ones(3)
            held.append(weakref.ref(scores))
            raise told("the cause") from error

    with (
        pytest.raises((CompactHydraException, ValueError), match="the cause") as kept,
        job(cfg),
    ):
        work()
    assert kept.value is not None
    assert len(held) == 2
    assert [made() for made in held] == [None, None]


def test_a_checkpoint_that_the_disk_has_no_room_for_leaves_the_one_before(tmp_path):
    file, io = tmp_path / "last.ckpt", WholeCheckpoints()
    io.save_checkpoint({"epoch": 1, "weights": torch.ones(10)}, file)
    with files_of_at_most(4000), pytest.raises(UserError, match=r"last\.ckpt could not be written"):
        io.save_checkpoint({"epoch": 2, "weights": torch.ones(10_000)}, file)
    assert io.load_checkpoint(file)["epoch"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_folder_that_cannot_be_written_is_refused_and_one_that_can_is_not_made(tmp_path):
    """Root may write everywhere: a regular file stands in the way instead."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"paths\.artifact_dir must be a folder that can be written.*file"):
        require_writable("paths.artifact_dir", tmp_path / "file" / "artifacts")
    require_writable("paths.artifact_dir", tmp_path / "new" / "artifacts")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# Several processes, and killed ones

MAKE = """
import sys, time
from pathlib import Path
from shadow.artifacts.files import alone, writing
file = Path(sys.argv[1])
with alone(file):
    if file.is_file():
        print("found")
    else:
        with writing(file) as unfinished:
            unfinished.write_text("half")
            time.sleep(0.3)
            unfinished.write_text("whole")
        print("made")
"""
HOLD = """
import sys, time
from pathlib import Path
from shadow.artifacts.files import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def python(program: str, root: Path, *words: object) -> subprocess.Popen:
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)


def test_of_processes_that_make_the_same_artifact_one_makes_it_and_the_others_find_it(root, tmp_path):
    file = tmp_path / "kind" / "name"
    said = sorted(
        process.communicate()[0].strip() for process in [python(MAKE, root, file) for _ in range(3)]
    )
    assert said == ["found", "found", "made"]
    assert file.read_text() == "whole"


def test_a_killed_process_does_not_keep_the_others_waiting(root, tmp_path):
    holder = python(HOLD, root, tmp_path / "kind" / "name")
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.communicate()
    with alone(tmp_path / "kind" / "name"):
        pass


def test_processes_that_write_the_same_file_at_once_do_not_mix(root, tmp_path):
    """Without taking turns, as those of two sweeps that measure the same point."""
    file = tmp_path / "point.json"
    program = MAKE.replace("with alone(file):", "if True:").replace("if file.is_file():", "if False:")
    other = python(program, root, file)
    for _ in range(50):
        with writing(file) as unfinished:
            unfinished.write_text("whole")
        assert file.read_text() == "whole"
    assert other.communicate()[0] == "made\n"
    assert (file.read_text(), left(tmp_path)) == ("whole", [])


def test_what_a_killed_process_left_of_another_file_goes_too(tmp_path, kill_while_writing):
    """A shard is named by the number of processes, and the rerun may have another."""
    kill_while_writing(tmp_path / "l2_norm-00001-rank1of2.safetensors")
    assert len(left(tmp_path)) == 1
    with writing(tmp_path / "l2_norm-00001-rank0of1.safetensors") as unfinished:
        unfinished.write_text("whole")
    assert left(tmp_path) == []


# Files of others


class Touch:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.file),)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty:UserWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.BytesIO")  # torch 2.14 on 3.13
def test_a_checkpoint_that_would_run_something_is_refused_and_runs_nothing(compose, tmp_path):
    cfg = compose("train", *TRAIN, *FIT)
    folder = keys.predictor_folder(cfg)
    folder.mkdir(parents=True)
    torch.save({"state_dict": Touch(tmp_path / "run")}, folder / "last.ckpt")
    with pytest.raises(UserError, match=r"last\.ckpt must hold tensors and plain values alone.*remove it"):
        fitting.get_predictor(cfg, loading.load_lm(cfg), [])
    assert not (tmp_path / "run").exists()


@pytest.fixture
def model_folder(tmp_path) -> Path:
    lm = load(TINY, None, "float32", None)
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_pickled_weights_that_would_run_something_run_nothing(model_folder, tmp_path):
    (model_folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Touch(tmp_path / "run")}, model_folder / "pytorch_model.bin")
    with pytest.raises(pickle.UnpicklingError):
        load(TINY, str(model_folder), "float32", None)
    assert not (tmp_path / "run").exists()


CODE = """
import os
from transformers import OPTConfig
os.mkdir(os.environ["SHADOW_TEST_RUN"])
class Own(OPTConfig):
    pass
"""


def test_code_beside_a_model_is_run_only_if_that_is_asked_for(compose, model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SHADOW_TEST_RUN", str(tmp_path / "run"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    known = json.loads((model_folder / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (model_folder / "config.json").write_text(json.dumps(known | own))
    (model_folder / "own.py").write_text(CODE)
    with pytest.raises(UserError, match=r"Python code of its own.*model\.trust_remote_code=true, got false"):
        load(TINY, str(model_folder), "float32", None)
    assert not (tmp_path / "run").exists()
    cfg = compose("train", f"model.path={model_folder}", "model.trust_remote_code=true")
    with pytest.raises(UserError, match="no layout"):  # its config is another family's
        loading._load_lm(json.dumps(config.plain(cfg.model)), False)
    assert (tmp_path / "run").is_dir()


def test_no_model_is_trusted_unasked(compose):
    for option in Path(keys.__file__).parents[2].glob("conf/model/*.yaml"):
        assert yaml.safe_load(option.read_text())["trust_remote_code"] is False
    plain, trusted = (
        keys.model_settings(compose("train", f"model.trust_remote_code={said}")) for said in (False, True)
    )
    assert plain | {"trust_remote_code": True} == trusted


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused_by_name_when_the_model_is_loaded(model_folder, value):
    weights = load_file(model_folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 2] = value
    save_file(weights, model_folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.down_proj\.weight has NaN"):
        load(TINY, str(model_folder), "float32", None)


def test_weights_too_large_for_a_dtype_are_refused_with_another(model_folder):
    weights = load_file(model_folder / "model.safetensors")
    weights["model.norm.weight"][0] = 1e6
    save_file(weights, model_folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"model\.norm\.weight has NaN or infinity.*model\.dtype=float32"):
        load(TINY, str(model_folder), "float16", None)
    load(TINY, str(model_folder), "bfloat16", None)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_a_flipped_bit_in_a_predictor_is_found(tiny_opt, make_net, config_of, tmp_path, share):
    net = make_net(tiny_opt, [1])
    hub.save_predictor(tmp_path, net, config_of(net, tiny_opt))
    hub.load_predictor(tmp_path)
    content = bytearray((tmp_path / hub.WEIGHTS).read_bytes())
    content[int(share * len(content))] ^= 1
    (tmp_path / hub.WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match=r"predictor\.safetensors is damaged.*checksum"):
        hub.load_predictor(tmp_path)


# Data


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", r"data\.train=.*a\.txt' is empty: give text"),
        ("a.jsonl", "\n \n", r"data\.train=.* is empty: .*'page' column"),
        ("a.txt", "One line.\n", r"data\.windows asks for 16 windows, and no text is as long as one"),
        ("a.jsonl", '{"page": "One line."}\n', r"data\.windows asks for 16 windows"),
        ("a.txt", "One line, and so on. " * 5, r"data\.windows must be in \[1, 4\].*got 16"),
        ("a.jsonl", '["page"]\n', r"'page' column of text in each line"),
        ("a.jsonl", '{"page": 3}\n', r"'page' column of text in each line"),
        ("a.txt", b"\xff\xfe\x00", r"data\.train=.*must be text in UTF-8"),
    ],
)
def test_data_without_enough_text_is_refused_by_setting_and_cure(tiny_opt, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    data = TextFiles(str(tmp_path / name), None, "page", 16, 24, 0.5, 0)
    with pytest.raises(UserError, match=message):
        data.examples(tiny_opt)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.tokens=513", r"data\.tokens must be at most the 512 positions of tiny-llama, got 513"),
        ("measure.tokens=513", r"measure\.tokens must be at most the 512 positions"),
        ("measure.context=[fisher] measure.tokens=513", r"measure\.tokens must be at most the 512"),
        ("measure=latency measure.new_tokens=512", r"measure\.new_tokens must be at most the 512 positions"),
        ("measure.context_tokens=512", r"measure\.continuation_tokens must be at most the 512 positions"),
    ],
)
def test_what_is_longer_than_the_context_is_refused_before_the_model_is_loaded(
    compose, override, message, monkeypatch
):
    monkeypatch.setattr(loading, "_load_lm", None)
    with pytest.raises(UserError, match=message):
        loading.load_lm(compose("evaluate", "model=tiny-llama", *override.split()))


def test_windows_as_long_as_the_context_are_not_refused(compose):
    estimate.check_context(compose("evaluate", "model=tiny-llama", "data.tokens=512", "measure.tokens=512"))


def test_training_takes_experiments_that_set_keys_of_measures(compose):
    estimate.check_context(compose("train", "model=tiny-llama", "experiment=wikitext"))


# Settings


@pytest.mark.parametrize("level", ["1.0", "-0.1", "abc", "null", "true", "nan"])
@pytest.mark.parametrize("sparsity", ["layer", "threshold"])
def test_a_level_that_is_no_share_is_refused_before_the_model_is_loaded(compose, sparsity, level):
    cfg = compose("evaluate", f"sparsity={sparsity}", f"sparsity.level={level}")
    with pytest.raises(UserError, match=r"sparsity\.level .* must be in \[0, 1\), got"):
        method.policy_of(cfg)
    with pytest.raises(UserError, match=r"sparsity\.level .* must be in \[0, 1\), got"):
        checks.check_train(compose("train", f"sparsity={sparsity}", f"sparsity.level={level}"))


@pytest.mark.parametrize("active", ["positive", "[0.5]"])
def test_logits_of_what_is_active_make_no_ranking_over_layers(compose, active):
    job = [
        "predictor.loss=bce",
        f"predictor.active.neuron={active}",
        "make_missing=true",
        "criterion=l2_norm",
    ]
    checks.check_scorer(compose("evaluate", *job))
    with pytest.raises(UserError, match=r"loss=bce .*sparsity\.scope=layer, got global"):
        checks.check_scorer(compose("evaluate", *job, "sparsity=global"))


def test_budgets_are_json_though_a_threshold_is_minus_infinity(compose):
    cfg = compose(
        "evaluate",
        *SMALL,
        "make_missing=true",
        "sparsity=threshold",
        "predictor=prompt_activation",
        "sparsity.decided_at=prompt",
        "sparsity.min_units=100000",
    )
    lm = loading.load_lm(cfg)
    policy = policies.get_policy(cfg, lm, ingredients.get_scorer(cfg, lm, []), Zero())
    assert set(policy.thresholds.values()) == {-math.inf}

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    known = json.loads(keys.budgets_file(cfg).read_text(), parse_constant=refuse)
    assert {value for _, _, value in known["thresholds"]} == {None}


# Models of other kinds


def test_a_tokenizer_without_a_padding_token_changes_no_figure(tiny_opt, task_root, tasks, examples):
    """As Llama's has none."""
    inside = tiny_opt.tokenizer.backend_tokenizer
    bare = PreTrainedTokenizerFast(tokenizer_object=inside, bos_token="<pad>", eos_token="<pad>")
    assert bare.pad_token is None
    found = []
    for tokenizer in (tiny_opt.tokenizer, bare):
        lm = LM(tiny_opt.model, tokenizer)
        with sparse(lm.model, Fixed(random_scores(find_sites(lm.model), 0)), SparsityPolicy(0.5)) as run:
            metrics = perplexity(run, lm, examples([12, 5, 9]), 2)
            metrics |= task_metrics(run, lm, ["copa"], str(task_root), None, 0, 2, 0)
        found.append(metrics)
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_in_half_precision_is_collected_fitted_and_measured_on_the_cpu(compose, dtype):
    found = {}
    for asked in ("float32", dtype):
        job = [*SMALL, *FIT, f"model.dtype={asked}", "make_missing=true", "predictor.epochs=1"]
        cfg = compose("evaluate", *job)
        lm = loading.load_lm(cfg)
        scorer = ingredients.get_scorer(cfg, lm, [])
        with sparse(lm.model, scorer, method.policy_of(cfg), "token") as run:
            found[asked] = measures.measure(cfg, lm, run)["perplexity"].value
        assert run.achieved("neuron") == pytest.approx(0.375)
    assert found[dtype] == pytest.approx(found["float32"], rel=0.1)  # other units go where scores are close
    assert found[dtype] != found["float32"]
