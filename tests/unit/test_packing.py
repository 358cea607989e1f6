"""Scores in few bytes: what they keep, and what they cost."""

import pytest
import torch
from safetensors.torch import save_file

from shadow.traces.packing import KNOTS, decode, encode, from_bits, pack, rank, top_bits, unpack

SIZES = [257, 300, 1536, 5000]  # of units; more than 256, else ranks are not used


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def log_normal(*shape: int) -> torch.Tensor:
    """Shaped as scores of a gated FFN are: a few units matter e times as much as most."""
    return draw(*shape).exp()


def relu_like(silent: float, *shape: int) -> torch.Tensor:
    """Scores of an FFN with ReLU: this share of them exactly 0."""
    return (draw(*shape) - torch.distributions.Normal(0, 1).icdf(torch.tensor(silent))).relu()


SCORES = {
    "log-normal": log_normal(6, 3, 1536),
    "half silent": relu_like(0.5, 6, 3, 1536),
    "silent but 5 %": relu_like(0.95, 6, 3, 1536),
    "signed": draw(6, 3, 1536),
    "whole numbers": draw(6, 3, 1536).mul(3).round().abs(),
    "all the same": torch.full((6, 3, 1536), 0.3),
    "zeros": torch.zeros(6, 3, 1536),
    "tiny": log_normal(6, 3, 1536) * 1e-30,
}
of_scores = pytest.mark.parametrize("values", SCORES.values(), ids=SCORES.keys())


# Half precision


def packed_and_back(values: torch.Tensor) -> torch.Tensor:
    packed, scale = pack(values)
    assert packed.dtype == torch.float16
    return unpack(packed, scale)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e-6, 1.0, 60_000.0, 1e12, 1e30])
def test_packing_keeps_11_bits_of_values_of_any_size(size):
    values = (torch.rand(5, 3, 64, generator=torch.Generator().manual_seed(0)) + 0.01) * size
    torch.testing.assert_close(packed_and_back(values), values, rtol=2**-11, atol=0)


def test_packing_keeps_small_values_beside_large_ones():
    """11 bits down to 2^-28 of the row's largest, where float16 runs out of exponents."""
    values = 2.0 ** -torch.arange(28.0) * 3.1415
    torch.testing.assert_close(packed_and_back(values), values, rtol=2**-11, atol=0)


def test_packing_keeps_the_sign():
    values = draw(4, 32)
    torch.testing.assert_close(packed_and_back(values), values, rtol=2**-11, atol=2**-24)


def test_packing_a_row_of_zeros_gives_zeros():
    assert torch.equal(packed_and_back(torch.zeros(2, 5)), torch.zeros(2, 5))


def test_a_row_is_packed_by_its_own_scale():
    values = torch.tensor([[1e-12, 2e-12], [1e3, 2e3], [0.0, 0.0]])
    torch.testing.assert_close(packed_and_back(values), values, rtol=2**-11, atol=0)


@pytest.mark.parametrize("least", [1e-38, 1e-40, 1e-42, 1e-45])
def test_packing_the_smallest_floats_stays_finite(least):
    """Squares of gradients do get there; what is lost is at most the value itself."""
    values = torch.tensor([[0.0, least]])
    found = packed_and_back(values)
    assert torch.isfinite(found).all()
    assert (found - values).abs().max() <= least


@pytest.mark.parametrize("stored", ["float16", "ranks"])
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_values_that_are_not_finite_are_refused(bad, stored):
    values = torch.ones(3, 4, 300)
    values[1, 2, 3] = bad
    with pytest.raises(ValueError, match=r"not finite.*model\.dtype"):
        encode(values, stored)


# Ranks


def in_order(values: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """`other`, each row sorted by `values`."""
    return other.gather(-1, values.argsort(-1))


@of_scores
def test_a_higher_score_never_has_a_lower_rank(values):
    codes, _ = rank(values)
    assert codes.dtype == torch.uint8
    assert codes.shape == values.shape
    assert (in_order(values, codes.int()).diff(dim=-1) >= 0).all()


@of_scores
def test_equal_scores_have_equal_ranks_and_are_decoded_alike(values):
    codes, found = rank(values)[0].int(), decode(encode(values, "ranks"))
    equal = in_order(values, values).diff(dim=-1) == 0
    assert (in_order(values, codes).diff(dim=-1)[equal] == 0).all()
    assert (in_order(values, found).diff(dim=-1)[equal] == 0).all()


@pytest.mark.parametrize("units", [*SIZES, 20480])
def test_scores_that_differ_are_spread_over_all_256_ranks(units):
    codes, _ = rank(torch.stack([torch.randperm(units).float() for _ in range(3)]))
    for row in codes:
        counts = row.bincount(minlength=256)
        assert len(counts) == 256
        assert (counts - units / 256).abs().max() <= 2  # of each rank as many, but for where it begins


@pytest.mark.parametrize("units", SIZES)
def test_the_neurons_that_relu_silenced_have_rank_0_and_stay_0(units):
    """If they are more than 1 in 256; of fewer, what is hardly more than 0 becomes 0 with them."""
    for silent in (0.01, 0.3, 0.9, 0.999):
        values = relu_like(silent, 4, 3, units)
        values[..., : units // 256 + 1] = 0
        assert (rank(values)[0][values == 0] == 0).all()
        assert (decode(encode(values, "ranks"))[values == 0] == 0).all()


@of_scores
def test_decoded_scores_stand_in_the_order_of_the_scores(values):
    found = decode(encode(values, "ranks"))
    steps = in_order(values, found).diff(dim=-1)
    assert (steps >= -1e-6 * found.abs().amax()).all()  # the sum of two shares of one knot may round down


@of_scores
def test_decoded_scores_stay_between_the_least_and_the_largest(values):
    """The second is about the mean of the best 256th: ranks do not know by how much the first is first."""
    found = decode(encode(values, "ranks"))
    near = 2**-11 * values.abs().amax(-1, keepdim=True)
    assert (found >= values.amin(-1, keepdim=True) - near).all()
    assert (found <= values.amax(-1, keepdim=True) + near).all()
    best = max(1, values.shape[-1] // 256)
    mean = values.topk(best).values.mean(-1)
    torch.testing.assert_close(found.amax(-1), mean, rtol=2**-10, atol=float(near.max()))


@pytest.mark.parametrize(
    ("values", "median", "most", "together"),
    [
        (log_normal(20, 1536), 0.012, 0.15, 0.035),
        (log_normal(4, 20480), 0.011, 0.12, 0.035),
        (relu_like(0.5, 20, 1536), 0.018, 2.0, 0.025),
        (relu_like(0.9, 20, 1536), 0.09, 25.0, 0.11),
        (relu_like(0.9, 4, 20480), 0.08, 25.0, 0.11),
    ],
    ids=["log-normal", "log-normal, OPT-13B's width", "half silent", "9 of 10 silent", "the same, OPT-13B's"],
)
def test_decoded_scores_are_about_the_scores(values, median, most, together):
    """Measured, and a tenth added. median, most: error of half and of 99 % of the scores above 0, in shares
    of each; together: of all in a row, in shares of their sum.

    Least is known of what hardly fires (a small number is wrong by many times itself) and of the best 256th.
    """
    error = (decode(encode(values, "ranks")) - values).abs()
    relative = (error / values)[values > 0]
    assert relative.median() < median
    assert relative.sort().values[int(0.99 * len(relative))] < most
    assert error.sum() / values.sum() < together


def test_a_row_of_one_value_is_decoded_to_11_bits():
    for value in (0.0, 1e-12, 0.3, -7.0):
        values = torch.full((2, 300), value)
        torch.testing.assert_close(decode(encode(values, "ranks")), values, rtol=2**-10, atol=0)


@pytest.mark.parametrize("units", [1, 4, 40, 255, 256])
def test_up_to_256_units_stay_half_precision_numbers(units):
    values = log_normal(5, 2, units)
    ranks, halves = encode(values, "ranks"), encode(values, "float16")
    assert ranks.keys() == halves.keys() == {"", "/scale"}
    assert ranks[""].dtype == torch.float16
    for name in halves:
        assert torch.equal(ranks[name], halves[name])
    assert encode(log_normal(5, 2, 257), "ranks").keys() == {"", "/knots", "/knots/scale"}


@pytest.mark.parametrize("stored", ["float16", "ranks"])
@pytest.mark.parametrize("units", [4, 300])
def test_any_rows_can_be_decoded_by_themselves(stored, units):
    arrays = encode(log_normal(7, 2, units), stored)
    everything = decode(arrays)
    for rows in (torch.tensor([3]), torch.tensor([6, 0, 0, 5])):
        found = decode({name: values[rows] for name, values in arrays.items()})
        # the curve of ranks is a matrix product, whose sums take another order with other rows beside
        torch.testing.assert_close(found, everything[rows], rtol=1e-6 * (stored == "ranks"), atol=0)


@pytest.mark.parametrize("stored", ["float16", "ranks"])
@pytest.mark.parametrize("units", [4, 300])
def test_no_rows_are_encoded_as_no_rows(stored, units):
    """Of tokens, where traces.tokens_per_window=0 keeps none."""
    arrays = encode(torch.zeros(0, 2, units), stored, 0.5)
    assert all(len(values) == 0 for values in arrays.values())
    assert decode(arrays).shape == (0, 2, units)


# Bits of the best


@pytest.mark.parametrize("units", [3, 5, 8, 9, 17, 300, 1001])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_bits_are_those_of_the_best_share_of_units(units, share):
    values = torch.stack([torch.randperm(units) for _ in range(6)]).view(2, 3, units).float()
    bits = top_bits(values, share)
    assert bits.dtype == torch.uint8
    assert bits.shape == (2, 3, -(-units // 8))
    found = from_bits(bits, units)
    assert torch.equal(found, values >= units - round(share * units))


@pytest.mark.parametrize("units", [5, 300])
def test_of_equal_units_the_first_are_the_best(units):
    found = from_bits(top_bits(torch.zeros(2, units), 0.5), units)
    assert torch.equal(found, (torch.arange(units) < round(0.5 * units)).expand(2, units))


@pytest.mark.parametrize("stored", ["float16", "ranks"])
def test_the_bits_are_kept_beside_the_scores_and_do_not_change_them(stored):
    values = log_normal(4, 2, 300)
    plain, with_top = encode(values, stored), encode(values, stored, 0.3)
    assert with_top.keys() - plain.keys() == {"/top"}
    assert torch.equal(decode(with_top), decode(plain))
    assert torch.equal(with_top["/top"], top_bits(values, 0.3))


# What it costs


@pytest.mark.parametrize(("stored", "megabytes"), [("float16", 1.65), ("ranks", 0.83)])
def test_a_row_of_opt_13b_takes_as_many_bytes_as_the_format_promises(stored, megabytes, tmp_path):
    """40 layers of 40 heads and 20480 neurons: 820,800 scores; the file has its header too."""
    values = log_normal(1, 40, 20480)
    arrays = {}
    for kind, scores in (("head", values[..., :40]), ("neuron", values)):
        for suffix, found in encode(scores.contiguous(), stored).items():
            arrays[kind + suffix] = found
    bits = {"float16": 16, "ranks": 8 + 16 * len(KNOTS) / 20480}[stored]  # and float32 scales
    assert sum(found.nbytes for found in arrays.values()) == pytest.approx(820_800 * bits / 8, rel=0.003)
    save_file(arrays, tmp_path / "row.safetensors")
    assert (tmp_path / "row.safetensors").stat().st_size <= megabytes * 1e6
