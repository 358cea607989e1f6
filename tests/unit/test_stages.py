"""Fitting a predictor from traces: what is left on disk, and that a broken fit ends as an unbroken one."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shadow.errors import UserError
from shadow.jobs import settings, stages
from shadow.predictor_module import PredictorModule
from shadow.predictors import Fixed, Oracle, Predicted
from shadow.sparse import sparse
from shadow.traces import Traces

# Lightning's word for resuming
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")

SMALL = (
    "model=tiny-llama",
    "data.windows=20",
    "data.tokens=12",
    "traces.batch_size=5",
    "traces.shard_windows=10",
    "traces.tokens_per_window=6",
    "predictor.epochs=6",
    "predictor.batch_size=16",
    "predictor.rank=4",
    "callbacks.progress=null",
    "+trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
)


class CrashError(Exception):
    pass


@pytest.fixture
def fit(compose, shelf):
    """fit(*overrides): the folder of the predictor of these settings, fitted as far as it is not there."""

    def run(*overrides: str) -> Path:
        cfg = compose("train", *SMALL, *overrides)
        lm = stages.load_lm(cfg)
        shelf(settings.traces_folder(cfg), lambda: stages.get_traces(cfg, lm))
        return stages.get_predictor(cfg, lm, [])

    return run


@pytest.fixture
def fitted(compose, fit, shelf):
    """fitted(*overrides): the same, perhaps fitted for an earlier test."""

    def run(*overrides: str) -> Path:
        folder = settings.predictor_folder(compose("train", *SMALL, *overrides))
        shelf(folder, lambda: fit(*overrides))
        return folder

    return run


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# What is left


def test_a_predictor_is_its_weights_and_what_is_to_be_known_of_them(fitted):
    assert set(contents(fitted())) == {"meta.json", "predictor.safetensors"}


@pytest.mark.parametrize("predictor", ["unified", "layerwise"])
def test_the_size_of_a_predictor_is_reported_in_parameters_and_as_share_of_the_model(
    fitted, compose, predictor
):
    folder = fitted(f"predictor={predictor}")
    meta = json.loads((folder / "meta.json").read_text())
    lm = stages.load_lm(compose("train", *SMALL))
    taps = {"unified": 1, "layerwise": 3}[predictor]
    down = taps * (32 * 4 + 4)  # state to rank, and a bias
    up = 2 * 4 * 3 * (4 + 64)  # rank, plain and curved, to the units of three layers
    assert meta["parameters"] == down + up
    assert meta["share_of_model"] == (down + up) / lm.model.num_parameters()


def test_the_rows_are_split_by_window(fitted):
    meta = json.loads((fitted() / "meta.json").read_text())
    assert meta["rows"] == {"train": 18 * 6, "val": 2 * 6}


def test_metrics_are_numbers_between_their_bounds(fitted):
    metrics = json.loads((fitted() / "meta.json").read_text())["metrics"]
    assert {"val/loss", "val/spearman", "val/recall@50"} <= set(metrics)
    assert 0 <= metrics["val/recall@50"] <= 1
    assert -1 <= metrics["val/spearman"] <= 1
    assert metrics["val/loss"] > 0


def test_a_loaded_predictor_says_what_the_trained_one_said(fit, compose, monkeypatch):
    nets = []
    setup = PredictorModule.configure_optimizers
    monkeypatch.setattr(
        PredictorModule, "configure_optimizers", lambda self: nets.append(self.net) or setup(self)
    )
    folder = fit()
    loaded = stages.load_predictor(folder, stages.load_lm(compose("train", *SMALL)))
    states = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
    for unit, values in Predicted(nets[0], "scores").at(1, states, None).items():
        assert torch.equal(loaded.at(1, states, None)[unit], values)


@pytest.mark.parametrize(
    "taps", [["predictor=layerwise"], ["predictor.taps=[1,2,3]"], ["predictor.taps=each"]], ids=str
)
def test_layerwise_is_the_net_with_a_tap_in_every_layer_from_1_on(fitted, taps):
    reference = load_file(fitted("predictor=unified", "predictor.taps=[1,2,3]") / "predictor.safetensors")
    found = load_file(fitted(*taps) / "predictor.safetensors")
    assert found.keys() == reference.keys()
    for name, values in reference.items():
        assert torch.equal(found[name], values), name


@pytest.mark.parametrize(
    "reads",
    [
        ["sparsity.decided_at=prompt", "predictor.pooling=last"],
        ["sparsity.decided_at=prompt", "predictor.pooling=mean"],
        ["sparsity.decided_at=sequence", "predictor.pooling=mean"],
    ],
    ids=str,
)
def test_a_predictor_of_windows_learns_from_their_rows(fitted, reads):
    meta = json.loads((fitted(*reads) / "meta.json").read_text())
    assert meta["rows"] == {"train": 18, "val": 2}


# Again, and after a crash


def test_fitting_twice_gives_the_same_bytes(fit, tmp_path, monkeypatch):
    first = fit()
    torch.manual_seed(99)  # whatever ran before
    monkeypatch.setenv("SHADOW_ROOT", str(tmp_path / "elsewhere"))
    second = fit()
    assert first.name == second.name
    assert contents(first) == contents(second)


def test_the_seed_of_a_fit_matters(fitted):
    one, other = (load_file(fitted(f"seed={seed}") / "predictor.safetensors") for seed in (1, 2))
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_finished_predictor_is_not_fitted_again(fitted, fit):
    folder = fitted()
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    fit()
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


@pytest.mark.parametrize("epoch", [0, 3, 5])
@pytest.mark.parametrize("moment", ["on_train_epoch_start", "on_train_batch_start"])
def test_a_fit_that_broke_off_goes_on_and_ends_with_the_same_bytes(
    fitted, fit, tmp_path, monkeypatch, epoch, moment
):
    whole = contents(fitted())
    monkeypatch.setenv("SHADOW_ROOT", str(tmp_path / "elsewhere"))

    def crash(self, *args):
        if self.current_epoch == epoch and (not args or args[1] == 3):
            raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(PredictorModule, moment, crash)
        with pytest.raises(CrashError):
            fit()
    assert contents(fit()) == whole


@pytest.mark.parametrize("lost", [["meta.json"], ["meta.json", "predictor.safetensors"]], ids=str)
def test_a_fit_that_broke_off_while_writing_ends_with_the_same_bytes(fitted, fit, lost):
    folder = fitted()
    whole = contents(folder)
    for name in lost:
        (folder / name).unlink()
    assert contents(fit()) == whole


@pytest.mark.parametrize("name", ["predictor.safetensors", "meta.json"])
def test_what_a_kill_left_half_written_is_gone_after_the_rerun(fitted, fit, kill_while_writing, name):
    folder = fitted()
    whole = contents(folder)
    (folder / "meta.json").unlink()
    (folder / name).unlink(missing_ok=True)
    kill_while_writing(folder / name)
    assert contents(fit()) == whole


def test_a_checkpoint_that_a_kill_left_behind_is_gone_after_the_rerun(fitted, fit):
    """Killed between the last two steps: meta.json stands, and last.ckpt too."""
    folder = fitted()
    whole = contents(folder)
    (folder / "last.ckpt").write_bytes(b"old")
    assert contents(fit()) == whole


def test_a_checkpoint_that_a_kill_left_half_written_does_not_stop_the_rerun(fitted, fit, monkeypatch):
    """Lightning writes in the temporary folder and moves: to another disk, a kill can cut that short."""
    folder = fitted()
    whole = contents(folder)
    for file in folder.iterdir():
        file.unlink()
    halves = []

    def peek(self):
        if self.current_epoch == 3:
            content = (folder / "last.ckpt").read_bytes()
            halves.append(content[: len(content) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(PredictorModule, "on_train_epoch_start", peek)
        fit()
    for file in folder.iterdir():
        file.unlink()
    (folder / "last.ckpt").write_bytes(halves[0])
    assert contents(fit()) == whole


# Scorers


def test_the_static_scorer_is_the_mean_over_the_calibration_windows(compose):
    cfg = compose("evaluate", *SMALL, "predictor=static", "criterion=fisher")
    scorer = stages.get_scorer(cfg, stages.load_lm(cfg), [])
    assert isinstance(scorer, Fixed)
    store = Traces(settings.traces_folder(cfg))
    for kind in ("head", "neuron"):
        mean = store.read("window", f"fisher/{kind}", torch.arange(20)).mean(0)
        for layer in range(4):
            torch.testing.assert_close(scorer.scores[layer, kind], mean[layer], rtol=1e-5, atol=0)


def test_the_oracle_has_the_criterion_that_is_asked_for(compose):
    cfg = compose("evaluate", *SMALL, "predictor=oracle", "criterion=grad_norm")
    scorer = stages.get_scorer(cfg, stages.load_lm(cfg), [])
    assert isinstance(scorer, Oracle)
    assert scorer.criterion == "grad_norm"


def test_random_scores_follow_the_seed(compose):
    def scores(seed):
        cfg = compose("evaluate", *SMALL, "predictor=random", f"seed={seed}")
        return stages.get_scorer(cfg, stages.load_lm(cfg), []).scores

    assert torch.equal(scores(1)[1, "neuron"], scores(1)[1, "neuron"])
    assert not torch.equal(scores(1)[1, "neuron"], scores(2)[1, "neuron"])


@pytest.mark.parametrize("predictor", ["unified", "layerwise", "static"])
def test_the_dense_model_needs_neither_traces_nor_a_predictor(compose, artifacts, predictor, batch, dense):
    cfg = compose("evaluate", *SMALL, f"predictor={predictor}", "sparsity.level=0")
    lm = stages.load_lm(cfg)
    with sparse(lm.model, stages.get_scorer(cfg, lm, []), settings.policy_of(cfg)) as run:
        assert torch.equal(run.logits(batch), dense(lm, batch))
    assert not artifacts.exists()


def test_the_jobs_of_a_sweep_share_one_model(compose):
    one = stages.load_lm(compose("evaluate", *SMALL, "sparsity.level=0.1"))
    assert stages.load_lm(compose("evaluate", *SMALL, "sparsity.level=0.2")) is one
    assert stages.load_lm(compose("evaluate", *SMALL, "model.source.seed=1")) is not one


# Refusals


def test_a_predictor_of_other_weights_is_refused(fitted, compose):
    folder = fitted()
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"weights": "0" * 16}))
    with pytest.raises(UserError, match="other weights"):
        stages.load_predictor(folder, stages.load_lm(compose("train", *SMALL)))


def test_the_digest_tells_weights_apart(make_lm):
    digests = {stages.digest(make_lm("opt", seed=seed).model) for seed in (0, 0, 1)}
    assert len(digests) == 2


@pytest.mark.parametrize("taps", ["[4]", "[-1]", "[2,1]", "[1,1]", "[]", "[1.5]", "all"])
def test_bad_taps_are_refused_by_name(fit, taps):
    with pytest.raises(UserError, match=r"predictor\.taps"):
        fit(f"predictor.taps={taps}")
