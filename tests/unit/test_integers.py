"""Weights in 8 and 4 bits, and products of whole numbers with them."""

import re
from typing import get_args

import gguf
import numpy as np
import pytest
import torch

from shadow.executors.cpu.byte_products import Path, best_path, features
from shadow.executors.cpu.grids import GROUP, grid_of, lies_on, values_of
from shadow.executors.cpu.grouped import bits_for, empty_in, empty_out, in_groups, put_in, put_out
from shadow.executors.cpu.in_blocks import Blocks
from shadow.executors.cpu.matrices import widened
from shadow.executors.cpu.row_dots import all_dots, dots_of_states
from shadow.executors.cpu.row_sums import add_rows
from shadow.executors.cpu.states import empty_states, quantise
from shadow.executors.cpu.team import Team
from shadow.executors.cpu.vectors import (
    address_of,
    as_floats,
    exponential,
    first_half,
    last_half,
    low,
    no_ints,
    pairs,
    product,
    read_bytes,
    read_floats,
    store_floats,
    wide_product,
)
from shadow.plans.compiled import compiled, sources

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
    dots_of_states(states, 0, rows, bias.numpy(), 1, asked.numpy(), 6, out, 0, 0)
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
    places, words = np.zeros((2, 34), np.int64), np.zeros(17, np.int32)
    add_rows(y, 1, factors.numpy(), rows, 1, lines.numpy(), 10, places, words, 0, rows.blocks, 0, False)
    whole = torch.zeros(1, 70)
    whole[0, lines.long()] = factors
    expected = rounded(whole)[0] @ widened(rows, 1).double()
    np.testing.assert_allclose(y[1, rows.column], expected, rtol=1e-5, atol=2e-5)
    assert not y[0].any()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("width", WIDTHS)
def test_blocks_of_positions_are_multiplied_with_the_same_whole_numbers(bits, width):
    """Sums of float32 are taken in another order than one position's. Some rows of a matrix, in any order."""
    blocks, lines = Blocks(Team()), torch.tensor([30, 2, 36, 5, 0, 17])
    x = draw(3, 4, width, seed=5)[:, ::2]  # not one behind the other
    rows, sums = empty_in(bits, 2, 37, width), empty_out(bits, 2, width, 70)
    for layer in range(2):
        put_in(rows, layer, draw(37, width, seed=layer))
        put_out(sums, layer, draw(width, 70, seed=layer))
    states = rounded(x.flatten(0, 1)).view(x.shape)
    expected = states @ widened(rows, 1).double().T
    for asked in (None, lines):
        found = blocks.across(x, rows, 1, asked)
        wanted = expected if asked is None else expected[..., asked]
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-5)
    found = blocks.along(x, sums, 1)
    np.testing.assert_allclose(found, states @ widened(sums, 1).double(), rtol=1e-5, atol=2e-5)


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


@pytest.mark.parametrize("path", get_args(Path))
def test_every_way_to_multiply_bytes_is_exact(path):
    """Each that this processor has; `maddubs` sums two products in 16 bits, and is given 4 bits alone."""
    needed = {"vnni512": {"avx512vnni", "avx512bw"}, "vnni256": {"avx512vnni"}, "maddubs": {"avx2"}}
    needed["plain"] = set()
    if not needed[path] <= features():
        pytest.skip(f"this processor has no {needed[path]}")
    four, eight, pairs_of = product(path), wide_product(path), pairs(path)

    @compiled()
    def multiplied(counts, signed, fours, eights, twos):
        small = low(read_bytes(address_of(counts)))
        store_floats(address_of(fours), as_floats(four(no_ints(), small, read_bytes(address_of(signed)))))
        every = eight(no_ints(), read_bytes(address_of(counts)), read_bytes(address_of(signed)))
        store_floats(address_of(eights), as_floats(every))
        found = pairs_of(small, read_bytes(address_of(signed)))
        store_floats(address_of(twos), as_floats(first_half(found)))
        store_floats(address_of(twos) + 64, as_floats(last_half(found)))

    draw = np.random.default_rng(0)
    counts, signed = draw.integers(0, 256, 64, np.uint8), draw.integers(-127, 128, 64).astype(np.int8)
    counts[:8], signed[:8] = 255, [-127] * 4 + [127] * 4  # the extremes
    fours, eights, twos = np.zeros(16, np.float32), np.zeros(16, np.float32), np.zeros(32, np.float32)
    multiplied(counts, signed, fours, eights, twos)
    small, signed = (counts & 15).astype(np.int64), signed.astype(np.int64)
    assert (fours == (small * signed).reshape(16, 4).sum(1)).all()
    assert (eights == (counts.astype(np.int64) * signed).reshape(16, 4).sum(1)).all()
    assert (twos == (small * signed).reshape(32, 2).sum(1)).all()


def test_the_best_way_is_chosen_by_what_the_processor_has():
    assert best_path({"avx2", "avx512bw", "avx512vl", "avx512vnni"}) == "vnni512"
    assert best_path({"avx2", "avxvnni"}) == "vnni256"
    assert best_path({"avx2"}) == "maddubs"
    assert best_path(set()) == "plain"


def on_grid(name: str) -> torch.Tensor:
    """Weights as `gguf` reads them from a file of this type: [64, 96]."""
    kind = gguf.GGMLQuantizationType[name]
    packed = gguf.quants.quantize(draw(64, 96, seed=7).numpy(), kind)
    return torch.from_numpy(gguf.quants.dequantize(packed, kind).copy())


@pytest.mark.parametrize(("name", "bits"), [("Q4_0", 4), ("Q4_1", 4), ("Q8_0", 8)])
def test_what_a_gguf_file_holds_is_kept_to_the_last_bit(name, bits):
    weight = on_grid(name)
    for asked in (4, 8) if bits == 8 else (4,):
        assert bits_for([weight, weight], asked) == bits
    one, other = empty_in(bits, 1, 64, 96), empty_out(bits, 1, 96, 64)
    put_in(one, 0, weight)
    put_out(other, 0, weight.T)
    assert torch.equal(widened(one, 0), weight)
    assert torch.equal(widened(other, 0).T, weight)
    if name == "Q4_1":  # and the bytes are the file's
        packed = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q4_1).reshape(64, 3, 20)
        record = one.records[: 64 * one.stride].reshape(64, 60)
        assert (record[:, :48].reshape(64, 3, 16) == packed[:, :, 4:]).all()
        assert (record[:, 48:54].reshape(64, 3, 2) == packed[:, :, :2]).all()
        assert (record[:, 54:].reshape(64, 3, 2) == packed[:, :, 2:4]).all()


def test_other_weights_lose_less_than_by_the_formats_of_files():
    weight = draw(64, 96, seed=8)
    kept = values_of(grid_of(weight.view(-1, 32), 4), 4).view(64, 96)
    assert bits_for([weight], 4) == 4
    assert not lies_on(weight.view(-1, 32), 4)
    for name in ("Q4_0", "Q4_1"):
        kind = gguf.GGMLQuantizationType[name]
        theirs = gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind)
        error = (torch.from_numpy(theirs) - weight).square().mean()
        assert (kept - weight).square().mean() < 0.95 * error


def test_exponentials_in_vectors_are_those_of_numpy():
    @compiled()
    def raised(x, out):
        store_floats(address_of(out), exponential(read_floats(address_of(x))))

    x, out = np.linspace(-86, 80, 16, dtype=np.float32), np.zeros(16, np.float32)
    for shift in np.linspace(0, 7, 50, dtype=np.float32):
        raised(x + shift, out)
        np.testing.assert_allclose(out, np.exp((x + shift).astype(np.float64)), rtol=3e-7)
    raised(np.full(16, -np.inf, np.float32), out)
    assert out.max() < 2e-38


@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_rounded_stays_what_it_is(bits):
    once = values_of(grid_of(draw(500, 32, seed=9), bits), bits)
    assert torch.equal(values_of(grid_of(once, bits), bits), once)


def test_code_that_is_kept_is_told_from_that_of_other_sources():
    """numba looks at the file of a function alone, and not at what it calls."""
    assert add_rows._cache._cache_file._source_stamp[1] == sources()
    assert re.fullmatch("[0-9a-f]{64}", sources())
