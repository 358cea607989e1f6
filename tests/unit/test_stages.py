"""From settings to traces, predictors and scorers: what is left on disk, and that it grows and heals."""

import csv
import json
import logging
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from string import ascii_lowercase

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger
from safetensors.torch import load_file

from shadow.artifacts.files import key_of
from shadow.criteria import CRITERIA, RANDOM, STATISTICS, random_scores_of
from shadow.criteria.one_pass import score as score_batch
from shadow.data.batches import collate
from shadow.errors import UserError
from shadow.fit.module import Descent, PredictorModule
from shadow.fit.objectives import LogSquares
from shadow.fit.rows import Reading, TraceData
from shadow.front import sparse
from shadow.jobs import calibration, checks, fitting, ingredients, keys, loading, method, stores
from shadow.jobs.estimate import estimate_of
from shadow.models.digest import digest
from shadow.models.kinds import find_sites
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import Mean, Zero
from shadow.scorers.fixed import Fixed
from shadow.scorers.low_rank import LowRankCopy
from shadow.scorers.nets import NetShape, TapNet
from shadow.scorers.oracle import Oracle
from shadow.scorers.predicted import Predicted
from shadow.scorers.prompt import PromptActivation
from shadow.signals import Signal, hook_signals
from shadow.traces.shards import EMBEDDINGS, FEATURES, MEANS, covered, files_of, read_manifest, read_means
from shadow.traces.store import Traces

# Lightning's word for resuming
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")

QUIET = ("callbacks.progress=null", "+trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1")
SMALL = (
    "model=tiny-llama",
    "data.windows=20",
    "data.tokens=12",
    "traces.batch_size=5",
    "traces.shard_windows=10",
    "traces.tokens_per_window=6",
    *QUIET,
)
NET = (
    *SMALL,
    "predictor.epochs=6",
    "predictor.batch_size=16",
    "predictor.rank=4",
    "predictor.hidden=16",
    "predictor.depth=1",
)
STORE = (
    "model=tiny-llama",
    "predictor=static",
    "data=text",
    "data.windows=11",
    "data.tokens=12",
    "traces.batch_size=2",
    "traces.shard_windows=4",
    "traces.tokens_per_window=5",
    *QUIET,
)


class CrashError(Exception):
    pass


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def changes(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def flip(file: Path, place: int = -1) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A text short enough to be cut into windows in no time."""
    file = tmp_path_factory.mktemp("text") / "train.txt"
    file.write_text("".join(random.Random(0).choices(f"{ascii_lowercase}   ", k=2000)))
    return file


@pytest.fixture
def composed(compose, text):
    """composed("train" or "evaluate", *overrides): for a small store of that text, or of the tasks given."""

    def run(script: str, *overrides: str):
        other = any(override.startswith("data=") for override in overrides)
        base = [override for override in STORE if not (other and override.startswith("data"))]
        return compose(script, *base, *([] if other else [f"data.train={text}"]), *overrides)

    return run


@pytest.fixture
def collect(composed):
    """collect(*overrides): the store of these settings, collected as far as it is not there."""

    def run(*overrides: str) -> Traces:
        cfg = composed("train", *overrides)
        checks.check_train(cfg)
        return stores.get_traces(cfg, loading.load_lm(cfg))

    return run


@pytest.fixture
def collected(composed, collect, shelf):
    """collected(*overrides): the folder of the same, perhaps collected for an earlier test."""

    def run(*overrides: str) -> Path:
        folder = keys.traces_folder(composed("train", *overrides))
        shelf(folder, lambda: collect(*overrides), overrides)
        return folder

    return run


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """elsewhere("name"): from now on artifacts lie in another folder."""
    return lambda name: monkeypatch.setenv("SHADOW_ROOT", str(tmp_path / name))


@pytest.fixture
def score(composed):
    """score(*overrides): the static scorer of these settings, as a job gets it."""

    def run(*overrides: str) -> dict:
        cfg = composed("evaluate", "make_missing=true", *overrides)
        checks.check_scorer(cfg)
        scorer = ingredients.get_scorer(cfg, loading.load_lm(cfg), [])
        assert isinstance(scorer, Fixed)
        return scorer.fixed

    return run


def assert_same_scores(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for unit, values in one.items():
        assert torch.equal(values, other[unit]), unit


def test_the_same_weights_are_measured_in_another_dtype(composed):
    asked = composed("evaluate", "measure.dtype=bfloat16")
    collected, measured = loading.load_lm(asked), loading.measured_lm(asked)
    assert (collected.model.dtype, measured.model.dtype) == (torch.float32, torch.bfloat16)
    for values, same in zip(collected.model.parameters(), measured.model.parameters(), strict=True):
        assert torch.equal(values.bfloat16(), same)


def test_by_default_the_model_of_the_traces_is_measured(composed):
    asked = composed("evaluate")
    assert loading.measured_lm(asked) is loading.load_lm(asked)


# Traces


def test_the_manifest_says_what_was_collected(collect, composed):
    store = collect("traces.criteria=[plainact,fisher]")
    lm = loading.load_lm(composed("train"))
    manifest = store.manifest
    assert store.taps == [0, 1, 2, 3]
    assert set(manifest["parts"]) == {FEATURES, MEANS, "plainact", "fisher", "l2_norm"}
    assert set(store.criteria) == {"plainact", "fisher", "l2_norm"}  # l2_norm is the one that is used
    assert manifest["sizes"] == {"11": 11}
    assert (manifest["layers"], manifest["width"]) == (4, 32)
    assert manifest["units"] == {"head": 4, "neuron": 64}
    assert manifest["parameters"] == lm.model.num_parameters()
    assert manifest["weights"] == digest(lm.model)
    for part in manifest["parts"]:
        assert covered(manifest, part) == (4 if part == MEANS else 11)


def test_only_the_criterion_that_is_used_is_collected_unless_others_are_asked_for(collect):
    assert collect("criterion=fisher").criteria == ["fisher"]


def test_taps_are_those_asked_for(collect):
    store = collect("traces.taps=[1,3]")
    assert store.taps == [1, 3]
    assert store.read("token", FEATURES, "state", torch.arange(55)).shape == (55, 2, 32)


def test_all_criteria_are_collected_in_one_store(collect, score):
    """But `random`, which needs none."""
    store = collect("traces.criteria=all")
    assert set(store.criteria) == {*CRITERIA} - {RANDOM}
    for name in store.criteria:
        rows = "shard" if name in STATISTICS else "window"
        assert store.read(rows, name, "neuron", torch.arange(2)).shape == (2, 4, 64)
    before = changes(store.folder)
    for name in CRITERIA:
        values = score(f"criterion={name}", "traces.criteria=all")[1, "neuron"]
        assert values.isfinite().all(), name
        # in so few windows no two answers begin alike: epenas has nothing to compare
        assert (values.unique().numel() > 1) == (name != "epenas"), name
    assert changes(store.folder) == before


def test_collecting_twice_gives_the_same_bytes(collect, elsewhere):
    first = collect("traces.criteria=[fisher,jacov]")
    elsewhere("b")
    second = collect("traces.criteria=[fisher,jacov]")
    assert first.folder.parents[2] != second.folder.parents[2]
    assert first.folder.name == second.folder.name  # named by settings, not by place
    assert contents(first.folder) == contents(second.folder)


def test_the_batch_size_does_not_make_another_store(collected, collect):
    folder = collected()
    before = changes(folder)
    assert collect("traces.batch_size=4").folder == folder
    assert changes(folder) == before


def test_a_finished_store_is_not_collected_again(collect):
    folder = collect("traces.criteria=[fisher]").folder
    before = changes(folder)
    assert collect("traces.criteria=[fisher]").folder == folder
    assert collect("criterion=fisher").folder == folder
    assert changes(folder) == before


def test_collecting_leaves_no_hook_on_the_model(collect, composed, hooks_on):
    collect("traces.criteria=all")
    assert hooks_on(loading.load_lm(composed("train")).model) == 0


# A store grows


@pytest.mark.parametrize("name", ["fisher", "plainact_weight", "nwot", "epenas"])
def test_adding_a_criterion_leaves_the_other_files_alone(collected, collect, elsewhere, name):
    folder = collected("traces.criteria=[grad_norm]")
    before, kept = contents(folder), changes(folder)
    again = collect(f"criterion={name}")
    assert again.folder == folder
    assert set(again.criteria) == {"grad_norm", "l2_norm", name}
    added = {file for file in contents(folder) if file.startswith(f"{name}-")}
    assert len(added) == 3
    assert changes(folder).keys() == kept.keys() | added
    for file in kept.keys() - {"manifest.json"}:
        assert contents(folder)[file] == before[file]
        assert changes(folder)[file] == kept[file], f"{file} was written again"
    grown = contents(folder)
    elsewhere("at once")
    assert contents(collect(f"traces.criteria=[grad_norm,{name}]").folder) == grown


def test_adding_windows_leaves_whole_shards_alone_and_makes_the_incomplete_one_again(collect, elsewhere):
    store = collect("traces.criteria=[fisher]", "data.windows=10")
    folder, kept = store.folder, changes(store.folder)
    assert store.windows == 10
    grown = collect("traces.criteria=[fisher]", "data.windows=15")
    assert (grown.folder, grown.windows) == (folder, 15)
    assert grown.manifest["sizes"] == {"10": 10, "15": 15}
    for name in kept.keys() - {"manifest.json"}:
        whole = "-00000-" in name or "-00001-" in name
        assert (changes(folder)[name] == kept[name]) == whole, name
    assert len(contents(folder)) == 2 + 3 * 4
    in_two_steps = contents(folder)
    elsewhere("at once")
    at_once = contents(collect("traces.criteria=[fisher]", "data.windows=15").folder)
    del in_two_steps["manifest.json"], at_once["manifest.json"]  # which says that 10 were asked for once
    assert in_two_steps == at_once


def test_a_criterion_is_added_for_all_windows_and_windows_for_the_criteria_that_are_asked_for(collect):
    """Windows are not collected for criteria that nobody asks for any more."""
    collect("criterion=fisher", "data.windows=8")
    store = collect("criterion=l2_norm", "data.windows=11")
    assert store.criteria == ["l2_norm"]
    manifest = store.manifest
    assert {part: covered(manifest, part) for part in manifest["parts"]} == {
        FEATURES: 11,
        MEANS: 4,
        "fisher": 8,
        "l2_norm": 11,
    }
    with pytest.raises(UserError, match=r"criterion=fisher.*traces\.criteria=\[fisher\]"):
        store.require("fisher")
    again = collect("criterion=fisher", "data.windows=11")
    assert set(again.criteria) == {"fisher", "l2_norm"}


def test_a_store_of_before_is_added_its_means(collected, collect):
    folder = collected()
    whole, kept = contents(folder), changes(folder)
    (folder / "means-00000-rank0of1.safetensors").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["parts"][MEANS]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert contents(collect().folder) == whole
    for name in kept.keys() - {"manifest.json", "means-00000-rank0of1.safetensors"}:
        assert changes(folder)[name] == kept[name], name


def test_the_means_are_those_of_the_whole_first_shard_once_there_is_one(collect):
    store = collect("data.windows=3")
    few = read_means(store.folder)
    four = read_means(collect("data.windows=4").folder)
    assert not any(torch.equal(four[unit], values) for unit, values in few.items())
    again = read_means(collect("data.windows=11").folder)
    assert all(torch.equal(again[unit], values) for unit, values in four.items())


def test_a_damaged_shard_of_means_is_named_and_collected_again(collected, collect, caplog):
    folder = collected()
    whole = contents(folder)
    flip(folder / "means-00000-rank0of1.safetensors")
    with caplog.at_level(logging.WARNING, logger="shadow"):
        collect()
    assert "means-00000" in caplog.text
    assert contents(folder) == whole


def test_deviations_are_collected_from_the_stores_own_means(collect, composed, elsewhere):
    """In a store that had neither, as in one that had the means."""
    asked = "criterion=l2_deviation"
    store = collect(asked)
    lm = loading.load_lm(composed("train"))
    means = read_means(store.folder)
    window = calibration.calibration_data(composed("train")).examples(lm)[7]
    found = {}

    def receive(name, site, seen):
        found[site.layer, site.kind] = seen.window(torch.ones(1, len(window.ids), dtype=torch.bool))[0]

    score_batch(lm.model, collate([window]), ["l2_deviation"], receive, means=means)
    for kind in ("head", "neuron"):
        kept = store.read("window", "l2_deviation", kind, torch.tensor([7]))[0]
        for layer in range(4):
            torch.testing.assert_close(kept[layer], found[layer, kind], rtol=2**-10, atol=1e-4)
    whole = contents(store.folder)
    elsewhere("b")
    collect("criterion=l2_norm")
    added = contents(collect(asked).folder)
    for name in whole.keys() - {"manifest.json"}:
        assert added[name] == whole[name], name


SEVENTY = ("data.windows=70", "traces.batch_size=8", "traces.shard_windows=16")
FORTY = ("data.windows=40", *SEVENTY[1:])


def test_fewer_windows_are_the_first_ones_of_a_larger_store(collect, score, elsewhere):
    """40 of 70, in the middle of a shard; a statistic has its two whole shards."""
    criteria = ("fisher", "nwot", "jacov")
    folder = collect(*SEVENTY, f"traces.criteria=[{','.join(criteria)}]").folder
    kept = changes(folder)
    view = collect(*FORTY)
    assert (view.folder, view.windows, view.count("token")) == (folder, 40, 200)
    assert {name for name in kept if changes(folder)[name] != kept[name]} == {"manifest.json"}
    assert view.manifest["sizes"] == {"70": 70, "40": 40}
    of_more = {name: score(*FORTY, f"criterion={name}") for name in criteria}
    elsewhere("fresh")
    for name in criteria:
        assert_same_scores(score(*FORTY, f"criterion={name}"), of_more[name])
    assert_same_scores(of_more["nwot"], score(*FORTY, "data.windows=32", "criterion=nwot"))


@pytest.mark.parametrize("pooling", [[], ["predictor.pooling=mean", "sparsity.decided_at=prompt"]], ids=str)
def test_a_predictor_of_fewer_windows_is_the_same_from_a_larger_store(composed, elsewhere, pooling):
    overrides = ("predictor=unified", "predictor.epochs=1", "predictor.rank=4", *pooling)

    def fit(*more):
        cfg = composed("train", *overrides, *more)
        return fitting.get_predictor(cfg, loading.load_lm(cfg), [])

    larger = fit(*SEVENTY)
    of_more = fit(*FORTY)
    assert of_more != larger
    elsewhere("fresh")
    fresh = fit(*FORTY)
    assert fresh.name == of_more.name
    assert contents(fresh) == contents(of_more)
    assert json.loads((fresh / "config.json").read_text())["rows"] == (
        {"train": 36, "val": 4} if pooling else {"train": 180, "val": 20}
    )


def tasks_of(task_root, count):
    return (
        "data=tasks",
        "data.tasks=[piqa,rte]",
        f"data.root={task_root}",
        "data.num_fewshot=0",
        f"data.examples_per_task={count}",
    )


@pytest.mark.usefixtures("tasks")
def test_a_store_of_tasks_grows_though_its_windows_differ_in_length(collect, task_root, elsewhere):
    asked = ("traces.criteria=[fisher]", "traces.tokens_per_window=90")
    few = collect(*asked, *tasks_of(task_root, 3))
    assert few.windows == 6
    lengths = few.read("token", FEATURES, "window", torch.arange(few.count("token"))).bincount()
    assert lengths.unique().numel() > 1
    rows = torch.arange(few.count("token"))
    before = few.read("token", "fisher", "neuron", rows)
    grown = collect(*asked, *tasks_of(task_root, 5))
    assert grown.folder == few.folder
    assert grown.windows == 10
    view = collect(*asked, *tasks_of(task_root, 3))
    assert view.count("token") == len(rows)
    assert torch.equal(view.read("token", "fisher", "neuron", rows), before)
    in_two_steps = contents(grown.folder)
    elsewhere("at once")
    at_once = contents(collect(*asked, *tasks_of(task_root, 5)).folder)
    del in_two_steps["manifest.json"], at_once["manifest.json"]
    assert in_two_steps == at_once


@pytest.mark.usefixtures("tasks")
def test_a_statistic_of_fewer_examples_than_a_shard_is_refused_whatever_the_store_has(collect, task_root):
    """How many windows tasks give is known when they have been read."""
    nwot = ("criterion=nwot",)
    with pytest.raises(UserError, match=r"nwot.*traces\.shard_windows=4.*2 windows"):
        collect(*nwot, *tasks_of(task_root, 1))
    collect(*tasks_of(task_root, 1))
    collect(*nwot, *tasks_of(task_root, 3))
    with pytest.raises(UserError, match=r"nwot.*traces\.shard_windows=4.*2 windows"):
        collect(*nwot, *tasks_of(task_root, 1)).static_scores("nwot", "head")


# A store mends itself


def damage(kind: str, file: Path) -> None:
    if kind == "flipped":
        flip(file)
    elif kind == "flipped in its header":
        flip(file, 40)
    elif kind == "cut short":
        file.write_bytes(file.read_bytes()[:-7])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "another shard":
        shutil.copy(file.with_name(file.name.replace("-00001-", "-00000-")), file)
    else:
        file.unlink()


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        (FEATURES, "flipped"),
        (FEATURES, "gone"),
        (FEATURES, "empty"),
        ("fisher", "flipped in its header"),
        ("fisher", "another shard"),
        ("nwot", "cut short"),
        ("nwot", "gone"),
    ],
)
def test_a_damaged_shard_is_named_and_collected_again(collected, collect, caplog, part, kind):
    asked = ("traces.criteria=[fisher,nwot]",)
    folder = collected(*asked)
    whole, kept = contents(folder), changes(folder)
    name = f"{part}-00001-rank0of1.safetensors"
    damage(kind, folder / name)
    with caplog.at_level(logging.WARNING, logger="shadow"):
        store = collect(*asked)
    assert contents(folder) == whole
    assert {file for file in kept if changes(folder)[file] != kept[file]} == {name, "manifest.json"}
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("shadow")]
    if kind == "gone":
        assert warnings == []
    else:
        (warning,) = warnings
        assert str(folder / name) in warning
        assert "collected again" in warning
    assert store.static_scores("fisher", "head").isfinite().all()


def test_every_damaged_shard_is_named(collected, collect, caplog):
    folder = collected("traces.criteria=[fisher]")
    whole = contents(folder)
    names = [f"{part}-0000{index}-rank0of1.safetensors" for part, index in (("fisher", 0), (FEATURES, 2))]
    for name in names:
        flip(folder / name)
    with caplog.at_level(logging.WARNING, logger="shadow"):
        collect("traces.criteria=[fisher]")
    assert contents(folder) == whole
    for name in names:
        assert caplog.text.count(name) == 1


def test_a_shard_that_was_lost_while_others_were_asked_for_leaves_a_gap_and_no_other_windows(collect):
    """It is not made again for a job that does not read it; later ones must not take the next for it."""
    collect("criterion=fisher", "data.windows=8")
    store = collect("criterion=fisher", "data.windows=12")
    rows = torch.arange(8)
    wanted = store.read("window", "fisher", "neuron", rows)
    flip(store.folder / "fisher-00001-rank0of1.safetensors")
    collect("criterion=l2_norm", "data.windows=12")
    again = collect("criterion=fisher", "data.windows=8")
    assert torch.equal(again.read("window", "fisher", "neuron", rows), wanted)


def test_a_shard_that_two_processes_wrote_counts_once(collected, collect):
    """A run on two devices that was killed before it had taken away what an earlier one had written."""
    folder = collected()
    whole = read_manifest(folder)
    shutil.copy(folder / "l2_norm-00001-rank0of1.safetensors", folder / "l2_norm-00001-rank1of2.safetensors")
    (folder / "manifest.json").unlink()
    store = collect()
    assert covered(store.manifest, "l2_norm") == covered(whole, "l2_norm") == 11


@pytest.mark.parametrize("content", [b"", b'{"sizes": {', b"\xff\xfe"], ids=["empty", "cut short", "no text"])
def test_a_damaged_manifest_is_named_and_written_again(collected, collect, caplog, content):
    folder = collected()
    whole, kept = contents(folder), changes(folder)
    (folder / "manifest.json").write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="shadow"):
        collect()
    assert str(folder / "manifest.json") in caplog.text
    assert contents(folder) == whole
    assert {file for file in kept if changes(folder)[file] != kept[file]} == {"manifest.json"}


@pytest.mark.parametrize("lost", [[2], [1, 2], [0, 1, 2], [1], []], ids=str)
def test_a_broken_collection_goes_on_and_ends_with_the_same_bytes(collected, collect, lost):
    folder = collected("traces.criteria=[fisher,nwot]")
    whole = contents(folder)
    (folder / "manifest.json").unlink()
    for file in files_of(folder):
        if any(f"-0000{index}-" in file.name for index in lost):
            file.unlink()
    kept = changes(folder)
    assert contents(collect("traces.criteria=[fisher,nwot]").folder) == whole
    for name, written in kept.items():
        assert changes(folder)[name] == written, f"{name} was collected again"


@pytest.mark.parametrize(
    "lost", [(FEATURES,), ("fisher",), ("l2_norm", "nwot"), ("jacov", "l2_norm")], ids=str
)
def test_a_collection_that_broke_off_amid_the_parts_of_a_shard_ends_with_the_same_bytes(
    collected, collect, lost
):
    asked = "traces.criteria=[fisher,nwot,jacov]"
    folder = collected(asked)
    whole = contents(folder)
    (folder / "manifest.json").unlink()
    for part in lost:
        (folder / f"{part}-00001-rank0of1.safetensors").unlink()
    assert contents(collect(asked).folder) == whole


def test_a_shard_that_a_kill_left_half_written_is_gone_after_the_rerun(
    collected, collect, kill_while_writing
):
    """A killed process cannot remove its unfinished file: the rerun must, or it stays there for ever."""
    folder = collected()
    whole = contents(folder)
    (folder / "manifest.json").unlink()
    name = "l2_norm-00002-rank0of1.safetensors"
    (folder / name).unlink()
    kill_while_writing(folder / name)
    assert contents(folder) != whole
    assert contents(collect().folder) == whole


CUT_SHORT = """
import resource, signal, sys, torch
from pathlib import Path
from shadow.traces.shards import store_of, write_shard
folder = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python would make an error of it
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
write_shard(folder, store_of(folder), "l2_norm", 2, (3, 0), {"window/head": torch.zeros(10_000)})
"""


@pytest.mark.slow
def test_what_a_kill_amid_the_writing_of_arrays_left_is_gone_after_the_rerun(collected, collect, root):
    """Killed by the system in the very middle of a write, wherever the bytes were going."""
    folder = collected()
    whole = contents(folder)
    (folder / "manifest.json").unlink()
    (folder / "l2_norm-00002-rank0of1.safetensors").unlink()
    done = subprocess.run([sys.executable, "-c", CUT_SHORT, str(folder)], cwd=root)
    assert done.returncode == -signal.SIGXFSZ
    collect()
    assert contents(folder).keys() == whole.keys()
    assert contents(folder) == whole


def test_a_store_that_was_killed_while_it_grew_still_serves_what_it_had(collected, collect):
    """The last shard has more windows than its manifest says."""
    folder = collected("data.windows=10")
    manifest = (folder / "manifest.json").read_bytes()
    before = Traces(folder, 10).read("window", "l2_norm", "neuron", torch.arange(10))
    collect("data.windows=15")
    (folder / "manifest.json").write_bytes(manifest)
    store = collect("data.windows=10")
    assert store.count("token") == 50
    assert torch.equal(store.read("window", "l2_norm", "neuron", torch.arange(10)), before)
    assert (folder / "manifest.json").read_bytes() == manifest
    kept = changes(folder)
    assert collect("data.windows=15").windows == 15
    assert {name for name in kept if changes(folder)[name] != kept[name]} == {"manifest.json"}


def test_a_shard_of_another_store_is_not_used(collect, caplog):
    """Copied by hand into this one's folder; it has the same name."""
    other = collect("traces.tokens_per_window=4").folder
    folder = collect().folder
    whole, name = contents(folder), "l2_norm-00000-rank0of1.safetensors"
    shutil.copy(other / name, folder / name)
    with caplog.at_level(logging.WARNING, logger="shadow"):
        collect()
    assert contents(folder) == whole
    assert f"{folder / name} cannot be used: it belongs elsewhere" in caplog.text


@pytest.mark.parametrize("more", [[], ["data.windows=12"], ["criterion=fisher"]], ids=str)
def test_a_store_of_other_weights_is_refused_and_does_not_grow(collected, collect, more):
    """The same settings, other weights: a revision of the hub that was moved on."""
    folder = collected()
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"weights": key_of({})}))
    before = contents(folder)
    with pytest.raises(UserError, match="other weights"):
        collect(*more)
    assert contents(folder) == before


# Predictors


@pytest.fixture
def fit(compose, shelf):
    """fit(*overrides): the folder of the predictor of these settings, fitted as far as it is not there."""

    def run(*overrides: str) -> Path:
        cfg = compose("train", *NET, *overrides)
        lm = loading.load_lm(cfg)
        shelf(keys.traces_folder(cfg), lambda: stores.get_traces(cfg, lm))
        return fitting.get_predictor(cfg, lm, [])

    return run


@pytest.fixture
def fitted(compose, fit, shelf):
    """fitted(*overrides): the same, perhaps fitted for an earlier test."""

    def run(*overrides: str) -> Path:
        folder = keys.predictor_folder(compose("train", *NET, *overrides))
        shelf(folder, lambda: fit(*overrides))
        return folder

    return run


def test_a_predictor_is_its_weights_and_what_is_to_be_known_of_them(fitted):
    assert set(contents(fitted())) == {"config.json", "predictor.safetensors", "README.md", "metrics.csv"}


@pytest.mark.parametrize(
    "job", [["predictor=layerwise"], ["predictor=linear_heads", "predictor.ahead=1"]], ids=str
)
def test_a_table_has_the_metrics_of_each_layer_and_kind(fitted, job):
    folder = fitted(*job)
    with (folder / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    kinds = ["head"] if "heads" in job[0] else ["head", "neuron"]
    assert [(row["kind"], row["layer"]) for row in rows] == [
        (kind, str(n)) for kind in kinds for n in (1, 2, 3)
    ]
    metrics = json.loads((folder / "config.json").read_text())["metrics"]
    assert rows[0].keys() - {"layer", "kind"} == {
        f"{who}{what}"
        for who in ("", "static_")
        for what in (
            "spearman",
            *(f"{name}@{level}" for name in ("recall", "mass") for level in (30, 50, 70)),
        )
    }
    for name in rows[0].keys() - {"layer", "kind"}:
        mean = sum(float(row[name]) for row in rows) / len(rows)
        assert metrics[f"val/{name}"] == pytest.approx(mean, abs=1e-5), name


@pytest.mark.parametrize("predictor", ["unified", "layerwise"])
def test_the_size_of_a_predictor_is_reported_in_parameters_and_as_share_of_the_model(
    fitted, compose, predictor
):
    folder = fitted(f"predictor={predictor}")
    config = json.loads((folder / "config.json").read_text())
    lm = loading.load_lm(compose("train", *NET))
    taps = {"unified": 1, "layerwise": 3}[predictor]
    down = taps * (32 * 4 + 4)  # state to rank, and a bias
    down += taps * (32 * 16 + 16 + 16 * 4)  # state to rank by a hidden layer
    up = 4 * 3 * (4 + 64)  # rank to the units of three layers
    assert config["parameters"] == down + up
    assert config["share_of_model"] == (down + up) / lm.model.num_parameters()


def test_a_predictor_carries_the_means_of_its_store(fit, compose):
    """They are no parameters of it."""
    folder = fit()
    cfg = compose("train", *NET)
    means = read_means(keys.traces_folder(cfg))
    loaded = fitting.load_predictor(folder, loading.load_lm(cfg))
    assert loaded.means.keys() == means.keys() == {(n, kind) for n in range(4) for kind in ("head", "neuron")}
    assert all(torch.equal(loaded.means[unit], values) for unit, values in means.items())
    assert json.loads((folder / "config.json").read_text())["means"] == 4 * (32 + 64)


def test_the_rows_are_split_by_window(fitted):
    config = json.loads((fitted() / "config.json").read_text())
    assert config["rows"] == {"train": 18 * 6, "val": 2 * 6}


def test_metrics_are_numbers_between_their_bounds(fitted):
    metrics = json.loads((fitted() / "config.json").read_text())["metrics"]
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
    loaded = fitting.load_predictor(folder, loading.load_lm(compose("train", *NET)))
    states = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
    for unit, values in Predicted(nets[0], "scores").scores(Signal(1, "layer_input"), states, None).items():
        assert torch.equal(loaded.scores(Signal(1, "layer_input"), states, None)[unit], values)


@pytest.mark.parametrize(
    "taps",
    [["predictor=layerwise", "predictor.ridge=null"], ["predictor.taps=[1,2,3]"], ["predictor.taps=each"]],
    ids=str,
)
def test_layerwise_is_the_net_with_a_tap_in_every_layer_from_1_on(fitted, taps):
    reference = load_file(fitted("predictor=unified", "predictor.taps=[1,2,3]") / "predictor.safetensors")
    found = load_file(fitted(*taps) / "predictor.safetensors")
    assert found.keys() == reference.keys()
    for name, values in reference.items():
        assert torch.equal(found[name], values), name


def test_the_config_of_a_predictor_that_looks_ahead_says_so(fitted, compose):
    folder = fitted("predictor=layerwise", "predictor.ahead=1", "predictor.epochs=1")
    config = json.loads((folder / "config.json").read_text())
    assert (config["taps"], config["ahead"]) == ([0, 1, 2], 1)
    loaded = fitting.load_predictor(folder, loading.load_lm(compose("train", *NET)))
    assert (loaded.taps, loaded.first) == ([0, 1, 2], 1)


RIDGE = ("predictor=ridge", "predictor.epochs=0", "predictor.depth=0")


@pytest.mark.parametrize("taps", [[1], [1, 3]], ids=str)
def test_the_ridge_is_the_closed_form_of_the_training_rows(fit, compose, taps):
    folder = fit(*RIDGE, f"predictor.taps={taps}", "predictor.rank=99")
    cfg = compose("train", *NET, *RIDGE)
    store = stores.get_traces(cfg, loading.load_lm(cfg))
    data = TraceData([store], "l2_norm", taps, Reading("token", "state", FEATURES), 0.1, 16, cfg.seed)
    net = TapNet(taps, 4, 32, {"head": 4, "neuron": 64}, NetShape(32, 1, 0))
    objectives = dict.fromkeys(net.kinds, LogSquares(cfg.predictor.floor))
    module = PredictorModule(net, objectives, Descent(0.0, 0.0, 0.0, 0.98, 0.1, "cosine"))
    module.start(data, cfg.predictor.ridge)
    found = load_file(folder / "predictor.safetensors")  # the calibration's means lie beside the weights
    for name, values in net.state_dict().items():
        assert torch.equal(found[name], values), name


def test_a_fit_without_descent_has_the_metrics_of_one_with_it_and_is_found_again(fit):
    folder = fit(*RIDGE)
    metrics = json.loads((folder / "config.json").read_text())["metrics"]
    assert metrics.keys() >= {"val/loss", "val/spearman", "val/static_recall@50", "val/mass@70"}
    assert metrics["val/loss"] > 0
    kept = changes(folder)
    assert fit(*RIDGE) == folder
    assert changes(folder) == kept


@pytest.mark.parametrize("predictor", ["unified", "layerwise", "dejavu", "linear_heads", "ridge"])
def test_a_plan_tells_the_size_that_the_fitted_predictor_has(fitted, compose, predictor):
    closed = ("predictor.epochs=0", "predictor.depth=0") if predictor == "ridge" else ()
    job = (f"predictor={predictor}", *closed)
    config = json.loads((fitted(*job) / "config.json").read_text())
    assert estimate_of(compose("train", *NET, *job))["predictor_parameters"] == config["parameters"]


def test_a_plan_tells_the_size_of_a_net_that_attends_and_of_what_it_reads(fit, compose):
    job = ("predictor=unified_sequence", "predictor.epochs=1", "sparsity.decided_at=prompt")
    config = json.loads((fit(*job) / "config.json").read_text())
    cfg = compose("train", *NET, *job)
    told = estimate_of(cfg)
    assert told["predictor_parameters"] == config["parameters"]
    files = sorted(keys.traces_folder(cfg).glob(f"{EMBEDDINGS}-*"))
    assert len(files) == 2
    stored = sum(values.nbytes for file in files for values in load_file(file).values())
    assert told["bytes"][EMBEDDINGS] == stored


ROUNDS = ("predictor=unified", "predictor.taps=[1,3]", "predictor.epochs=1", "predictor.levels=[0.25,0.75]")


@pytest.mark.parametrize("stand_in", ["zero", "mean"])
def test_a_later_round_also_learns_from_the_states_that_the_plans_of_the_one_before_leave(
    fit, compose, stand_in
):
    asked = (*ROUNDS, f"sparsity.stand_in={stand_in}")
    first, second = fit(*asked), fit(*asked, "predictor.rounds=1")
    cfg = compose("train", *NET, *asked)
    lm = loading.load_lm(cfg)
    dense = stores.get_traces(cfg, lm)
    rows = torch.arange(dense.count("token"))
    of_dense = dense.read("token", FEATURES, "state", rows)[:, [dense.taps.index(1), dense.taps.index(3)]]
    for level in (0.25, 0.75):
        pruned = Traces(keys.pruned_folder(cfg, level))
        assert (pruned.taps, pruned.criteria) == ([1, 3], [])
        for name in ("window", "position"):
            assert torch.equal(
                pruned.read("token", FEATURES, name, rows), dense.read("token", FEATURES, name, rows)
            )
        states = pruned.read("token", FEATURES, "state", rows)
        assert torch.equal(states[:, 0], of_dense[:, 0])  # nothing is pruned before the first tap
        predictor = fitting.load_predictor(first, lm)
        seen = in_one_pass(
            lm,
            predictor,
            level,
            calibration.calibration_data(cfg).examples(lm),
            stand_in,
        )
        windows, positions = (dense.read("token", FEATURES, name, rows) for name in ("window", "position"))
        # states are kept with 11 bits
        torch.testing.assert_close(states[:, 1], seen[windows, positions], rtol=1e-3, atol=1e-3)
        assert not torch.allclose(states[:, 1], of_dense[:, 1], rtol=1e-2)
    one, other = (json.loads((folder / "config.json").read_text())["rows"] for folder in (first, second))
    assert other == {name: 3 * count for name, count in one.items()}


def test_the_last_round_alone_is_logged(compose, monkeypatch, tmp_path):
    cfg = compose("train", *NET, *ROUNDS, "predictor.rounds=2", "predictor.levels=[0.5]")
    logged, fit = {}, fitting.fit

    def noted(cfg, lm, store, pruned, folder, loggers):
        logged[cfg.predictor.rounds] = list(loggers)
        fit(cfg, lm, store, pruned, folder, loggers)

    monkeypatch.setattr(fitting, "fit", noted)
    mine = CSVLogger(tmp_path)
    fitting.get_predictor(cfg, loading.load_lm(cfg), [mine])
    assert logged == {0: [], 1: [], 2: [mine]}


def test_a_second_round_reads_what_the_first_one_leaves_and_a_plan_tells_of_both(fit, compose):
    job = (*ROUNDS, "predictor.levels=[0.5]")
    rounds = [fit(*job, f"predictor.rounds={n}") for n in (0, 1, 2)]
    lm = loading.load_lm(compose("train", *NET))
    folders = [keys.pruned_folder(compose("train", *NET, *job, f"predictor.rounds={n}"), 0.5) for n in (0, 1)]
    examples = calibration.calibration_data(compose("train", *NET)).examples(lm)
    for folder, before in zip(folders, rounds[:2], strict=True):
        pruned = Traces(folder)
        rows = torch.arange(pruned.count("token"))
        windows, positions = (pruned.read("token", FEATURES, name, rows) for name in ("window", "position"))
        seen = in_one_pass(lm, fitting.load_predictor(before, lm), 0.5, examples, "zero")
        states = pruned.read("token", FEATURES, "state", rows)[:, 1]
        torch.testing.assert_close(states, seen[windows, positions], rtol=1e-3, atol=1e-3)
    rows_of = [json.loads((folder / "config.json").read_text())["rows"]["train"] for folder in rounds]
    assert rows_of == [rows_of[0], 2 * rows_of[0], 2 * rows_of[0]]
    told = estimate_of(compose("train", *NET, *job, "predictor.rounds=2"))
    files = [file for folder in folders for file in folder.glob(f"{FEATURES}-*")]
    stored = sum(values.nbytes for file in files for values in load_file(file).values())
    assert (told["pruned_passes"], told["pruned_bytes"]) == (2, stored)


@torch.no_grad()
def in_one_pass(lm, predictor, level, examples, stand_in, head_unit="query"):
    """-> [N, T, E]: the states before layer 3 of a model that is sparse before it."""
    found = []
    policy = SparsityPolicy(level, kinds=predictor.net.kinds, head_unit=head_unit)
    dropping = sparse(lm.model, predictor, policy, stand_in=stand_in)
    with (
        dropping as run,
        hook_signals(lm.model, [Signal(3, "layer_input")], lambda _, x: found.append(x)),
    ):
        run.logits(collate(examples))
    return found[0]


def test_a_later_round_of_heads_prunes_heads_alone(fit, compose):
    job = (*ROUNDS, "predictor=linear_heads", "predictor.levels=[0.5]")
    folder = fit(*job, "predictor.rounds=1")
    config = json.loads((folder / "config.json").read_text())
    assert (config["kinds"], config["rows"]["train"]) == (["head"], 2 * 18 * 6)


@pytest.mark.parametrize("head_unit", ["query", "group"])
def test_a_later_round_prunes_heads_or_their_groups_as_plans_are_to_do(fit, compose, head_unit):
    asked = (
        *ROUNDS,
        "predictor.kinds=[head]",
        "predictor.levels=[0.75]",  # three of four heads, or one of two groups
        "sparsity.stand_in=zero",
        f"sparsity.head_unit={head_unit}",
    )
    first, _ = fit(*asked), fit(*asked, "predictor.rounds=1")
    cfg = compose("train", *NET, *asked)
    lm = loading.load_lm(cfg)
    pruned, predictor = Traces(keys.pruned_folder(cfg, 0.75)), fitting.load_predictor(first, lm)
    rows = torch.arange(pruned.count("token"))
    states, windows, positions = (
        pruned.read("token", FEATURES, name, rows) for name in ("state", "window", "position")
    )
    examples = calibration.calibration_data(cfg).examples(lm)
    for unit in ("query", "group"):
        seen = in_one_pass(lm, predictor, 0.75, examples, "zero", unit)[windows, positions]
        assert torch.allclose(states[:, 1], seen, rtol=1e-3, atol=1e-4) == (unit == head_unit)


def test_a_later_round_takes_the_fit_before_as_it_is_there(fit):
    first = fit(*ROUNDS)
    kept = changes(first)
    fit(*ROUNDS, "predictor.rounds=1")
    assert changes(first) == kept


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
    config = json.loads((fitted(*reads) / "config.json").read_text())
    assert config["rows"] == {"train": 18, "val": 2}


def test_a_predictor_learns_from_ranks_what_it_learns_from_half_precision(compose):
    """Measured: recalls differ by less than 0.01. Tiny nets learn little more than the mean."""
    found = {}
    for dtype in ("float16", "ranks"):
        cfg = compose(
            "train",
            *NET,
            "model.source.neurons=512",  # more than 256: else ranks are not used
            "data.windows=60",
            "data.tokens=24",
            "traces.tokens_per_window=24",
            "predictor.epochs=2",
            "predictor.batch_size=128",
            f"traces.dtype={dtype}",
        )
        folder = fitting.get_predictor(cfg, loading.load_lm(cfg), [])
        found[dtype] = json.loads((folder / "config.json").read_text())["metrics"]
        assert found[dtype]["val/loss"] < found[dtype]["val/static_loss"]
    for name in ("val/recall@50", "val/static_recall@50"):
        assert 0.5 < found["float16"][name] < 1
        assert abs(found["ranks"][name] - found["float16"][name]) < 0.05


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


@pytest.mark.parametrize(
    ("moment", "epoch"),
    [("on_train_batch_start", 0), ("on_train_epoch_start", 3), ("on_train_batch_start", 5)],
)
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


@pytest.mark.parametrize(
    "lost",
    [
        ["config.json"],
        ["config.json", "README.md", "predictor.safetensors", "metrics.csv"],
    ],
    ids=str,
)
def test_a_fit_that_broke_off_while_writing_ends_with_the_same_bytes(fitted, fit, lost):
    folder = fitted()
    whole = contents(folder)
    for name in lost:
        (folder / name).unlink()
    assert contents(fit()) == whole


@pytest.mark.parametrize("name", ["predictor.safetensors", "README.md", "config.json"])
def test_what_a_kill_left_half_written_is_gone_after_the_rerun(fitted, fit, kill_while_writing, name):
    folder = fitted()
    whole = contents(folder)
    (folder / "config.json").unlink()
    (folder / name).unlink(missing_ok=True)
    kill_while_writing(folder / name)
    assert contents(fit()) == whole


def test_a_checkpoint_that_a_kill_left_behind_is_gone_after_the_rerun(fitted, fit):
    """Killed between the last two steps: config.json stands, and last.ckpt too."""
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
    scorer = ingredients.get_scorer(cfg, loading.load_lm(cfg), [])
    assert isinstance(scorer, Fixed)
    store = Traces(keys.traces_folder(cfg))
    for kind in ("head", "neuron"):
        mean = store.read("window", "fisher", kind, torch.arange(20)).mean(0)
        for layer in range(4):
            torch.testing.assert_close(scorer.fixed[layer, kind], mean[layer], rtol=1e-5, atol=0)


def test_the_static_scorer_of_a_statistic_is_the_mean_over_whole_shards(collect, score):
    store = collect("traces.criteria=[nwot]")
    found = score("criterion=nwot")
    for kind in ("head", "neuron"):
        mean = store.read("shard", "nwot", kind, torch.arange(2)).mean(0)  # the third is of 3 windows
        for layer in range(4):
            torch.testing.assert_close(found[layer, kind], mean[layer], rtol=1e-6, atol=0)


def test_scores_drawn_at_random_need_no_traces(score, composed, artifacts):
    found = score("criterion=random")
    for site in find_sites(loading.load_lm(composed("train")).model):
        assert torch.equal(found[site.layer, site.kind], random_scores_of(site))
    assert not artifacts.exists()


def test_the_oracle_has_the_criterion_that_is_asked_for(compose):
    cfg = compose("evaluate", *SMALL, "predictor=oracle", "criterion=grad_norm")
    scorer = ingredients.get_scorer(cfg, loading.load_lm(cfg), [])
    assert isinstance(scorer, Oracle)
    assert (scorer.criterion, scorer.loss) == ("grad_norm", "answer")
    cfg = compose("evaluate", *SMALL, "predictor=oracle", "traces.loss=next_token")
    assert ingredients.get_scorer(cfg, loading.load_lm(cfg), []).loss == "next_token"


def test_a_prompt_is_scored_by_the_criterion_that_is_asked_for(compose, artifacts):
    cfg = compose("evaluate", *SMALL, "predictor=prompt_activation", "criterion=griffin")
    scorer = ingredients.get_scorer(cfg, loading.load_lm(cfg), [])
    assert isinstance(scorer, PromptActivation)
    assert scorer.criterion == "griffin"
    assert not artifacts.exists()


@pytest.mark.parametrize("criterion", ["fisher", "random"])
def test_a_copy_of_weights_has_the_rank_that_is_asked_for_and_the_static_scorers_heads(compose, criterion):
    cfg = compose("evaluate", *SMALL, "predictor=svd", "predictor.rank=3", f"criterion={criterion}")
    lm = loading.load_lm(cfg)
    scorer = ingredients.get_scorer(cfg, lm, [])
    assert isinstance(scorer, LowRankCopy)
    assert scorer.weights == 3 * 2 * 3 * (32 + 64)
    cfg = compose("evaluate", *SMALL, "predictor=static", f"criterion={criterion}")
    static = ingredients.get_scorer(cfg, lm, []).fixed
    for layer in range(1, 4):
        assert torch.equal(scorer.heads[layer], static[layer, "head"])


def test_means_stand_in_for_what_is_dropped_if_that_is_asked_for(compose, artifacts, batch):
    """Whatever the scorer; one that needs no traces of its own gets a store of the means alone."""
    cfg = compose("evaluate", *SMALL, "predictor=random", "sparsity.stand_in=mean")
    lm = loading.load_lm(cfg)
    stand_in = stores.get_stand_in(cfg, lm, Fixed({}))
    assert isinstance(stand_in, Mean)
    assert set(read_manifest(keys.traces_folder(cfg))["parts"]) == {MEANS}
    for unit, values in read_means(keys.traces_folder(cfg)).items():
        assert torch.equal(stand_in.values[unit], values)
    zero = compose("evaluate", *SMALL, "predictor=random")
    assert isinstance(stores.get_stand_in(zero, lm, Fixed({})), Zero)
    dense = compose("evaluate", *SMALL, "sparsity.stand_in=mean", "sparsity.level=0")
    assert isinstance(stores.get_stand_in(dense, lm, Fixed({})), Zero)
    store = stores.get_traces(compose("train", *SMALL), lm)  # and grows to a whole one
    assert set(store.manifest["parts"]) == {MEANS, FEATURES, "l2_norm"}
    assert store.windows == 20


@pytest.mark.parametrize("predictor", ["oracle", "prompt_activation"])
def test_a_scorer_that_looks_ranks_deviations_from_the_stores_means(compose, predictor):
    cfg = compose("evaluate", *SMALL, f"predictor={predictor}", "criterion=l2_deviation")
    lm = loading.load_lm(cfg)
    scorer = ingredients.get_scorer(cfg, lm, [])
    for unit, values in read_means(keys.traces_folder(cfg)).items():
        assert torch.equal(scorer.means[unit], values)


def test_random_scores_follow_the_seed(compose):
    def scores(seed):
        cfg = compose("evaluate", *SMALL, "predictor=random", f"seed={seed}")
        return ingredients.get_scorer(cfg, loading.load_lm(cfg), []).fixed

    assert torch.equal(scores(1)[1, "neuron"], scores(1)[1, "neuron"])
    assert not torch.equal(scores(1)[1, "neuron"], scores(2)[1, "neuron"])


@pytest.mark.parametrize("predictor", ["unified", "layerwise", "static", "svd"])
def test_the_dense_model_needs_neither_traces_nor_a_predictor(compose, artifacts, predictor, batch, dense):
    cfg = compose("evaluate", *SMALL, f"predictor={predictor}", "sparsity.level=0")
    lm = loading.load_lm(cfg)
    with sparse(lm.model, ingredients.get_scorer(cfg, lm, []), method.policy_of(cfg)) as run:
        assert torch.equal(run.logits(batch), dense(lm, batch))
    assert not artifacts.exists()


def test_the_jobs_of_a_sweep_share_one_model(compose):
    one = loading.load_lm(compose("evaluate", *SMALL, "sparsity.level=0.1"))
    assert loading.load_lm(compose("evaluate", *SMALL, "sparsity.level=0.2")) is one
    assert loading.load_lm(compose("evaluate", *SMALL, "model.source.seed=1")) is not one


# Refusals


def test_a_predictor_of_other_weights_is_refused(fitted, compose):
    folder = fitted()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"weights": "0" * 16}))
    with pytest.raises(UserError, match="other weights"):
        fitting.load_predictor(folder, loading.load_lm(compose("train", *NET)))


def test_the_digest_tells_weights_apart(make_lm):
    digests = {digest(make_lm("opt", seed=seed).model) for seed in (0, 0, 1)}
    assert len(digests) == 2


@pytest.mark.parametrize("taps", ["[4]", "[-1]", "[2,1]", "[1,1]", "[]", "[1.5]", "all"])
def test_bad_taps_are_refused_by_name(fit, taps):
    with pytest.raises(UserError, match=r"predictor\.taps"):
        fit(f"predictor.taps={taps}")
