"""Triton's kernels say what plain torch says; without a GPU they run in Triton's interpreter."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed: pip install -e .[gpu] (Linux)")

from shadow.executors.gpu.attention import attend, remember
from shadow.executors.gpu.channels import pick, write_channels
from shadow.executors.gpu.choice import Choice
from shadow.executors.gpu.units import Units, read_units, write_units
from shadow.plans.rules import keep_top

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# of the largest: sums are float32, and what is stored is rounded to the dtype
ROUNDING = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "silu": F.silu, "gelu": F.gelu}


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def units_of(keep: Tensor, width: int = 1, most: int | None = None) -> Units:
    """keep: bool [B, U]."""
    choice = Choice(len(keep), 1, keep.shape[1], width, DEVICE)
    choice.keep[0] = keep
    choice.list(range(1))
    return choice.of_layer(0) if most is None else choice.of_layer(0)._replace(most=most)


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    worst = (found.float() - expected).abs().max() / expected.abs().max()
    assert worst < ROUNDING[dtype], worst


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 16])
def test_kept_neurons_of_each_row_are_computed_and_added_up(rows, dtype):
    """Sizes are no multiples of blocks; weights, biases and means are of a gated layer."""
    neurons, width = 150, 70
    keep = draw(rows, neurons, seed=1) > 0
    keep[:, 7] = False
    x, up, gate, down = (draw(n, width, seed=n, dtype=dtype) / 4 for n in (rows, 150, 151, 152))
    gate, down = gate[:150], down[:150]
    bias, gate_bias = draw(neurons, seed=3, dtype=dtype), draw(neurons, seed=4, dtype=dtype)
    fill, base, stream = draw(neurons, seed=5), draw(width, seed=6), draw(rows, width, seed=7)
    units = units_of(keep)
    said = read_units(x, up, bias, units, "silu", gate, gate_bias, fill)
    wide = [t.float() for t in (x, up, gate, down, bias, gate_bias)]
    expected = F.silu(wide[0] @ wide[2].T + wide[5]) * (wide[0] @ wide[1].T + wide[4]) - fill
    expected = expected * keep
    listed = keep.any(0)
    assert_near(said[:, listed], expected[:, listed], dtype)
    found = stream.clone()
    write_units(said, down, units, base, found)
    exact = torch.where(keep, said.float(), 0) @ wide[3] + base + stream
    assert_near(found, exact, torch.float32)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_torchs(activation):
    x, weight = draw(2, 40), draw(20, 40, seed=1)
    said = read_units(x, weight, None, units_of(torch.ones(2, 20, dtype=torch.bool)), activation)
    torch.testing.assert_close(said, ACTIVATIONS[activation](x @ weight.T), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 4])
def test_rows_of_kept_heads_are_read_and_written(rows):
    heads, wide, width = 5, 24, 40
    keep = torch.tensor([[True, False, True, False, False], [False, False, True, False, True]] * 2)[:rows]
    x, weight, bias = draw(rows, width), draw(heads * wide, width, seed=1), draw(heads * wide, seed=2)
    units = units_of(keep, wide)
    said = read_units(x, weight, bias, units)
    rows_kept = keep.repeat_interleave(wide, 1).to(DEVICE)
    listed = rows_kept.any(0)
    expected = torch.where(rows_kept, x @ weight.T + bias, 0)
    torch.testing.assert_close(said[:, listed], expected[:, listed], rtol=1e-5, atol=1e-5)
    stream = torch.zeros(rows, width, device=DEVICE)
    write_units(said, weight, units, torch.zeros(width, device=DEVICE), stream)
    torch.testing.assert_close(stream, expected @ weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rows", "dtype"), [(1, torch.float32), (3, torch.bfloat16)])
@pytest.mark.parametrize("top", [False, True])
def test_inputs_that_stay_are_picked_and_added_up(rows, dtype, top):
    """Above a threshold, or among the highest; of one row nothing is above it, and the highest few stay. What
    is written is multiplied by learnt factors."""
    units, width, least = 150, 70, 40 if top else 3
    x, weight = draw(rows, units, dtype=dtype), draw(units, width, seed=1, dtype=dtype)
    x[-1] /= 1 if top else 100
    factor, base, before = draw(width, seed=2), draw(width, seed=3), draw(rows, width, seed=4)
    kept = torch.zeros(rows, dtype=torch.int32, device=DEVICE)
    found = pick(x, torch.tensor([0.5], device=DEVICE), least, top, kept)
    stays = keep_top(x.float().abs(), least)
    if not top:
        stays |= x.float().abs() > 0.5
    assert torch.equal(found, torch.where(stays, x, 0))
    assert torch.equal(kept, stays.sum(1).int())
    weight[~stays.any(0)] = torch.nan  # not read
    expected = before + base + factor * (found.float() @ weight.float().nan_to_num())
    written = torch.empty_like(before)
    write_channels(found, weight, factor, base, before, written)
    assert_near(written, expected, torch.float32)


@pytest.mark.parametrize("rows", [1, 2])
def test_where_no_unit_stays_the_base_is_added_alone(rows):
    units = units_of(torch.zeros(rows, 20, dtype=torch.bool), most=1)
    x, base, stream = draw(rows, 40), draw(40, seed=2), draw(rows, 40, seed=3)
    said = read_units(x, draw(20, 40, seed=1), None, units, "relu")
    found = stream.clone()
    write_units(said, draw(20, 40, seed=1), units, base, found)
    assert torch.equal(found, stream + base)


@pytest.mark.parametrize("rows", [1, 4])
def test_sums_do_not_vary(rows):
    """Parts are added in their order: many of them, and the same bits each time."""
    neurons, width = 700, 40
    keep = draw(rows, neurons, seed=1) > -1
    x, weight, base = draw(rows, neurons) * keep, draw(neurons, width, seed=2), draw(width, seed=3)
    found = []
    for _ in range(2):
        stream = torch.zeros(rows, width, device=DEVICE)
        write_units(x, weight, units_of(keep), base, stream)
        found.append(stream)
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], x @ weight + base, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n", [0, 1, 20, 49, 50])
def test_the_highest_stay_and_among_equals_the_first(n):
    scores = draw(2, 3, 50)
    scores[0, 1], scores[1, 2, 10:40], scores[1, 0, ::2], scores[1, 0, 1::2] = 0.5, -1.0, 0.0, -0.0
    choice = Choice(2, 4, 50, 1, DEVICE)
    way = torch.tensor([1, 1, 1, 0], dtype=torch.int32, device=DEVICE)
    least, above = torch.full_like(way, n), torch.zeros(4, device=DEVICE)
    choice.choose(scores, range(1, 4), way, least, above)
    expected = torch.ones(4, 2, 50, dtype=torch.bool, device=DEVICE)
    expected[1:3] = keep_top(scores, n).transpose(0, 1)[:2]
    assert torch.equal(choice.keep.bool(), expected)
    for layer in range(1, 4):
        stays = expected[layer].any(0).nonzero()[:, 0]
        assert torch.equal(choice.listed[layer, : int(choice.count[layer])].long(), stays)
    assert torch.equal(choice.kept[1:], expected[1:].sum(-1).int())


def test_what_is_above_the_threshold_stays_and_a_few_always():
    scores = draw(2, 1, 50)
    scores[1] -= 10
    choice = Choice(2, 1, 50, 1, DEVICE)
    way = torch.tensor([2], dtype=torch.int32, device=DEVICE)
    choice.choose(scores, range(1), way, torch.full_like(way, 3), torch.tensor([0.25], device=DEVICE))
    expected = (scores[:, 0] > 0.25) | keep_top(scores[:, 0], 3)
    assert torch.equal(choice.keep[0].bool(), expected)


def test_lists_are_made_of_more_units_than_a_block():
    keep = draw(3, 2100) > 0.7
    units = units_of(keep)
    stays = keep.any(0).nonzero()[:, 0]
    assert torch.equal(units.listed[: int(units.found)].long(), stays)


ATTENTIONS = [(heads, groups, rotary) for (heads, groups), rotary in product([(3, 3), (6, 2)], [False, True])]


@pytest.mark.parametrize(("heads", "groups", "rotary"), ATTENTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kept_heads_attend_to_their_rows_positions(heads, groups, rotary, dtype):
    """Over more positions than a program reads, from a padded row's own start on; one row drops all heads of
    a group."""
    room, end, width = 300, 270, 24
    start = torch.tensor([0, 261], dtype=torch.int32, device=DEVICE)
    keep = torch.zeros(2, heads, dtype=torch.int8, device=DEVICE)
    keep[0, :: heads // groups], keep[1, 1:] = 1, 1
    keep[0, -(heads // groups) :] = 0
    query = draw(2, heads * width, dtype=dtype)
    keys, values = (draw(2, groups, room, width, seed=s, dtype=dtype) for s in (1, 2))
    key, value = (draw(2, groups * width, seed=s, dtype=dtype) for s in (3, 4))
    fill = draw(heads, width, seed=5)
    angles = torch.arange(room)[:, None] / 10 ** torch.arange(width // 2)
    turns = torch.stack([angles.cos(), angles.sin()]).to(DEVICE) if rotary else None
    at = torch.tensor([end], dtype=torch.int32, device=DEVICE)
    before = keys.clone()
    remember(key, value, keys, values, turns, start, at)
    found = attend(query, keys, values, turns, keep, start, at, 0.3, fill)

    def turn(x: Tensor, position: int) -> Tensor:
        if turns is None:
            return x.float()
        first, second = x.float().chunk(2, -1)
        cosine, sine = turns[:, position]
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)

    new = torch.stack([turn(key[b].view(groups, width), end - int(start[b])) for b in range(2)])
    assert_near(keys[:, :, end], new, dtype)
    assert torch.equal(values[:, :, end], value.view(2, groups, width))
    untouched = torch.arange(room) != end
    assert torch.equal(keys[:, :, untouched], before[:, :, untouched])
    for b, head in product(range(2), range(heads)):
        lines = slice(head * width, (head + 1) * width)
        if not keep[b, head]:
            assert not found[b, lines].any()
            continue
        group, seen = head // (heads // groups), slice(int(start[b]), end + 1)
        q = turn(query[b, lines], end - int(start[b]))
        weights = (keys[b, group, seen].float() @ q * 0.3).softmax(0)
        assert_near(found[b, lines], weights @ values[b, group, seen].float() - fill[head], dtype)


def test_scores_far_apart_do_not_overflow():
    keys = torch.zeros(1, 1, 300, 16, device=DEVICE)
    keys[0, 0, 3], keys[0, 0, 290] = 1e4, -1e4
    values = draw(1, 1, 300, 16)
    query, ends = torch.ones(1, 16, device=DEVICE), torch.tensor([299], dtype=torch.int32, device=DEVICE)
    keep = torch.ones(1, 1, dtype=torch.int8, device=DEVICE)
    found = attend(query, keys, values, None, keep, torch.zeros_like(ends), ends, math.sqrt(1 / 16))
    torch.testing.assert_close(found[0], values[0, 0, 3], rtol=1e-5, atol=1e-5)
