"""Weights in 8 and 4 bits, and products of whole numbers with them."""

import numpy as np
import pytest
import torch

from shadow.executors.cpu.grids import GROUP, grid_of, lies_on, values_of
from shadow.executors.cpu.grouped import bits_for, empty_in, empty_out, in_groups, put_in, put_out
from shadow.executors.cpu.integers import add_rows, all_dots, dots_of_states, widened
from shadow.executors.cpu.states import empty_states, quantise

WIDTHS = [7, 32, 96, 192, 576, 672]  # of inputs or outputs: 0.2, 1, 3, 6, 18 and 21 groups


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rounded(x: torch.Tensor) -> torch.Tensor:
    """What 8 bits by 32 neighbours make of it, in float64."""
    groups = in_groups(x)
    scale = groups.abs().amax(-1, keepdim=True) / 127
    codes = (groups * torch.where(scale > 0, 127 / groups.abs().amax(-1, keepdim=True), 0)).round()
    return (codes.double() * scale.double()).flatten(1)[:, : x.shape[1]]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("width", WIDTHS)
def test_rows_times_states_are_sums_of_whole_numbers(bits, width):
    rows = empty_in(bits, 2, 37, width)
    for layer in range(2):
        put_in(rows, layer, draw(37, width, seed=layer))
    x, bias, out = draw(2, width, seed=5), draw(2, 37, seed=6), np.zeros((2, 37), np.float32)
    x[1, :GROUP] = 0
    states = empty_states(2, width)
    for b in range(2):
        quantise(x.numpy(), b, width, states, b)
    all_dots(states, 1, rows, bias.numpy(), 1, 3, 37, out, 1)
    expected = rounded(x)[1] @ widened(rows, 1).double().T + bias[1]
    np.testing.assert_allclose(out[1, 3:], expected[3:], rtol=1e-5, atol=2e-5)
    assert not out[0].any()
    asked = torch.tensor([30, 2, 36, 5, 0, 17], dtype=torch.int32)
    dots_of_states(states, 0, rows, bias.numpy(), 1, asked.numpy(), 6, out, 0)
    expected = rounded(x)[0] @ widened(rows, 1).double().T + bias[1]
    np.testing.assert_allclose(out[0, asked], expected[asked], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("width", WIDTHS)
def test_sums_of_rows_are_sums_of_whole_numbers(bits, width):
    rows = empty_out(bits, 2, 70, width)
    for layer in range(2):
        put_out(rows, layer, draw(70, width, seed=layer))
    lines = torch.tensor([0, 3, 4, 31, 32, 40, 41, 66, 67, 69], dtype=torch.int32)
    factors = draw(10, seed=3)
    factors[3] = factors.abs()[:4].max() * 1e-4  # its code is 0
    y = np.zeros((2, rows.blocks * 512 // bits), np.float32)
    places, words = np.zeros(34, np.int64), np.zeros(17, np.int32)
    add_rows(y, 1, factors.numpy(), rows, 1, lines.numpy(), 10, places, words, 0, rows.blocks)
    whole = torch.zeros(1, 70)
    whole[0, lines.long()] = factors
    expected = rounded(whole)[0] @ widened(rows, 1).double()
    np.testing.assert_allclose(y[1, rows.column], expected, rtol=1e-5, atol=2e-5)
    assert not y[0].any()


@pytest.mark.parametrize("bits", [4, 8])
def test_both_ways_hold_the_same_numbers(bits):
    weight = draw(70, 96)
    one, other = empty_in(bits, 1, 70, 96), empty_out(bits, 1, 96, 70)
    put_in(one, 0, weight)
    put_out(other, 0, weight.T)
    assert torch.equal(widened(one, 0), widened(other, 0).T)
    assert torch.equal(
        widened(one, 0), values_of(grid_of(in_groups(weight).flatten(0, 1), bits), bits).view(70, 96)
    )
    chosen = torch.tensor([5, 1])
    assert torch.equal(widened(other, 0, chosen), widened(other, 0)[chosen])
