"""What names a result, what does not, and the command that makes a missing one."""

import json
import shlex

import pytest

from shadow.errors import UserError
from shadow.jobs.settings import (
    check_scorer,
    check_train,
    predictor_folder,
    reads,
    traces_folder,
    train_command,
)


@pytest.fixture
def text_files(tmp_path):
    """text_files(folder): overrides that name two files of the same content, wherever they lie."""

    def write(folder):
        (tmp_path / folder).mkdir(exist_ok=True)
        for part in ("train", "eval"):
            (tmp_path / folder / f"{part}.jsonl").write_text(
                json.dumps({"page": f"words of {part} " * 99}) + "\n"
            )
        return [f"data.{part}={tmp_path / folder / part}.jsonl" for part in ("train", "eval")]

    return write


# Names

NEITHER = [
    "model.source.cache=/elsewhere",
    "model.source.install=other",
    "paths.artifact_dir=/elsewhere",
    "trainer.accelerator=cpu",
    "sparsity.level=0.1",
    "sparsity=global",
    "logger=wandb",
    "tags=[a,b]",
    "callbacks.progress=null",
]
PREDICTOR = [
    "predictor=layerwise",
    "predictor.rank=3",
    "predictor.epochs=1",
    "predictor.ridge=1.0",
    "predictor.floor=0.5",
    "criterion=fisher",
]
BOTH = [
    "model=tiny-opt",
    "model.dtype=bfloat16",
    "model.source.gguf_file=other.gguf",
    "data.windows=100",
    "data.tokens=32",
    "data.prompt_share=0.25",
    "data.eval_share=0.5",
    "data.split_seed=1",
    "seed=2",
    "traces.criteria=[l2_norm]",
    "traces.taps=[0,1]",
    "traces.tokens_per_window=4",
]


@pytest.mark.parametrize("override", [*NEITHER, *PREDICTOR, *BOTH])
def test_a_setting_renames_what_it_concerns_and_nothing_else(compose, override):
    before, after = compose("train"), compose("train", override)
    renames_traces = traces_folder(before).name != traces_folder(after).name
    renames_predictor = predictor_folder(before).name != predictor_folder(after).name
    assert (renames_traces, renames_predictor) == (override in BOTH, override not in NEITHER)


def test_a_predictor_of_tokens_serves_every_time_of_decision_and_one_of_windows_its_own(compose):
    def names(pooling, *times):
        overrides = [f"predictor.pooling={pooling}"]
        return {
            predictor_folder(compose("train", *overrides, f"sparsity.decided_at={t}")).name for t in times
        }

    assert len(names("scores", "token", "prompt", "sequence")) == 1
    assert len(names("last", "prompt", "sequence")) == 2
    assert not names("last", "prompt") & names("mean", "prompt")


def test_names_do_not_depend_on_where_results_lie(compose, monkeypatch, tmp_path):
    names = set()
    for root in ("one", "two"):
        monkeypatch.setenv("SHADOW_ROOT", str(tmp_path / root))
        cfg = compose("train")
        assert predictor_folder(cfg).is_relative_to(tmp_path / root)
        names.add((traces_folder(cfg).name, predictor_folder(cfg).name))
    assert len(names) == 1


def test_names_are_those_of_evaluate_too(compose):
    assert predictor_folder(compose("train")) == predictor_folder(compose("evaluate"))


def test_traces_follow_the_content_of_their_text_and_not_its_place(compose, text_files):
    one, two = text_files("one"), text_files("two")
    before = traces_folder(compose("train", "data=text", *one)).name
    assert traces_folder(compose("train", "data=text", *two)).name == before
    file = one[0].partition("=")[2]
    with open(file, "a") as stream:
        stream.write(json.dumps({"page": "one more"}) + "\n")
    assert traces_folder(compose("train", "data=text", *one)).name != before


def test_traces_do_not_depend_on_the_text_for_evaluation(compose, text_files):
    calibration, evaluation = text_files("one")
    alone = traces_folder(compose("train", "data=text", calibration)).name
    assert traces_folder(compose("train", "data=text", calibration, evaluation)).name == alone


def test_traces_of_tasks_follow_the_content_of_their_files_and_not_its_place(compose, task_root, tmp_path):
    def name(root):
        return traces_folder(compose("train", "data=tasks", "data.tasks=[copa]", f"data.root={root}")).name

    (tmp_path / "copy" / "copa").mkdir(parents=True)
    for part in ("train", "validation"):
        content = (task_root / "copa" / f"{part}.jsonl").read_text()
        (tmp_path / "copy" / "copa" / f"{part}.jsonl").write_text(content)
    assert name(tmp_path / "copy") == name(task_root)
    (tmp_path / "copy" / "copa" / "train.jsonl").write_text(content)
    assert name(tmp_path / "copy") != name(task_root)


# The command that makes what is missing

JOBS = [
    [],
    ["predictor=layerwise"],
    ["sparsity=global", "sparsity.level=0.7"],
    ["sparsity.decided_at=prompt", "predictor.pooling=mean"],
    ["seed=7"],
    ["debug=fdr"],
    ["model=tiny-opt", "model.source.layers=3"],
    ["criterion=fisher"],
    ["traces.taps=[0,1]", "predictor.taps=[1]"],
    ["trainer=cpu", "+trainer.deterministic=true"],
    ["data.windows=100", "data.split_seed=1"],
    ["measure=perplexity", "measure.windows=2", "tags=[a,b]", "logger=wandb", "reuse_points=false"],
    ["callbacks.progress=null", "+trainer.enable_progress_bar=false"],
    ["sweep=accuracy_curve", "sparsity.level=0.3", "predictor=unified"],
    ["predictor=static", "model=tiny-llama"],
]


def overrides_of(command: str) -> list[str]:
    words = shlex.split(command)
    assert words[:2] == ["python", "train.py"]
    return words[2:]


@pytest.mark.parametrize("job", JOBS, ids=[" ".join(job) or "defaults" for job in JOBS])
def test_the_command_makes_what_the_job_misses(compose, job):
    cfg = compose("evaluate", *job)
    wanted = traces_folder(cfg), predictor_folder(cfg)
    command = train_command()
    cfg = compose("train", *overrides_of(command))
    assert (traces_folder(cfg), predictor_folder(cfg)) == wanted


def test_the_command_of_an_experiment_makes_what_the_job_misses(compose, text_files):
    cfg = compose("evaluate", "experiment=wikitext", *text_files("with space"))
    wanted = traces_folder(cfg), predictor_folder(cfg)
    cfg = compose("train", *overrides_of(train_command()))
    assert (traces_folder(cfg), predictor_folder(cfg)) == wanted


@pytest.mark.parametrize(
    "override", ["measure=choices", "sparsity.level=0.3", "tags=[a]", "make_missing=false"]
)
def test_the_command_leaves_out_what_does_not_concern_it(compose, override):
    compose("evaluate", "model=tiny-opt", override)
    assert train_command() == "python train.py model=tiny-opt"


@pytest.mark.parametrize(("predictor", "thing"), [("unified", "predictor"), ("static", "trace store")])
def test_what_is_missing_is_answered_with_the_command_and_the_other_way(compose, predictor, thing):
    cfg = compose("evaluate", "model=tiny-opt", f"predictor={predictor}")
    with pytest.raises(UserError, match=f"no {thing}.*`python train.py .*`.*make_missing=true") as error:
        check_scorer(cfg)
    assert f"predictor={predictor}" in str(error.value)
    assert "model=tiny-opt" in str(error.value)


@pytest.mark.parametrize(
    "job",
    [["predictor=random"], ["predictor=oracle"], ["sparsity.level=0"], ["make_missing=true"]],
)
def test_nothing_is_missing_where_nothing_is_needed(compose, job):
    check_scorer(compose("evaluate", *job))


# Refusals before the model is loaded


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("predictor.pooling=max", r"predictor\.pooling.*'max'"),
        ("predictor.pooling=last", r"sparsity\.decided_at=token.*predictor\.pooling=scores"),
        ("sparsity.level=1.5", r"sparsity\.level.*1\.5"),
        ("sparsity.scope=block", r"sparsity\.scope.*block"),
        ("traces.criteria=[fisher]", r"criterion=l2_norm.*traces\.criteria"),
        ("traces.shard_windows=7", r"traces\.shard_windows"),
        ("predictor.taps=[]", r"predictor\.taps"),
        ("predictor.taps=[2,1]", r"predictor\.taps"),
        ("predictor.name=unifed", r"predictor\.name.*unifed"),
    ],
)
def test_a_bad_setting_is_refused_before_the_model_is_loaded(compose, override, message):
    with pytest.raises(UserError, match=message):
        check_train(compose("train", override))


def test_an_unknown_scorer_is_refused_by_name(compose):
    with pytest.raises(UserError, match=r"predictor\.name.*unified.*'unifed'"):
        check_scorer(compose("evaluate", "predictor.name=unifed"))


def test_what_a_predictor_reads_follows_its_pooling(compose):
    assert reads(compose("train")) == ("token", "state")
    assert reads(compose("train", "predictor.pooling=mean", "sparsity.decided_at=sequence")) == (
        "window",
        "sequence/mean",
    )
