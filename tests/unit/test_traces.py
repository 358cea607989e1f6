"""The trace store: what is written is what is read, and what is damaged or foreign is told apart."""

import random
import re
import subprocess
import sys
import zlib
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shadow.errors import UserError
from shadow.traces.packing import decode, encode, from_bits, pack, top_bits
from shadow.traces.shards import (
    FEATURES,
    covered,
    digest,
    files_of,
    finish,
    inspect,
    read_manifest,
    store_of,
    verify,
    write_shard,
)
from shadow.traces.store import Traces

KEY = "0123456789"
SHARD = 4  # windows
TOKENS = [3, 1, 4, 2, 2, 5, 1, 3, 1, 1, 4, 2, 3, 2]  # of each window; the last shard is of two windows
WINDOWS = len(TOKENS)
LAYERS, UNITS = 2, {"head": 5, "neuron": 300}  # neurons enough for ranks
TOP = 0.3
FACTS = {"taps": [0, 1], "layers": LAYERS, "units": UNITS}
PARTS = (FEATURES, "l2_norm", "fisher", "nwot")


def scores_of(part: str, rows: str, kind: str, numbers: torch.Tensor) -> torch.Tensor:
    """[n, L, U], each row a function of its number alone."""
    draws = [
        torch.Generator().manual_seed(zlib.crc32(f"{part} {rows} {kind} {number}".encode()))
        for number in numbers.tolist()
    ]
    size = {"l2_norm": 1.0, "fisher": 1e-12}[part]
    return torch.stack([torch.randn(LAYERS, UNITS[kind], generator=draw).exp() * size for draw in draws])


def arrays_of(part: str, index: int, end: int, stored: str) -> dict[str, torch.Tensor]:
    """The arrays of a part's shard that holds windows up to `end`."""
    windows = torch.arange(index * SHARD, end)
    tokens = torch.arange(sum(TOKENS[: index * SHARD]), sum(TOKENS[:end]))
    if part == FEATURES:
        owners = torch.repeat_interleave(windows, torch.tensor(TOKENS[index * SHARD : end]))
        arrays = {"window/window": windows, "token/window": owners, "token/position": tokens % 7}
        for name, numbers in (("token/state", tokens), ("window/prompt/last", windows)):
            states = numbers[:, None, None] + torch.arange(2 * 3).view(2, 3) / 8  # [n, taps, E]
            arrays[name], arrays[f"{name}/scale"] = pack(states)
        return arrays
    if part == "nwot":
        return {f"shard/{kind}": torch.full((1, LAYERS, units), 2.0**index) for kind, units in UNITS.items()}
    return {
        f"{rows}/{kind}{suffix}": values
        for rows, numbers in (("window", windows), ("token", tokens))
        for kind in UNITS
        for suffix, values in encode(scores_of(part, rows, kind, numbers), stored, TOP).items()
    }


def write(folder: Path, part: str, index: int, stored: str = "float16", windows: int = WINDOWS) -> Path:
    end = min((index + 1) * SHARD, windows)
    tokens = 0 if part == "nwot" else sum(TOKENS[index * SHARD : end])
    return write_shard(
        folder, KEY, part, index, (end - index * SHARD, tokens), arrays_of(part, index, end, stored)
    )


def finished(folder: Path) -> Traces:
    """The manifest of what there is."""
    shards = [(file, verify(file, KEY)) for file in files_of(folder)]
    finish(
        folder,
        {"traces": {"shard_windows": SHARD}},
        FACTS,
        {str(WINDOWS): WINDOWS, "9": 9},
        reversed(shards),
    )
    return Traces(folder, WINDOWS)


@pytest.fixture(scope="module", params=["float16", "ranks"])
def store(request, tmp_path_factory):
    """A store of 4 shards, the last of 2 windows, with all parts."""
    folder = tmp_path_factory.mktemp("traces") / f"tiny-{KEY}"
    for part in PARTS:
        for index in range(4):
            write(folder, part, index, request.param)
    return finished(folder)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / f"tiny-{KEY}"


@pytest.fixture
def file(folder):
    """One sound shard of `l2_norm`, the second."""
    return write(folder, "l2_norm", 1)


def expected(store: Traces, part: str, rows: str, name: str) -> torch.Tensor:
    """What all files of a part hold, end to end, read by safetensors alone."""
    shards = [load_file(store.folder / line["file"]) for line in store.manifest["parts"][part]]
    suffixes = ("", "/scale", "/knots", "/knots/scale")
    whole = {
        suffix: torch.cat([shard[f"{rows}/{name}{suffix}"] for shard in shards])
        for suffix in suffixes
        if f"{rows}/{name}{suffix}" in shards[0]
    }
    return decode(whole) if len(whole) > 1 else whole[""]


ARRAYS = [
    (FEATURES, "window", "window"),
    (FEATURES, "window", "prompt/last"),
    (FEATURES, "token", "window"),
    (FEATURES, "token", "position"),
    (FEATURES, "token", "state"),
    *((part, rows, kind) for part in ("l2_norm", "fisher") for rows in ("window", "token") for kind in UNITS),
    ("nwot", "shard", "head"),
    ("nwot", "shard", "neuron"),
]
COUNTS = {"window": WINDOWS, "token": sum(TOKENS), "shard": 4}


def assert_read(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Bit for bit, but for the last digit of decoded ranks: other rows beside change the order of sums."""
    assert got.dtype == wanted.dtype
    torch.testing.assert_close(got, wanted, rtol=1e-6 if got.is_floating_point() else 0, atol=0)


# Reading


@pytest.mark.parametrize(("part", "rows", "name"), ARRAYS, ids=str)
def test_what_is_written_is_read(store, part, rows, name):
    assert store.count(rows) == COUNTS[rows]
    assert_read(store.read(rows, part, name, torch.arange(COUNTS[rows])), expected(store, part, rows, name))


@pytest.mark.parametrize("kind", list(UNITS))
@pytest.mark.parametrize("part", ["l2_norm", "fisher"])
def test_scores_of_any_size_come_back_in_float32(store, part, kind):
    rows = torch.arange(WINDOWS)
    got, wanted = store.read("window", part, kind, rows), scores_of(part, "window", kind, rows)
    assert got.dtype == torch.float32
    coded = kind == "neuron" and "window/neuron/knots" in load_file(files_of(store.folder)[4])
    tolerance = 0.1 if coded else 2**-11  # of the better half of 256 ranks; test_packing.py has the others
    near = ((got - wanted).abs() <= tolerance * wanted).float().mean()
    assert near > (0.8 if coded else 0.999)


@pytest.mark.parametrize("rows", ["window", "token"])
@pytest.mark.parametrize("seed", range(4))
def test_rows_are_read_by_any_indices_across_shards(store, rows, seed):
    chosen = torch.tensor(random.Random(seed).choices(range(COUNTS[rows]), k=12))
    for part, name in ((FEATURES, "window"), ("l2_norm", "head"), ("fisher", "neuron")):
        everything = store.read(rows, part, name, torch.arange(COUNTS[rows]))
        assert_read(store.read(rows, part, name, chosen), everything[chosen])


@pytest.mark.parametrize("index", [0, 3, 4, 11, 12, WINDOWS - 1])
def test_single_rows_are_read_at_the_borders_of_shards(store, index):
    assert store.read("window", FEATURES, "window", torch.tensor([index])).tolist() == [index]


@pytest.mark.parametrize("kind", list(UNITS))
def test_the_bits_of_the_best_units_are_read_with_their_rows(store, kind):
    rows = torch.tensor([13, 0, 5, 5])
    scores = scores_of("l2_norm", "window", kind, rows)
    wanted = from_bits(top_bits(scores, TOP), UNITS[kind])
    assert torch.equal(store.read_top("window", "l2_norm", kind, rows), wanted)
    assert (wanted.sum(-1) == round(TOP * UNITS[kind])).all()


def test_bits_that_were_not_kept_are_refused_with_the_setting(folder):
    arrays = arrays_of("l2_norm", 0, SHARD, "float16")
    kept = {name: values for name, values in arrays.items() if not name.endswith("/top")}
    write(folder, FEATURES, 0)
    write_shard(folder, KEY, "l2_norm", 0, (SHARD, sum(TOKENS[:SHARD])), kept)
    finished(folder)
    with pytest.raises(UserError, match=r"traces\.top=0\.5"):
        Traces(folder).read_top("window", "l2_norm", "head", torch.arange(2))


# The first windows of a store


@pytest.mark.parametrize("windows", range(1, WINDOWS + 1))
def test_a_view_of_the_first_windows_has_their_rows_and_no_others(store, windows):
    view = Traces(store.folder, windows)
    tokens = sum(TOKENS[:windows])
    assert (view.count("window"), view.count("token")) == (windows, tokens)
    assert view.count("shard") == -(-windows // SHARD)
    owners = view.read("token", FEATURES, "window", torch.arange(tokens))
    assert owners.tolist() == [window for window, n in enumerate(TOKENS[:windows]) for _ in range(n)]
    for rows, count in (("window", windows), ("token", tokens)):
        last = torch.tensor([count - 1, 0])
        for part, name in (("l2_norm", "neuron"), ("fisher", "head")):
            assert_read(view.read(rows, part, name, last), store.read(rows, part, name, last))


def test_without_a_number_the_view_is_of_all_windows(store):
    assert Traces(store.folder).windows == WINDOWS


@pytest.mark.parametrize("windows", [1, 4, 9, WINDOWS])
def test_static_scores_are_the_mean_over_the_windows_of_the_view(store, windows):
    view = Traces(store.folder, windows)
    for kind in UNITS:
        scores = store.read("window", "l2_norm", kind, torch.arange(windows))
        wanted = scores.double().mean(0).float()
        torch.testing.assert_close(view.static_scores("l2_norm", kind), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("windows", "mean"), [(4, 1.0), (7, 1.0), (8, 1.5), (11, 1.5), (14, 7 / 3)])
def test_static_scores_of_a_statistic_are_the_mean_over_whole_shards(store, windows, mean):
    """That of shard i is 2**i; one of fewer windows compares fewer, and is another statistic."""
    view = Traces(store.folder, windows)
    for kind, units in UNITS.items():
        found = view.static_scores("nwot", kind)
        torch.testing.assert_close(found, torch.full((LAYERS, units), mean), rtol=1e-6, atol=0)


def test_a_criterion_that_covers_fewer_windows_is_not_offered(folder):
    for index in range(4):
        write(folder, FEATURES, index)
    for index in range(2):
        write(folder, "l2_norm", index)
    for index in range(4):
        write(folder, "fisher", index)
    whole = finished(folder)
    assert whole.criteria == ["fisher"]
    assert Traces(folder, 8).criteria == ["fisher", "l2_norm"]
    assert Traces(folder, 9).criteria == ["fisher"]
    with pytest.raises(UserError, match=r"criterion=l2_norm.*\['fisher'\].*traces\.criteria=\[l2_norm\]"):
        whole.static_scores("l2_norm", "head")


def test_a_criterion_that_was_not_collected_is_refused_by_name(store):
    with pytest.raises(UserError, match=r"criterion=plainact .*fisher.*l2_norm"):
        store.require("plainact")
    for criterion in ("l2_norm", "fisher", "nwot"):
        store.require(criterion)


def test_windows_after_a_gap_are_not_covered(folder):
    """A file was lost, and not made again as another criterion was asked for: the third is not the second."""
    for index in range(4):
        write(folder, FEATURES, index)
    for index in (0, 2):
        write(folder, "l2_norm", index)
    finished(folder)
    manifest = read_manifest(folder)
    assert covered(manifest, FEATURES) == WINDOWS
    assert covered(manifest, "l2_norm") == SHARD
    assert "l2_norm" not in Traces(folder, 2 * SHARD).criteria


def test_windows_after_an_incomplete_shard_are_not_covered(folder):
    """Growing broke off: one process had made the fourth shard, the other not yet the third again."""
    for part in (FEATURES, "l2_norm"):
        for index in range(3):
            write(folder, part, index, windows=10)
    for index in (2, 3):
        write(folder, FEATURES, index)
    write(folder, "l2_norm", 3)
    finished(folder)
    manifest = read_manifest(folder)
    assert covered(manifest, FEATURES) == WINDOWS
    assert covered(manifest, "l2_norm") == 10


def test_a_store_reads_as_before_while_it_grows(folder):
    """The last shard has been made again with more windows; the manifest still tells of the fewer."""
    for part in (FEATURES, "l2_norm"):
        for index in range(3):
            write(folder, part, index, windows=10)
    before = finished(folder)
    numbers = {rows: torch.arange(before.count(rows)) for rows in ("window", "token")}
    scores = {rows: before.read(rows, "l2_norm", "head", of) for rows, of in numbers.items()}
    for part in (FEATURES, "l2_norm"):
        for index in (2, 3):
            write(folder, part, index)
        after = Traces(folder, 10)
        assert after.count("token") == sum(TOKENS[:10])
        for rows, of in numbers.items():
            assert torch.equal(after.read(rows, "l2_norm", "head", of), scores[rows])
            assert torch.equal(after.read(rows, FEATURES, "window", of).max(), torch.tensor(9))


MEASURE = """
import sys, torch
from pathlib import Path
from shadow.jobs.memory import peak_memory
from shadow.traces.store import Traces
def peak():
    return round(1e9 * peak_memory())
store = Traces(Path(sys.argv[1]))
chosen = torch.tensor([0, 777, 1500, 1999])
store.read("window", "features", "window", chosen)
before = peak()
for kind in ("head", "neuron"):
    store.read("window", "l2_norm", kind, chosen)
few = peak()
store.read("window", "l2_norm", "neuron", torch.arange(2000))
print(few - before, peak() - before)
"""


@pytest.mark.slow
def test_reading_a_few_rows_of_a_large_store_does_not_load_it(folder, root):
    """64 MB in two files: a few rows cost pages around them; reading all of them is what this can see."""
    scores = torch.rand(1000, 2, 8_000).half()
    ones = torch.ones(1000, 2)
    for index in range(2):
        windows = torch.arange(1000 * index, 1000 * index + 1000)
        write_shard(folder, KEY, FEATURES, index, (1000, 0), {"window/window": windows})
        arrays = {"window/neuron": scores, "window/neuron/scale": ones}
        arrays |= {"window/head": scores[..., :9].contiguous(), "window/head/scale": ones.clone()}
        write_shard(folder, KEY, "l2_norm", index, (1000, 0), arrays)
    settings = {"traces": {"shard_windows": 1000}}
    finish(folder, settings, {"taps": []}, {}, [(file, inspect(file, KEY)) for file in files_of(folder)])
    size = sum(file.stat().st_size for file in files_of(folder))
    assert size > 60e6
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder)], cwd=root, capture_output=True, text=True, check=True
    )
    few, everything = map(int, done.stdout.split())
    assert few < 20e6
    assert everything > size


# Writing


def test_the_manifest_lists_each_shard_of_each_part_in_order(store):
    manifest = read_manifest(store.folder)
    assert manifest["settings"] == {"traces": {"shard_windows": SHARD}}
    assert {name: manifest[name] for name in FACTS} == FACTS
    assert manifest["sizes"] == {"9": 9, str(WINDOWS): WINDOWS}
    assert set(manifest["parts"]) == set(PARTS)
    ends = [*accumulate(TOKENS)]
    for part, lines in manifest["parts"].items():
        assert [line["windows"] for line in lines] == [4, 4, 4, 2]
        assert sum(line["tokens"] for line in lines) == (0 if part == "nwot" else ends[-1])
        assert [line["file"] for line in lines] == [
            f"{part}-{index:05d}-rank0of1.safetensors" for index in range(4)
        ]
        for line in lines:
            assert line["sha256"] == verify(store.folder / line["file"], KEY).sha256
        assert covered(manifest, part) == WINDOWS
    assert covered(manifest, "grad_norm") == 0


def test_nothing_but_shards_and_manifest_is_left(store):
    names = {path.name for path in store.folder.iterdir()}
    assert names == {"manifest.json", *(file.name for file in files_of(store.folder))}
    assert len(names) == 1 + 4 * len(PARTS)


def test_a_folder_without_a_manifest_has_none(tmp_path):
    assert read_manifest(tmp_path) is None
    assert read_manifest(tmp_path / "nowhere") is None


def test_writing_the_same_arrays_gives_the_same_bytes(tmp_path):
    arrays = arrays_of("l2_norm", 0, SHARD, "ranks")
    turned = dict(reversed(arrays.items()))
    files = [
        write_shard(tmp_path / name, KEY, "l2_norm", 0, (4, 10), chosen)
        for name, chosen in (("a", arrays), ("b", arrays), ("c", turned))
    ]
    assert len({file.read_bytes() for file in files}) == 1


def test_a_shard_says_what_it_is(file):
    for read in (inspect, verify):
        shard = read(file, KEY)
        assert (shard.store, shard.part, shard.index) == (KEY, "l2_norm", 1)
        assert (shard.windows, shard.tokens) == (SHARD, sum(TOKENS[4:8]))


def test_the_key_of_a_store_is_the_end_of_its_folders_name():
    assert store_of(Path("artifacts/traces/opt-1.3b-my-text-0a1b2c3d4e")) == "0a1b2c3d4e"


def test_a_file_is_named_by_the_process_that_wrote_it_and_replaces_those_of_others(folder):
    """A run on two devices that broke off, gone on with on one: no shard is there twice."""
    arrays = arrays_of("l2_norm", 0, SHARD, "float16")
    one = write_shard(folder, KEY, "l2_norm", 0, (4, 10), arrays, rank=1, world=2)
    other = write_shard(folder, KEY, "l2_norm", 1, (4, 10), arrays, rank=0, world=2)
    another = write_shard(folder, KEY, "fisher", 0, (4, 10), arrays, rank=1, world=2)
    assert one.name == "l2_norm-00000-rank1of2.safetensors"
    again = write_shard(folder, KEY, "l2_norm", 0, (4, 10), arrays)
    assert again.name == "l2_norm-00000-rank0of1.safetensors"
    assert set(files_of(folder)) == {again, other, another}


def test_files_that_are_not_named_as_shards_are_not_taken_for_any(folder, file):
    for name in ("l2_norm-1-rank0of1.safetensors", "model.safetensors", f".{file.name}.part", "notes.txt"):
        (folder / name).write_bytes(b"other")
    assert files_of(folder) == [file]
    assert files_of(folder / "nowhere") == []


def test_a_write_that_is_killed_leaves_no_shard(folder, kill_while_writing):
    name = "l2_norm-00000-rank0of1.safetensors"
    kill_while_writing(folder / name)
    assert files_of(folder) == []
    write(folder, "l2_norm", 0)  # takes over what the kill left
    assert [path.name for path in folder.iterdir()] == [name]


# Damage

PLACES = {
    "length of the header, low": rb"^",
    "length of the header, high": rb"(?s)^.{7}",
    "opening brace": rb"(?<=^.{8})\{",
    "__metadata__": rb"metadata__",
    "store": rb"(?<=store\\\": \\\")0",
    "part": rb"(?<=part\\\": \\\")l",
    "index": rb"(?<=index\\\": )1",
    "windows": rb"(?<=windows\\\": )4",
    "tokens": rb"(?<=tokens\\\": )1",
    "name of a number": rb"windows\\",
    "checksum": rb"(?<=sha256\\\": \\\")",
    "name of an array": rb"window/head/scale",
    "dtype of an array": rb"(?<=\"dtype\":\")",
    "shape of an array": rb"(?<=\"shape\":\[)",
    "place of an array": rb"(?<=\"data_offsets\":\[)",
}


def flip(file: Path, place: int, bit: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


@pytest.mark.parametrize("bit", [0, 3, 6])
@pytest.mark.parametrize("place", list(PLACES))
def test_a_flipped_bit_in_the_header_is_found(file, place, bit):
    found = re.search(PLACES[place], file.read_bytes())
    assert found is not None
    flip(file, found.start(), bit)
    with pytest.raises(ValueError, match=r"^its? "):
        verify(file, KEY)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["first", "middle", "last"])
def test_a_flipped_bit_in_the_data_is_found(file, share):
    size = file.stat().st_size
    start = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    flip(file, start + round(share * (size - 1 - start)))
    assert inspect(file, KEY).part == "l2_norm"  # which does not look at the data
    with pytest.raises(ValueError, match="does not match its checksum"):
        verify(file, KEY)


@pytest.mark.parametrize("part", [FEATURES, "nwot"])
def test_a_flipped_bit_anywhere_is_found(folder, part):
    """50 places and bits, drawn."""
    file = write(folder, part, 0)
    sound, draw = file.read_bytes(), random.Random(0)
    missed = []
    for _ in range(50):
        file.write_bytes(sound)
        place, bit = draw.randrange(len(sound)), draw.randrange(8)
        flip(file, place, bit)
        try:
            verify(file, KEY)
            missed.append((place, bit, sound[place - 20 : place + 1]))
        except ValueError:
            pass
    assert missed == []


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.5, 0.9999])
def test_a_file_that_was_cut_short_is_found(file, share):
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    for read in (inspect, verify):
        with pytest.raises(ValueError, match="no readable shard"):
            read(file, KEY)


def test_a_file_that_goes_on_after_its_end_is_found(file):
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="no readable shard"):
        verify(file, KEY)


@pytest.mark.parametrize(
    "name",
    [
        "l2_norm-00000-rank0of1.safetensors",
        "l2_norm-00002-rank0of1.safetensors",
        "fisher-00001-rank0of1.safetensors",
        "other.safetensors",
    ],
)
def test_a_file_that_was_renamed_is_foreign(file, name):
    moved = file.rename(file.with_name(name))
    for read in (inspect, verify):
        with pytest.raises(ValueError, match=rf"belongs elsewhere: {KEY}, l2_norm 1"):
            read(moved, KEY)


def test_a_file_of_another_store_is_foreign(file):
    for read in (inspect, verify):
        with pytest.raises(ValueError, match=f"belongs elsewhere: {KEY}"):
            read(file, "9876543210")


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"shard": "nothing"},
        {"shard": "[1, 2]"},
        {"shard": '{"part": "l2_norm"}'},
        {"other": "entry"},
    ],
    ids=str,
)
def test_a_safetensors_file_that_is_no_shard_is_told_apart(file, metadata):
    save_file({"weight": torch.ones(2)}, file, metadata)
    for read in (inspect, verify):
        with pytest.raises(ValueError, match="no readable shard"):
            read(file, KEY)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"text\n" * 50], ids=["empty", "zeros", "text"])
def test_any_other_file_is_told_apart(file, content):
    file.write_bytes(content)
    with pytest.raises(ValueError, match="no readable shard"):
        verify(file, KEY)


def test_a_checksum_tells_names_shapes_types_and_values_apart():
    values = torch.arange(6, dtype=torch.int32)
    arrays = [
        {"a": values},
        {"b": values},
        {"a": values.view(2, 3)},
        {"a": values.view(torch.uint8).view(torch.float32)},
        {"a": values.flip(0)},
        {"a": values[:3], "b": values[3:]},
    ]
    assert len({digest(each) for each in arrays}) == len(arrays)
    assert digest({"a": values, "b": values}) == digest({"b": values, "a": values})
    assert digest({"a": values.view(2, 3).T}) == digest({"a": values.view(2, 3).T.contiguous()})
