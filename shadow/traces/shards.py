"""Shards: what collection leaves of a trace store on disk.

A store holds parts - the features, and one for each criterion - cut into shards of so many windows. Each
shard of a part is a safetensors file that says whose it is and carries a checksum, so that criteria and
windows can be added, several processes can write, and what is damaged is made again by itself. One part, the
means of activations, is of the first shard's windows alone, so that adding windows does not change them.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from shadow.artifacts.files import write_json, writing
from shadow.errors import UserError
from shadow.models.sites import KINDS, SiteKey

log = logging.getLogger(__name__)

Rows = Literal["window", "token", "shard"]
FEATURES, MEANS = "features", "means"
CONTEXTS = "contexts"  # what heads give out, for the paper's predictors
EMBEDDINGS = "embeddings"  # what the first layer reads at every position, of windows of any length
NO_CRITERION = (FEATURES, MEANS, CONTEXTS, EMBEDDINGS)  # the parts that are no criterion's scores
SUFFIXES = ("", "/scale", "/knots", "/knots/scale")
NAME = re.compile(r"(?P<part>[a-z0-9_]+)-(?P<index>\d{5})-rank\d+of\d+\.safetensors")


@dataclass(frozen=True)
class Shard:
    """One file of a store. windows, tokens: how many rows of either; sha256: of these and its arrays."""

    store: str
    part: str
    index: int
    windows: int
    tokens: int
    sha256: str


def digest(tensors: Mapping[str, Tensor], rows: tuple[int, int] = (0, 0)) -> str:
    found = hashlib.sha256(f"{rows}".encode())
    for name in sorted(tensors):
        values = tensors[name].contiguous()
        found.update(f"{name} {values.dtype} {list(values.shape)}".encode())
        found.update(values.numpy().data)
    return found.hexdigest()


def write_shard(
    folder: Path,
    store: str,
    part: str,
    index: int,
    rows: tuple[int, int],
    tensors: Mapping[str, Tensor],
    rank: int = 0,
    world: int = 1,
) -> Path:
    """store: the store's key; rows: windows and tokens; rank, world: of the writing process, for the name."""
    shard = Shard(store, part, index, *rows, digest(tensors, rows))
    file = folder / f"{part}-{index:05d}-rank{rank}of{world}.safetensors"
    with writing(file) as unfinished:
        # one entry: several would be written in an order that changes from run to run
        metadata = {"shard": json.dumps(asdict(shard), sort_keys=True)}
        unfinished.write_bytes(save(dict(tensors), metadata))  # save_file has temporary files of its own
    for other in folder.glob(f"{part}-{index:05d}-rank*.safetensors"):
        if other != file:
            other.unlink()  # fewer windows, or written by other processes
    return file


def inspect(file: Path, store: str) -> Shard:
    """What a file says it is; a ValueError if it is not a shard of this store."""
    try:
        with safe_open(file, "pt") as opened:
            shard = Shard(**json.loads((opened.metadata() or {})["shard"]))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"it is no readable shard ({error})") from error
    named = NAME.fullmatch(file.name)
    if named is None or (shard.store, shard.part, shard.index) != (store, named["part"], int(named["index"])):
        raise ValueError(f"it belongs elsewhere: {shard.store}, {shard.part} {shard.index}")
    return shard


def verify(file: Path, store: str) -> Shard:
    """As `inspect`, and compares the checksum."""
    shard = inspect(file, store)
    try:
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            found = digest(tensors, (shard.windows, shard.tokens))
    except SafetensorError as error:
        raise ValueError(f"it is damaged ({error})") from error
    if found != shard.sha256:
        raise ValueError("its content does not match its checksum")
    return shard


def store_of(folder: Path) -> str:
    """The key of the store in this folder, which each of its shards names: the end of the folder's name."""
    return folder.name.rpartition("-")[2]


def files_of(folder: Path) -> list[Path]:
    """Every file of a store that is named as a shard, in order."""
    return sorted(file for file in folder.glob("*.safetensors") if NAME.fullmatch(file.name))


def finish(
    folder: Path, settings: dict, facts: dict, sizes: Mapping[str, int], shards: Iterable[tuple[Path, Shard]]
) -> None:
    """Write the manifest: what the store holds, why, and each shard's checksum.

    sizes: how many windows each asked-for count of examples came to.
    """
    listed: dict[str, list[dict]] = {}
    for file, shard in sorted(shards, key=lambda found: (found[1].part, found[1].index)):
        listed.setdefault(shard.part, []).append(
            {
                "file": file.name,
                "index": shard.index,
                "windows": shard.windows,
                "tokens": shard.tokens,
                "sha256": shard.sha256,
            }
        )
    content = {"settings": settings, "sizes": dict(sizes), "parts": listed, **facts}
    write_json(folder / "manifest.json", content)


def read_manifest(folder: Path) -> dict | None:
    """None if there is none that can be read: the shards say themselves what they are."""
    file = folder / "manifest.json"
    if not file.is_file():
        return None
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        for listed in manifest["parts"].values():
            for shard in listed:
                if NAME.fullmatch(shard["file"]) is None:  # a path would be followed
                    raise ValueError(f"{shard['file']!r} is no shard's name")
        return manifest
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # half a JSON, or not even text
        log.warning("%s cannot be read (%s): the store's shards are listed again", file, error)
        return None


def covered(manifest: dict, part: str) -> int:
    """Windows that the store holds of this part, from the first on without a gap."""
    size, total = manifest["settings"]["traces"]["shard_windows"], 0
    for index, shard in enumerate(manifest["parts"].get(part, [])):
        if shard["index"] != index or total < index * size:
            break
        total += shard["windows"]
    return total


def reach(part: str, windows: int, shard_windows: int) -> int:
    """How many windows a part is of, in a store of so many."""
    return min(windows, shard_windows) if part == MEANS else windows


def read_means(folder: Path) -> dict[SiteKey, Tensor]:
    """-> float32 [U, D] of each layer and kind: a site's activation, over all tokens of the first shard."""
    manifest = read_manifest(folder)
    assert manifest is not None, f"{folder} has no manifest"
    with safe_open(folder / manifest["parts"][MEANS][0]["file"], "pt") as opened:
        of_kinds = {kind: opened.get_tensor(f"mean/{kind}") for kind in KINDS}
    for kind, means in of_kinds.items():
        require_numbers(folder, f"{MEANS} of {kind}s", means)
    return {(layer, kind): mean for kind, means in of_kinds.items() for layer, mean in enumerate(means)}


def require_numbers(folder: Path, what: str, values: Tensor) -> None:
    if values.is_floating_point() and not values.isfinite().all():
        raise UserError(f"{folder} holds {what} that are not finite: remove the folder, and collect again")
