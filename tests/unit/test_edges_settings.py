"""Settings at the edge of what they may be: one sentence names them, before anything is loaded."""

import json
import math

import pytest
import wandb
import yaml
from hydra.errors import CompactHydraException
from lightning_fabric.utilities.seed import max_seed_value
from omegaconf import OmegaConf

from shadow.criteria import CONTEXTUAL, CRITERIA, DEVIATIONS, RANDOM
from shadow.data import tasks
from shadow.errors import UserError
from shadow.jobs import checks, loggers
from shadow.jobs.config import model_label
from shadow.jobs.run import job
from shadow.jobs.start import check_name, check_seed
from shadow.measures.evaluation import weighted_perplexity


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=null", r"seed must be a whole number in \[0, 4294967295\], got None"),
        ("data.split_seed=-1", r"data\.split_seed .*got -1"),
        ("model.source.seed=1.5", r"model\.source\.seed .*got 1\.5"),
        ("model.name=../../x", r"model\.name .*no slash, .*got '\.\./\.\./x'"),
        ("predictor.name=a/y", r"predictor\.name .*got 'a/y'"),
        (
            "sparsity.learnt=null",
            r"is a group, of which settings are given: give sparsity\.learnt\.windows=0",
        ),
    ],
)
def test_a_job_with_a_wrong_seed_or_name_ends_in_one_sentence_on_record(compose, tmp_path, override, message):
    cfg = compose("evaluate", "model=tiny-llama", "logger=none", override)
    with pytest.raises(CompactHydraException, match=message) as refused, job(cfg):
        pytest.fail("the job went on")
    assert json.loads((tmp_path / "output" / "run.json").read_text())["error"] == str(refused.value)


@pytest.mark.parametrize("seed", [None, 1.5, -1, True, "1", max_seed_value + 1])
def test_what_is_no_seed_of_all_generators_is_refused(seed):
    check_seed("seed", max_seed_value)
    with pytest.raises(UserError, match=rf"measure\.seed must .*got {seed!r}"):
        check_seed("measure.seed", seed)


@pytest.mark.parametrize("name", ["..", ".x", "", None, "a\nb", "a\\b", "a\0", "x" * 101, 3])
def test_what_cannot_begin_a_folders_name_is_refused(name):
    check_name("model.name", "my model-2.b")
    with pytest.raises(UserError, match=r"model\.name begins the names of folders") as refused:
        check_name("model.name", name)
    assert "\n" not in str(refused.value)


def test_a_folder_gives_its_artifacts_a_name_however_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = [
        model_label(OmegaConf.create({"model": {"path": path}})) for path in (".", "x/..", "x/", "../y")
    ]
    assert labels == [tmp_path.name, tmp_path.name, "x", "y"]


# Weights & Biases


@pytest.mark.parametrize(
    ("said", "offline"), [("", False), ("TRUE", True), ("1", True), ("false", False), (None, False)]
)
def test_wandb_is_offline_as_the_environment_says(said, offline):
    assert loggers.is_offline(said) is offline


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
        (["model.source.heads=0"], r"model\.shape must be of a model that transformers knows"),
        (["model=gemma-2-2b"], r"knows the families .*'gemma2'"),
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
