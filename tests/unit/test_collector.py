"""Collecting: what a batch gives to each part of a store, and when a shard is written."""

from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from observed import drawn_means

from shadow.criteria import CONTEXTUAL, CRITERIA, STATISTICS
from shadow.criteria.one_pass import score
from shadow.data.batches import collate, last_of, mean_of
from shadow.data.calibration import CalibrationExamples, Numbered
from shadow.models.kinds import find_sites
from shadow.models.load import random_llama
from shadow.models.sites import KINDS
from shadow.signals import Signal, hook_signals, hook_sites
from shadow.traces.collector import CriterionCollector, Keeping, ShardWriter
from shadow.traces.packing import decode, encode, unpack
from shadow.traces.shards import EMBEDDINGS, FEATURES, MEANS, files_of, finish, inspect, read_means, verify
from shadow.traces.store import Traces

KEY = "0123456789"
LENGTHS = [12, 5, 9, 16, 7, 13, 10, 3, 11, 6]
PROMPTS = [6, 2, 1, 9, 3, 12, 5, 2, 4, 3]
SHARD = 4  # windows
KEEPING = Keeping(
    taps=(0, 2, 3),
    tokens_per_window=5,
    statistic_tokens=4,
    loss="answer",
    summed="all",
    dtype="float16",
    top=None,
    seed=3,
)


@pytest.fixture
def windows(examples):
    return examples(LENGTHS, PROMPTS)


def step(lm, windows, parts, keeping=KEEPING, first=0):
    """What the collector returns for these windows as one batch."""
    return CriterionCollector(lm.model, keeping, drawn_means(lm)).predict_step(
        Numbered(first, collate(windows), list(parts), list(parts)), 0
    )


def positions(keeping=KEEPING, first=0, lengths=LENGTHS):
    """-> the batch's rows and positions that are sampled, [M] and [M]."""
    sampled = [keeping.sample(first + row, length) for row, length in enumerate(lengths)]
    rows = [torch.full((len(chosen),), row) for row, chosen in enumerate(sampled)]
    return torch.cat(rows), torch.cat(sampled)


def scored(lm, windows, criteria, **more):
    """-> what each criterion found at each site of these windows as one batch, by name, layer and kind."""
    found = {}
    score(
        lm.model,
        collate(windows),
        criteria,
        lambda name, site, seen: found.update({(name, site.layer, site.kind): seen}),
        **more,
    )
    return found


def scores(arrays, name):
    """[n, L, U] of one array, decoded."""
    suffixes = ("", "/scale", "/knots", "/knots/scale")
    return decode({suffix: arrays[name + suffix] for suffix in suffixes if name + suffix in arrays})


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


# Which tokens are kept


def test_the_sample_of_a_window_depends_on_its_number_alone():
    for window, length in ((0, 20), (7, 20), (7, 30)):
        assert torch.equal(KEEPING.sample(window, length), KEEPING.sample(window, length))
    assert not torch.equal(KEEPING.sample(0, 20), KEEPING.sample(7, 20))


@pytest.mark.parametrize("length", [5, 6, 20, 300])
def test_a_sample_is_of_so_many_positions_none_twice_and_rising(length):
    found = KEEPING.sample(11, length)
    assert len(found) == 5
    assert (found.diff() > 0).all()
    assert found[0] >= 0
    assert found[-1] < length


@pytest.mark.parametrize(("length", "kept"), [(1, 1), (4, 4), (5, 5), (6, 5)])
def test_a_window_shorter_than_the_sample_gives_all_its_tokens(length, kept):
    assert len(KEEPING.sample(0, length)) == kept
    if length == kept:
        assert KEEPING.sample(0, length).tolist() == list(range(length))


def test_the_seed_draws_other_tokens():
    assert not torch.equal(KEEPING.sample(0, 20), replace(KEEPING, seed=4).sample(0, 20))


@pytest.mark.parametrize("length", [1, 3, 4, 20])
def test_windows_of_any_length_give_a_statistic_as_many_tokens(length):
    """A short one gives its own again, each as often as any other or once more."""
    found = KEEPING.statistic_sample(2, length)
    assert len(found) == 4
    counts = found.bincount(minlength=length)
    assert counts.max() - counts.min() <= 1


# What the rows of a batch hold


@pytest.mark.parametrize("summed", ["all", "prompt", "answer"])
def test_rows_are_the_criterions_own_windows_and_its_tokens_at_the_sampled_positions(lm, windows, summed):
    arrays = step(lm, windows, CONTEXTUAL, replace(KEEPING, summed=summed))
    inside = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.bool)
    for row, (length, prompt) in enumerate(zip(LENGTHS, PROMPTS)):
        inside[
            row, {"all": slice(length), "prompt": slice(prompt), "answer": slice(prompt, length)}[summed]
        ] = 1
    row, position = positions()
    seen = scored(lm, windows, CONTEXTUAL)
    assert len(seen) == len(CONTEXTUAL) * 8
    for (name, layer, kind), found in seen.items():
        for rows, wanted in (("window", found.window(inside)), ("token", found.tokens()[row, position])):
            stored = encode(wanted, "float16")
            assert torch.equal(arrays[name][f"{rows}/{kind}"][:, layer], stored[""]), name
            assert torch.equal(arrays[name][f"{rows}/{kind}/scale"][:, layer], stored["/scale"]), name


def test_the_loss_decides_gradients_and_nothing_else(lm, windows):
    parts = ("l2_norm", "fisher", "nwot")
    answer, following = (step(lm, windows, parts, replace(KEEPING, loss=x)) for x in ("answer", "next_token"))
    for name, of_answer in answer.items():
        for array, values in of_answer.items():
            if name == "fisher" and not array.endswith("scale"):
                assert not torch.equal(values, following[name][array]), array
            elif name != "fisher":
                assert torch.equal(values, following[name][array]), array
    seen = scored(lm, windows, ["fisher"], loss="next_token")["fisher", 1, "neuron"]
    wanted = encode(seen.window(collate(windows).real()), "float16")[""]
    assert torch.equal(following["fisher"]["window/neuron"][:, 1], wanted)


def test_the_states_are_those_of_the_dense_model(lm, windows):
    """Read by the library itself, of each window alone."""
    arrays = step(lm, windows, [FEATURES], first=20)[FEATURES]
    row, position = positions(first=20)
    assert torch.equal(arrays["window/window"], torch.arange(20, 30))
    assert torch.equal(arrays["token/window"], 20 + row)
    assert torch.equal(arrays["token/position"], position)

    def read(name):
        return unpack(arrays[name], arrays[f"{name}/scale"])

    for number, window in enumerate(windows):
        with torch.no_grad():
            states = lm.model(torch.tensor([window.ids]), output_hidden_states=True).hidden_states
        kept = torch.cat([states[tap] for tap in KEEPING.taps]).transpose(0, 1)  # [T, taps, E]
        prompt = kept[: window.prompt]
        for name, found, wanted in (
            ("token/state", read("token/state")[row == number], kept[position[row == number]]),
            ("prompt/last", read("window/prompt/last")[number], prompt[-1]),
            ("prompt/mean", read("window/prompt/mean")[number], prompt.mean(0)),
            ("sequence/last", read("window/sequence/last")[number], kept[-1]),
            ("sequence/mean", read("window/sequence/mean")[number], kept.mean(0)),
        ):
            near = 2**-10 * float(wanted.abs().max())  # packed to 11 bits of the row's largest
            torch.testing.assert_close(
                found, wanted, rtol=2**-10, atol=near, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_the_batch_size_changes_neither_the_sampled_tokens_nor_the_scores(lm, windows, batch_size):
    parts = (FEATURES, *CONTEXTUAL)
    one = step(lm, windows, parts)
    steps = [
        step(lm, windows[first : first + batch_size], parts, first=first)
        for first in range(0, len(windows), batch_size)
    ]
    other = {
        part: {name: torch.cat([found[part][name] for found in steps]) for name in one[part]}
        for part in parts
    }
    for name in ("window/window", "token/window", "token/position"):
        assert torch.equal(one[FEATURES][name], other[FEATURES][name])
    assert torch.equal(other["random"]["window/head"], one["random"]["window/head"])
    for part in CONTEXTUAL:
        for rows in ("window", "token"):
            for kind in KINDS:
                wanted, got = (scores(arrays[part], f"{rows}/{kind}") for arrays in (one, other))
                # a last float32 digit may tip the 11-bit rounding; grasp's second derivative cancels more
                near = (1e-3 if part == "grasp" else 1e-5) * float(wanted.abs().max())
                torch.testing.assert_close(
                    got, wanted, rtol=2**-9, atol=near, msg=lambda m, n=part: f"{n}: {m}"
                )


@pytest.mark.parametrize("top", [None, 0.25])
def test_scores_are_kept_in_the_format_that_is_asked_for(windows, top):
    lm = random_llama(2, 32, 4, 2, 300, 64, 0, torch.float32, None)
    lm.model.eval().requires_grad_(False)
    keeping = replace(KEEPING, taps=(1,), dtype="ranks", top=top)
    arrays = step(lm, windows, ["l2_norm"], keeping)["l2_norm"]
    assert arrays["token/neuron"].dtype == torch.uint8
    assert arrays["token/head"].dtype == torch.float16  # 4 of them
    inside, (row, position) = collate(windows).real(), positions(keeping)
    for (_, layer, kind), seen in scored(lm, windows, ["l2_norm"]).items():
        for rows, wanted in (("window", seen.window(inside)), ("token", seen.tokens()[row, position])):
            for suffix, values in encode(wanted, "ranks", top).items():
                assert torch.equal(arrays[f"{rows}/{kind}{suffix}"][:, layer], values), (rows, kind, suffix)
    assert ("token/neuron/top" in arrays) == (top is not None)


@pytest.mark.parametrize("dtype", ["float16", "ranks"])
def test_without_token_rows_there_are_window_rows_alone(tiny_llama, windows, dtype):
    keeping = replace(KEEPING, tokens_per_window=0, dtype=dtype, top=0.5)
    for part, arrays in step(tiny_llama, windows, [FEATURES, "l2_norm"], keeping).items():
        for name, values in arrays.items():
            assert len(values) == (len(windows) if name.startswith("window/") else 0), (part, name)


# The means


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_the_means_are_those_of_all_real_tokens_of_the_shard(lm, windows, tmp_path, batch_size):
    """Against a loop over windows, each alone and so without padding."""
    write(lm, tmp_path, windows[:SHARD], [FEATURES, MEANS], batch_size)
    collected(tmp_path)
    total, count = {}, 0

    def add(site, x):
        assert len(x) == 1
        for token in x[0].double():
            unit = (site.layer, site.kind)
            total[unit] = total.get(unit, 0) + token

    with hook_sites(lm.model, find_sites(lm.model), add):
        for window in windows[:SHARD]:
            lm.model(torch.tensor([window.ids]))
            count += len(window.ids)
    found = read_means(tmp_path)
    assert found.keys() == total.keys()
    for unit, values in total.items():
        assert found[unit].dtype == torch.float32
        assert found[unit].shape == ((4, 8) if unit[1] == "head" else (64, 1))
        # sums of 40 tokens in float32
        torch.testing.assert_close(found[unit].double(), values / count, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("others", [[FEATURES], ["l2_norm", "fisher"], ["plainact_weight", "nwot"]], ids=str)
def test_the_means_are_the_same_whatever_is_collected_beside_them(tiny_llama, windows, others):
    alone = step(tiny_llama, windows, [MEANS])[MEANS]
    beside = step(tiny_llama, windows, [MEANS, *others])[MEANS]
    assert all(torch.equal(beside[name], values) for name, values in alone.items())
    without = step(tiny_llama, windows, others)
    for part, arrays in step(tiny_llama, windows, [*others, MEANS]).items():
        if part != MEANS:
            assert all(torch.equal(without[part][name], values) for name, values in arrays.items())


def test_deviations_are_from_the_means_that_the_collector_was_given(lm, windows):
    arrays = step(lm, windows, ["l2_deviation"])["l2_deviation"]
    inside = collate(windows).real()
    for (_, layer, kind), seen in scored(lm, windows, ["l2_deviation"], means=drawn_means(lm)).items():
        assert torch.equal(arrays[f"window/{kind}"][:, layer], encode(seen.window(inside), "float16")[""])


# Only what is missing


@pytest.mark.parametrize(
    "parts", [["fisher"], [FEATURES], ["l2_norm", "nwot"], [FEATURES, "random"]], ids=str
)
def test_only_the_parts_that_are_missing_are_returned(tiny_opt, windows, parts):
    found = step(tiny_opt, windows, parts)
    assert list(found) == parts
    assert all(found.values())


@pytest.mark.parametrize("name", list(CRITERIA))
def test_a_criterion_alone_is_what_it_is_beside_others(tiny_llama, windows, name):
    """Whatever else is collected in the pass. (grasp needs another attention, which changes last digits.)"""
    alone = step(tiny_llama, windows, [name])[name]
    others = [other for other in (FEATURES, *CRITERIA) if other != "grasp" or name == "grasp"]
    for array, values in step(tiny_llama, windows, others)[name].items():
        assert torch.equal(values, alone[array]), array


@pytest.mark.parametrize(
    ("parts", "backward"),
    [
        ([FEATURES, "l2_norm", "l2_norm_pre", "random", "nwot"], False),
        (["fisher"], True),
        (["plainact_weight"], True),
        (["grasp"], True),
        (["jacov"], True),
        (["l2_norm", "epenas"], True),
    ],
    ids=str,
)
def test_there_is_a_backward_pass_only_if_a_missing_part_needs_it(lm, windows, parts, backward):
    """Without one, nothing on the way to a site is kept for a gradient."""
    graphs = []
    with hook_sites(lm.model, find_sites(lm.model), lambda site, x: graphs.append(x.requires_grad)):
        step(lm, windows, parts)
    assert graphs == [backward] * 8


def test_collecting_leaves_no_hook_on_the_model(lm, windows, hooks_on):
    step(lm, windows, [FEATURES, *CRITERIA])
    assert hooks_on(lm.model) == 0


# Shards


def write(lm, folder, windows, parts, batch_size=2, keeping=KEEPING, rank=0, world=1):
    """Batch by batch as the trainer does -> the writer, for what it still holds."""
    ends = {shard: min((shard + 1) * SHARD, len(windows)) for shard in range(-(-len(windows) // SHARD))}
    writer = ShardWriter(folder, KEY, SHARD, ends)
    data = CalibrationExamples(windows, batch_size, SHARD, {shard: list(parts) for shard in ends})
    collector = CriterionCollector(lm.model, keeping)
    for batch in data.predict_dataloader():
        writer.waiting.append(collector.predict_step(batch, 0))
        shard = batch.first // SHARD
        if batch.first + len(batch.batch.ids) == ends[shard]:
            writer.flush(shard, rank, world)
    return writer


def collected(folder) -> Traces:
    shards = [(file, inspect(file, KEY)) for file in files_of(folder)]
    finish(folder, {"traces": {"shard_windows": SHARD}}, {"taps": list(KEEPING.taps)}, {}, shards)
    return Traces(folder)


@pytest.mark.parametrize("of", ["prompt", "sequence"])
def test_the_embeddings_of_all_positions_are_read_back_in_any_order(lm, windows, tmp_path, of):
    write(lm, tmp_path, windows, [FEATURES, EMBEDDINGS], batch_size=4)
    asked = torch.tensor([7, 2, 9, 0, 3, 8])
    states, inside = collected(tmp_path).read_embeddings(asked, of)
    counts = [(PROMPTS if of == "prompt" else LENGTHS)[window] for window in asked]
    assert inside.sum(1).tolist() == counts
    assert states.shape[1] == inside.shape[1] == max(counts)
    assert not states[~inside].any()
    for row, (window, count) in enumerate(zip(asked.tolist(), counts, strict=True)):
        seen = []
        with (
            torch.no_grad(),
            hook_signals(
                lm.model,
                [Signal(0, "layer_input")],
                lambda signal, x, seen=seen: seen.append(x),
            ),
        ):
            lm.model(input_ids=torch.tensor([windows[window].ids]), use_cache=False)
        torch.testing.assert_close(states[row, :count], seen[0][0, :count], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 2), (6, 8)])
def test_the_names_of_files_carry_the_rank_and_the_number_of_processes(
    tiny_opt, windows, tmp_path, rank, world
):
    write(tiny_opt, tmp_path, windows, [FEATURES, "l2_norm"], rank=rank, world=world)
    assert {file.name for file in tmp_path.iterdir()} == {
        f"{part}-0000{index}-rank{rank}of{world}.safetensors"
        for part in (FEATURES, "l2_norm")
        for index in range(3)
    }


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_a_shard_has_its_windows_and_their_tokens(tiny_opt, windows, tmp_path, batch_size):
    write(tiny_opt, tmp_path, windows, [FEATURES, "l2_norm", "nwot"], batch_size)
    for file in files_of(tmp_path):
        shard = verify(file, KEY)
        here = LENGTHS[shard.index * SHARD : (shard.index + 1) * SHARD]
        assert shard.windows == len(here)
        assert shard.tokens == (0 if shard.part == "nwot" else sum(min(5, length) for length in here))
    store = collected(tmp_path)
    assert store.count("window") == len(windows)
    assert store.read("window", FEATURES, "window", torch.arange(10)).tolist() == list(range(10))


@pytest.mark.parametrize("batch_size", [1, 2, 4])
@pytest.mark.parametrize("name", list(STATISTICS))
def test_a_statistic_compares_the_windows_of_its_shard(lm, windows, tmp_path, name, batch_size):
    """Each window alone, at its own sampled tokens; its class is the first token of its answer."""
    write(lm, tmp_path, windows, [FEATURES, name], batch_size)
    store = collected(tmp_path)
    for shard, first in enumerate(range(0, len(windows), SHARD)):
        here = list(enumerate(windows))[first : first + SHARD]
        alone = [scored(lm, [window], [name]) for _, window in here]
        classes = torch.tensor([window.ids[window.prompt] for _, window in here])
        for kind in KINDS:
            got = store.read("shard", name, kind, torch.tensor([shard]))[0]
            for layer in range(4):
                shown = torch.stack(
                    [
                        seen[name, layer, kind].values[0, KEEPING.statistic_sample(number, len(window.ids))]
                        for (number, window), seen in zip(here, alone)
                    ]
                )
                wanted = STATISTICS[name].of(shown, classes)
                # eigenvalues near 0 enter by 1 / (v + 1e-5): a last digit of a gradient shows
                torch.testing.assert_close(got[layer], wanted, rtol=2e-3, atol=1e-3)


def test_a_window_without_an_answer_has_its_last_token_for_a_class(tiny_opt, examples):
    rows = examples([6, 4], prompts=[6, 1])
    found = step(tiny_opt, rows, ["epenas"])["epenas"]["class"]
    assert found.tolist() == [rows[0].ids[5], rows[1].ids[1]]


def test_a_shard_is_written_when_its_last_batch_is_there_and_holds_all_of_them(lm, windows, tmp_path):
    """Through Lightning, as a job does."""

    there = []

    class Witness(pl.Callback):
        def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            there.append(len(files_of(tmp_path)))

    parts = [FEATURES, "l2_norm", "fisher"]
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        use_distributed_sampler=False,
        callbacks=[ShardWriter(tmp_path, KEY, SHARD, {0: 4, 1: 8, 2: 10}), Witness()],
    )
    missing = {0: parts, 1: ["fisher"], 2: parts}
    trainer.predict(
        CriterionCollector(lm.model, KEEPING),
        CalibrationExamples(windows, 2, SHARD, missing),
        return_predictions=False,
    )
    assert there == [0, 0, 3, 3, 4]
    assert {(s.part, s.index, s.windows) for s in (inspect(file, KEY) for file in files_of(tmp_path))} == {
        (part, index, {0: 4, 1: 4, 2: 2}[index]) for index, parts in missing.items() for part in parts
    }
    write(lm, tmp_path / "other", windows, parts)
    for file in files_of(tmp_path):
        assert file.read_bytes() == (tmp_path / "other" / file.name).read_bytes()


def test_a_float16_model_that_overflows_is_collected_with_a_smaller_loss_scale(make_lm, examples):
    """Nothing of what overflowed is packed."""
    lm = make_lm("opt", dtype=torch.float16)
    lm.model.model.decoder.final_layer_norm.weight.data.mul_(4)
    batch = collate(examples([12, 7], [6, 3]))
    collector = CriterionCollector(lm.model, KEEPING)
    with torch.enable_grad():
        asked = [FEATURES, "plainact"]
        parts = collector.predict_step(Numbered(0, batch, asked, asked), 0)
    assert torch.isfinite(parts["plainact"]["window/neuron"]).all()
