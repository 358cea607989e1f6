"""Settings at the edge of what they may be: one sentence names them, before anything is loaded."""

import json
import math

import pytest
import wandb
import yaml
from hydra.errors import CompactHydraException
from lightning_fabric.utilities.seed import max_seed_value

from shadow.criteria import CONTEXTUAL, CRITERIA, DEVIATIONS, RANDOM
from shadow.data import tasks
from shadow.jobs import checks, loggers
from shadow.jobs.config import model_label
from shadow.jobs.keys import traces_folder
from shadow.jobs.run import job
from shadow.jobs.start import check_seed
from shadow.measures.evaluation import weighted_perplexity


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=null", r"seed must be a whole number in \[0, 4294967295\], got None"),
        ("seed=1.5", r"seed .*got 1\.5"),
        ("seed=-1", r"seed .*got -1"),
        ("seed=true", r"seed .*got True"),
        ("seed=4294967296", r"seed .*got 4294967296"),
        ("data.split_seed=-1", r"data\.split_seed .*got -1"),
        ("measure.seed=null", r"measure\.seed .*got None"),
        ("model.source.seed=1.5", r"model\.source\.seed .*got 1\.5"),
        ("model.name=../../x", r"model\.name .*no slash, .*got '\.\./\.\./x'"),
        ("model.name=facebook/opt-125m", r"model\.name .*got 'facebook/opt-125m'"),
        ("model.name=..", r"model\.name .*no dot at its beginning, got '\.\.'"),
        ("model.name=''", r"model\.name .*got ''"),
        ("model.name=null", r"model\.name .*got None"),
        ("'model.name=\"a\\nb\"'", r"model\.name .*got 'a"),
        (f"model.name={'x' * 101}", r"model\.name .*1 to 100 characters"),
        ("predictor.name=../y", r"predictor\.name .*got '\.\./y'"),
    ],
)
def test_a_job_with_a_wrong_seed_or_name_ends_in_one_sentence_on_record(compose, tmp_path, override, message):
    cfg = compose("evaluate", "model=tiny-llama", "logger=none", override.strip("'"))
    with pytest.raises(CompactHydraException, match=message) as refused, job(cfg):
        pytest.fail("the job went on")
    assert json.loads((tmp_path / "output" / "run.json").read_text())["error"] == str(refused.value)


def test_the_largest_seed_is_the_one_that_lightning_takes():
    check_seed("seed", max_seed_value)


@pytest.mark.parametrize("path", [".", "{tmp}/..", "{tmp}/x/"])
def test_a_folder_gives_its_artifacts_a_name_however_it_is_written(compose, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    cfg = compose("train", "model=tiny-llama", f"model.path={path.format(tmp=tmp_path)}")
    assert model_label(cfg) in (tmp_path.name, tmp_path.parent.name, "x")


def test_names_that_are_allowed_keep_a_store_in_its_folder(compose, artifacts):
    folder = traces_folder(compose("train", "model=tiny-llama", "model.name=my model-2.b"))
    assert folder.resolve().parent == (artifacts / "traces").resolve()


# Weights & Biases


@pytest.mark.parametrize(
    ("said", "offline"), [("", False), ("TRUE", True), ("1", True), ("false", False), (None, False)]
)
def test_wandb_is_offline_as_the_environment_says(compose, monkeypatch, said, offline):
    if said is None:
        monkeypatch.delenv("WANDB_OFFLINE", raising=False)
    else:
        monkeypatch.setenv("WANDB_OFFLINE", said)
    node = compose("train", "logger=wandb").logger.wandb
    assert loggers.is_offline(node.offline) is offline


def test_what_is_neither_true_nor_false_and_no_account_are_refused(compose, monkeypatch):
    monkeypatch.setenv("WANDB_OFFLINE", "maybe")
    with (
        pytest.raises(CompactHydraException, match=r"WANDB_OFFLINE .* got 'maybe'"),
        job(compose("train", "logger=wandb")),
    ):
        pytest.fail("the job went on")

    def no_account(*args, **kwargs):
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login`.")

    monkeypatch.setenv("WANDB_OFFLINE", "")
    monkeypatch.setattr(wandb, "init", no_account)
    with (
        pytest.raises(CompactHydraException, match=r"logger=wandb could not .*WANDB_OFFLINE=true"),
        job(compose("train", "logger=wandb")),
    ):
        pytest.fail("the job went on")


# What is told


@pytest.mark.parametrize("taps", [100, 5])
def test_more_taps_than_layers_are_refused_before_the_model_is_loaded(compose, taps):
    with pytest.raises(
        ValueError, match=rf"predictor\.taps must be at most this model's 4 layers.*got {taps}"
    ):
        checks.check_train(compose("train", "model=tiny-llama", f"predictor.taps={taps}"))


@pytest.mark.parametrize("there", ["validation", "test"])
def test_a_split_that_stands_for_another_is_told_once(tmp_path, caplog, there):
    for split in ("train", there):
        (tmp_path / f"{split}.jsonl").write_text("{}\n")
    other = {"validation": "test", "test": "validation"}[there]
    for _ in range(2):
        assert tasks.local_files(tmp_path)[other] == str(tmp_path / f"{there}.jsonl")
    assert caplog.messages == [f"{tmp_path} has no {other}.jsonl: its {there}.jsonl stands for it"]


def test_a_perplexity_beyond_all_numbers_is_told(caplog):
    found = weighted_perplexity([1500.0, 1400.0], [2, 2])
    assert found.value == math.exp(700)
    assert sum(found.samples) / 2 == 725
    assert "e^725.0" in caplog.text
    caplog.clear()
    weighted_perplexity([10.0], [2])
    assert not caplog.messages


def test_the_criteria_of_the_sweep_are_those_there_are(root):
    """Of tokens by themselves also as an oracle; random ones need none."""
    sweep = yaml.safe_load((root / "conf" / "sweep" / "criteria.yaml").read_text())
    pairs = yaml.safe_load(f"[{sweep['hydra']['sweeper']['params']['contender']}]")
    of = {scorer: [name for other, name in pairs if other == scorer] for scorer in ("static", "oracle")}
    assert sorted(of["static"]) == sorted(CRITERIA)
    assert sorted(of["oracle"]) == sorted({*CONTEXTUAL, *DEVIATIONS} - {RANDOM})


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (["sparsity.head_unit=group"], r"needs sparsity\.head_unit=query, got group"),
        (["model=gemma-2-2b"], r"knows the families .*'gemma2'"),
        (["model=opt-350m"], r"norms before attention|embeddings of the model's width"),
        (["measure.dtype=float16"], r"stores weights as one of .* dtype=float16"),
        (["+model.shape.hidden_act=gelu"], r"silu, and this model has hidden_act='gelu'"),
    ],
)
def test_what_the_executor_refuses_is_refused_before_anything_is_collected(compose, job, message):
    """With make_missing=true a job would collect and fit first."""
    family = [] if any("model=" in word for word in job) else ["model=tiny-llama"]
    cfg = compose("evaluate", *family, "executor=gathered", "predictor=unified", "make_missing=true", *job)
    with pytest.raises(ValueError, match=message):
        checks.check_evaluate(cfg)
