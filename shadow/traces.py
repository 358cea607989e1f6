"""The trace store: what collection leaves on disk, shard by shard, and reading it without loading it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from shadow.artifacts import write_json, writing
from shadow.errors import UserError

Rows = Literal["window", "token"]
POOLED = ("prompt/last", "prompt/mean", "sequence/last", "sequence/mean")  # the states kept with a window row


def pack(values: Tensor) -> tuple[Tensor, Tensor]:
    """values: float32 [..., U] -> float16 [..., U] and float32 scales [...]: factors of values, to 11 bits.

    The scale is the power of two that brings a row's largest value near 2**14: squared gradients survive.
    """
    if not torch.isfinite(values).all():
        raise ValueError(
            "scores or states are not finite: the model overflows in its dtype (try model.dtype=float32)"
        )
    _, exponent = torch.frexp(values.abs().amax(-1))
    scale = torch.ldexp(
        torch.ones_like(values[..., 0]), (exponent - 14).clamp(min=-126)
    )  # below, floats run out
    return (values / scale[..., None]).half(), scale


def shard_name(index: int) -> str:
    return f"shard-{index:05d}.safetensors"


def finished_shards(folder: Path) -> int:
    """How many shards stand there without a gap from the first on."""
    count = 0
    while (folder / shard_name(count)).is_file():
        count += 1
    return count


def write_shard(folder: Path, index: int, arrays: Mapping[str, Tensor]) -> None:
    """arrays: float32 values are packed; integer ones are kept as they are."""
    tensors: dict[str, Tensor] = {}
    for name, values in arrays.items():
        if values.dtype == torch.float32:
            tensors[name], tensors[f"{name}/scale"] = pack(values)
        else:
            tensors[name] = values
    with writing(folder / shard_name(index)) as unfinished:
        save_file(tensors, unfinished)


def finish(folder: Path, settings: dict, facts: dict) -> None:
    """Write the manifest, which makes the store complete: what it holds, why, and each shard's checksum."""
    shards = []
    for index in range(finished_shards(folder)):
        file = folder / shard_name(index)
        with safe_open(file, "pt") as shard:
            rows = {kind: shard.get_slice(f"{kind}/window").get_shape()[0] for kind in ("window", "token")}
        with file.open("rb") as stream:
            shards.append({"rows": rows, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()})
    write_json(folder / "manifest.json", {"settings": settings, "shards": shards, **facts})


class Traces:
    """A finished store, memory-mapped: only the rows that are asked for are read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = json.loads((folder / "manifest.json").read_text())
        self.taps: list[int] = self.manifest["taps"]
        self.criteria: list[str] = self.manifest["criteria"]
        self._shards = [safe_open(folder / shard_name(i), "pt") for i in range(len(self.manifest["shards"]))]
        self._open: dict[tuple[int, str], Tensor] = {}

    def count(self, rows: Rows) -> int:
        return sum(shard["rows"][rows] for shard in self.manifest["shards"])

    def require(self, criterion: str) -> None:
        if criterion not in self.criteria:
            raise UserError(
                f"criterion={criterion} is not in these traces, which have traces.criteria={self.criteria}"
            )

    def read(self, rows: Rows, name: str, indices: Tensor) -> Tensor:
        """The array `name` at these rows, in float32 (or its own integer type): [len(indices), ...]."""
        sizes = torch.tensor([shard["rows"][rows] for shard in self.manifest["shards"]])
        ends = sizes.cumsum(0)
        which = torch.searchsorted(ends, indices, right=True)
        found: Tensor | None = None
        for shard in which.unique().tolist():
            here = which == shard
            local = indices[here] - (ends[shard] - sizes[shard])
            values = self._array(shard, f"{rows}/{name}")[local]
            if values.dtype == torch.float16:
                values = values.float() * self._array(shard, f"{rows}/{name}/scale")[local][..., None]
            if found is None:
                found = torch.empty(len(indices), *values.shape[1:], dtype=values.dtype)
            found[here] = values
        assert found is not None, "no rows asked for"
        return found

    def _array(self, shard: int, name: str) -> Tensor:
        if (shard, name) not in self._open:
            self._open[shard, name] = self._shards[shard].get_tensor(name)
        return self._open[shard, name]

    def mean_window_scores(self, criterion: str, kind: str) -> Tensor:
        """Mean over all calibration windows -> [L, U]: the static scores."""
        self.require(criterion)
        total: Tensor | None = None
        for row in torch.arange(self.count("window")).split(64):
            part = self.read("window", f"{criterion}/{kind}", row).double().sum(0)
            total = part if total is None else total + part
        assert total is not None
        return (total / self.count("window")).float()
