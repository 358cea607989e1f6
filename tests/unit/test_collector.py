"""Collecting: what a store holds, and that a broken collection goes on where it stopped."""

import json

import pytest
import torch

from shadow.artifacts import key_of
from shadow.batches import collate
from shadow.collector import CriterionCollector, last_of, mean_of
from shadow.criteria import CRITERIA
from shadow.errors import UserError
from shadow.jobs import settings, stages
from shadow.scores import score
from shadow.traces import Traces, shard_name

SMALL = (
    "model=tiny-llama",
    "data.windows=11",
    "data.tokens=12",
    "traces.batch_size=2",
    "traces.shard_windows=4",
    "traces.tokens_per_window=5",
    "callbacks.progress=null",
    "+trainer.enable_progress_bar=false",
)


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def collect(compose):
    """collect(*overrides): the finished store of these settings, collected here as far as it is not there."""

    def run(*overrides: str) -> Traces:
        cfg = compose("train", *SMALL, *overrides)
        return stages.get_traces(cfg, stages.load_lm(cfg))

    return run


@pytest.fixture
def collected(compose, collect, shelf):
    """collected(*overrides): the finished store of these settings, perhaps collected for an earlier test."""

    def run(*overrides: str) -> Traces:
        folder = settings.traces_folder(compose("train", *SMALL, *overrides))
        shelf(folder, lambda: collect(*overrides))
        return Traces(folder)

    return run


# States of a window


def test_last_of_is_the_state_at_the_last_position_inside():
    states = torch.arange(24.0).view(2, 4, 3)
    inside = torch.tensor([[True, True, False, False], [True, True, True, True]])
    assert torch.equal(last_of(states, inside), torch.stack([states[0, 1], states[1, 3]]))


def test_mean_of_is_the_mean_over_the_positions_inside():
    states = torch.arange(24.0).view(2, 4, 3)
    inside = torch.tensor([[True, True, False, False], [False, True, False, True]])
    expected = torch.stack([states[0, :2].mean(0), states[1, 1::2].mean(0)])
    assert torch.equal(mean_of(states, inside), expected)  # halves of whole numbers are exact


# What a store holds


def test_the_store_has_a_row_per_window_and_per_sampled_token(collected):
    store = collected()
    assert store.count("window") == 11
    assert store.count("token") == 11 * 5
    assert store.read("window", "window", torch.arange(11)).tolist() == list(range(11))
    owners = store.read("token", "window", torch.arange(55))
    assert owners.tolist() == [window for window in range(11) for _ in range(5)]
    positions = store.read("token", "position", torch.arange(55)).view(11, 5)
    assert (positions[:, 1:] > positions[:, :-1]).all()  # rising: none twice
    assert positions.min() >= 0
    assert positions.max() < 12


def test_the_manifest_says_what_was_collected(collected):
    store = collected()
    assert store.taps == [0, 1, 2, 3]
    assert store.criteria == ["plainact", "l2_norm", "grad_norm", "fisher"]
    assert store.manifest["units"] == {"head": 4, "neuron": 64}
    assert store.manifest["layers"] == 4
    assert store.manifest["width"] == 32


def test_taps_and_criteria_are_those_asked_for(collected):
    store = collected("traces.taps=[1,3]", "traces.criteria=[l2_norm]")
    assert store.taps == [1, 3]
    assert store.read("token", "state", torch.arange(55)).shape == (55, 2, 32)
    with pytest.raises(UserError, match="fisher"):
        store.mean_window_scores("fisher", "head")


@pytest.mark.parametrize("model", ["tiny-llama", "tiny-opt"])
@pytest.mark.parametrize("name", list(CRITERIA))
def test_the_score_of_a_window_is_its_criterion_reduced_over_its_tokens(collected, name, model):
    """All 12 tokens are sampled; both kinds of rows are packed to 11 bits, which sums of them keep."""
    store = collected(f"model={model}", "traces.tokens_per_window=12")
    for kind, count in (("head", 4), ("neuron", 64)):
        tokens = store.read("token", f"{name}/{kind}", torch.arange(11 * 12)).view(11, 12, 4, count)
        expected = CRITERIA[name].reduce(tokens, torch.ones(11, 12, dtype=torch.bool))
        got = store.read("window", f"{name}/{kind}", torch.arange(11))
        small = float(got.max()) * 2**-24
        torch.testing.assert_close(got, expected, rtol=2**-9, atol=small)


@pytest.mark.parametrize("name", list(CRITERIA))
def test_rows_hold_what_scoring_each_window_alone_gives(collected, compose, name):
    store = collected()
    cfg = compose("train", *SMALL)
    lm = stages.load_lm(cfg)
    examples = settings.calibration_data(cfg).examples(lm)
    positions = store.read("token", "position", torch.arange(55)).view(11, 5)
    for window, example in enumerate(examples):
        found = {}
        states = score(
            lm.model,
            collate([example]),
            [name],
            lambda _, site, x, found=found: found.update({(site.layer, site.kind): x[0]}),
            taps=[0, 1, 2, 3],
        )
        rows = torch.arange(5 * window, 5 * window + 5)
        for kind in ("head", "neuron"):
            got = store.read("token", f"{name}/{kind}", rows)
            expected = torch.stack([found[layer, kind][positions[window]] for layer in range(4)], 1)
            # packed to 11 bits; other rows of the batch change the rounding of sums
            torch.testing.assert_close(got, expected, rtol=2**-10, atol=1e-5 * float(expected.max()))
        got = store.read("token", "state", rows)
        expected = torch.stack([states[tap][0, positions[window]] for tap in range(4)], 1)
        torch.testing.assert_close(got, expected, rtol=2**-10, atol=1e-4 * float(expected.abs().max()))


def test_window_states_are_those_of_prompt_and_sequence(collected, compose):
    store = collected("traces.tokens_per_window=12")
    states = store.read("token", "state", torch.arange(132)).view(11, 12, 4, 32)
    for part, end in (("prompt", 6), ("sequence", 12)):  # prompt_share is 0.5
        last = store.read("window", f"{part}/last", torch.arange(11))
        mean = store.read("window", f"{part}/mean", torch.arange(11))
        atol = 2**-11 * float(states.abs().max())  # both packed to 11 bits
        torch.testing.assert_close(last, states[:, end - 1], rtol=0, atol=atol)
        torch.testing.assert_close(mean, states[:, :end].mean(1), rtol=0, atol=atol)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_batch_size_changes_neither_the_sampled_tokens_nor_the_scores(collected, batch_size):
    one, other = collected(), collected(f"traces.batch_size={batch_size}")
    assert one.folder != other.folder
    rows = torch.arange(55)
    assert torch.equal(one.read("token", "position", rows), other.read("token", "position", rows))
    for name in CRITERIA:
        expected = one.read("token", f"{name}/neuron", rows)
        got = other.read("token", f"{name}/neuron", rows)
        # a last float32 digit may tip the 11-bit rounding
        torch.testing.assert_close(got, expected, rtol=2**-10, atol=1e-5 * float(expected.max()))


def test_the_seed_draws_other_tokens(collected):
    rows = torch.arange(55)
    one, other = (collected(f"seed={seed}", "data.seed=0") for seed in (1, 2))
    assert not torch.equal(one.read("token", "position", rows), other.read("token", "position", rows))


def test_a_window_shorter_than_the_sample_gives_all_its_tokens(lm):
    collector = CriterionCollector(lm.model, ["l2_norm"], [1], 8, 2, 0)
    assert collector.sample([3, 20], 0)[:3].tolist() == [[0, 0], [0, 1], [0, 2]]
    assert len(collector.sample([3, 20], 0)) == 11


def test_the_sample_of_a_window_depends_on_its_number_alone(lm):
    collector = CriterionCollector(lm.model, ["l2_norm"], [1], 4, 2, seed=3)
    together = collector.sample([20, 30, 25], 10)
    for row, length in enumerate([20, 30, 25]):
        alone = collector.sample([length], 10 + row)
        assert torch.equal(together[together[:, 0] == row][:, 1], alone[:, 1])


# Resuming


def test_collecting_twice_gives_the_same_bytes(collect, tmp_path, monkeypatch):
    first = collect()
    monkeypatch.setenv("SHADOW_ROOT", str(tmp_path / "elsewhere"))
    second = collect()
    assert first.folder.parents[2] != second.folder.parents[2]
    assert first.folder.name == second.folder.name  # named by settings, not by place
    assert contents(first.folder) == contents(second.folder)


@pytest.mark.parametrize("lost", [[2], [1, 2], [0, 1, 2], []])
def test_a_broken_collection_goes_on_and_ends_with_the_same_bytes(collected, collect, lost):
    folder = collected().folder
    whole = contents(folder)
    assert set(whole) == {"manifest.json", *(shard_name(index) for index in range(3))}
    (folder / "manifest.json").unlink()
    for index in lost:
        (folder / shard_name(index)).unlink()
    kept = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert contents(collect().folder) == whole
    for file, written in kept.items():
        assert file.stat().st_mtime_ns == written, f"{file.name} was collected again"


def test_a_shard_that_a_kill_left_half_written_is_gone_after_the_rerun(
    collected, collect, kill_while_writing
):
    """A killed process cannot remove its unfinished file: the rerun must, or it stays there for ever."""
    folder = collected().folder
    whole = contents(folder)
    (folder / "manifest.json").unlink()
    (folder / shard_name(2)).unlink()
    kill_while_writing(folder / shard_name(2))
    assert contents(folder) != whole
    assert contents(collect().folder) == whole


def test_a_finished_store_is_not_collected_again(collected, collect):
    folder = collected().folder
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert collect().folder == folder
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_a_store_of_other_weights_is_refused(collected, collect):
    folder = collected().folder
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"weights": key_of({})}))
    with pytest.raises(UserError, match="other weights"):
        collect()


def test_collecting_leaves_no_hook_on_the_model(collect, compose, hooks_on):
    collect()
    assert hooks_on(stages.load_lm(compose("train", *SMALL)).model) == 0


# Refusals


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("traces.shard_windows=5", "traces.shard_windows.*traces.batch_size"),
        ("traces.batch_size=0", "traces"),
        ("traces.criteria=[magnitude]", "traces.criteria.*magnitude"),
        ("traces.criteria=[]", "traces.criteria"),
        ("traces.criteria=[fisher]", "criterion=l2_norm.*traces.criteria"),
        ("traces.taps=[0,4]", r"traces.taps.*\[0, 4\)"),
        ("traces.taps=[-1]", "traces.taps"),
    ],
)
def test_bad_settings_are_refused_by_name(collect, override, message):
    with pytest.raises(UserError, match=message):
        collect(override)
