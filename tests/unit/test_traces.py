"""The trace store: what is written is what is read."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open

from shadow.errors import UserError
from shadow.traces import Traces, finish, finished_shards, pack, shard_name, write_shard

SIZES = [(3, 7), (4, 1), (1, 12), (5, 3)]  # window rows and token rows of each shard
FACTS = {"criteria": ["fisher", "l2_norm"], "taps": [0, 1]}


def arrays_of(windows: int, tokens: int, seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    arrays = {"window/window": torch.arange(windows), "token/window": torch.zeros(tokens, dtype=torch.long)}
    for rows, count in (("window", windows), ("token", tokens)):
        for criterion, size in (("fisher", 1e-12), ("l2_norm", 1.0)):
            arrays[f"{rows}/{criterion}/head"] = torch.rand(count, 4, 6, generator=draw) * size
    arrays["token/state"] = torch.randn(tokens, 2, 8, generator=draw)
    return arrays


@pytest.fixture
def written(tmp_path):
    """The arrays of all shards, end to end."""
    shards = [arrays_of(*size, seed) for seed, size in enumerate(SIZES)]
    for index, arrays in enumerate(shards):
        write_shard(tmp_path, index, arrays)
    finish(tmp_path, {"seed": 1}, FACTS)
    return {name: torch.cat([arrays[name] for arrays in shards]) for name in shards[0]}


# Packing


def unpack(values):
    packed, scale = pack(values)
    assert packed.dtype == torch.float16
    return packed.float() * scale[..., None]


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e-6, 1.0, 60_000.0, 1e12, 1e30])
def test_packing_keeps_11_bits_of_values_of_any_size(size):
    values = (torch.rand(5, 3, 64, generator=torch.Generator().manual_seed(0)) + 0.01) * size
    torch.testing.assert_close(unpack(values), values, rtol=2**-11, atol=0)


def test_packing_keeps_small_values_beside_large_ones():
    """11 bits down to 2^-28 of the row's largest, where float16 runs out of exponents."""
    values = 2.0 ** -torch.arange(28.0) * 3.1415
    torch.testing.assert_close(unpack(values), values, rtol=2**-11, atol=0)


def test_packing_keeps_the_sign():
    values = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(unpack(values), values, rtol=2**-11, atol=2**-24)


def test_packing_a_row_of_zeros_gives_zeros():
    assert torch.equal(unpack(torch.zeros(2, 5)), torch.zeros(2, 5))


def test_a_row_is_packed_by_its_own_scale():
    values = torch.tensor([[1e-12, 2e-12], [1e3, 2e3], [0.0, 0.0]])
    torch.testing.assert_close(unpack(values), values, rtol=2**-11, atol=0)


@pytest.mark.parametrize("least", [1e-38, 1e-40, 1e-42, 1e-45])
def test_packing_the_smallest_floats_stays_finite(least):
    """Squares of gradients do get there; what is lost is at most the value itself."""
    values = torch.tensor([[0.0, least]])
    found = unpack(values)
    assert torch.isfinite(found).all()
    assert (found - values).abs().max() <= least


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_values_that_are_not_finite_are_refused(tmp_path, bad):
    values = torch.ones(3, 4, 6)
    values[1, 2, 3] = bad
    with pytest.raises(ValueError, match="not finite"):
        pack(values)
    with pytest.raises(ValueError, match="not finite"):
        write_shard(tmp_path, 0, {"window/fisher/head": values})
    assert list(tmp_path.iterdir()) == []


# Reading


@pytest.mark.parametrize("rows", ["window", "token"])
def test_what_is_written_is_read(tmp_path, written, rows):
    store = Traces(tmp_path)
    count = sum(size[rows == "token"] for size in SIZES)
    assert store.count(rows) == count
    for name, expected in written.items():
        if name.startswith(rows):
            got = store.read(rows, name.removeprefix(f"{rows}/"), torch.arange(count))
            if expected.dtype == torch.float32:
                assert got.dtype == torch.float32
                rows_largest = expected.abs().amax(-1, keepdim=True)
                assert ((got - expected).abs() <= expected.abs() * 2**-11 + rows_largest * 2**-38).all()
            else:
                assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "indices", [[0], [22], [22, 0, 7, 8, 6], [20, 19, 20, 20, 3], list(range(22, -1, -1)), [7], [19]]
)
def test_rows_are_read_by_any_indices_across_shards(tmp_path, written, indices):
    store = Traces(tmp_path)
    everything = store.read("token", "fisher/head", torch.arange(23))
    chosen = torch.tensor(indices)
    assert torch.equal(store.read("token", "fisher/head", chosen), everything[chosen])


def test_the_mean_window_scores_are_the_mean_over_all_windows(tmp_path, written):
    expected = written["window/fisher/head"].double().mean(0).float()
    got = Traces(tmp_path).mean_window_scores("fisher", "head")
    torch.testing.assert_close(got, expected, rtol=2**-11, atol=0)  # float16 steps


def test_a_criterion_that_was_not_collected_is_refused_by_name(tmp_path, written):
    store = Traces(tmp_path)
    with pytest.raises(UserError, match=r"plainact.*fisher.*l2_norm"):
        store.require("plainact")
    with pytest.raises(UserError, match="plainact"):
        store.mean_window_scores("plainact", "head")


# Writing


def test_the_manifest_holds_settings_facts_rows_and_right_checksums(tmp_path, written):
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["settings"] == {"seed": 1}
    assert {name: manifest[name] for name in FACTS} == FACTS
    assert [(s["rows"]["window"], s["rows"]["token"]) for s in manifest["shards"]] == SIZES
    for index, shard in enumerate(manifest["shards"]):
        content = (tmp_path / shard_name(index)).read_bytes()
        assert shard["sha256"] == hashlib.sha256(content).hexdigest()


def test_nothing_but_shards_and_manifest_is_left(tmp_path, written):
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"manifest.json", *(shard_name(index) for index in range(len(SIZES)))}


def test_writing_the_same_arrays_gives_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        write_shard(tmp_path / folder, 0, arrays_of(3, 7, 0))
    assert (tmp_path / "a" / shard_name(0)).read_bytes() == (tmp_path / "b" / shard_name(0)).read_bytes()


def test_scores_are_stored_in_half_precision_and_numbers_as_they_are(tmp_path, written):
    with safe_open(tmp_path / shard_name(0), "pt") as shard:
        assert shard.get_tensor("window/fisher/head").dtype == torch.float16
        assert shard.get_tensor("window/window").dtype == torch.int64


def test_shards_count_up_to_the_first_gap(tmp_path, written):
    assert finished_shards(tmp_path) == 4
    (tmp_path / shard_name(2)).unlink()
    assert finished_shards(tmp_path) == 2
    assert finished_shards(tmp_path / "nowhere") == 0
