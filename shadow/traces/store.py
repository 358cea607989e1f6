"""Reading a trace store, memory-mapped."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from shadow.errors import UserError
from shadow.traces.packing import decode, from_bits, unpack
from shadow.traces.shards import (
    EMBEDDINGS,
    FEATURES,
    NO_CRITERION,
    SUFFIXES,
    Rows,
    covered,
    read_manifest,
    require_numbers,
)


class Traces:
    """The first `windows` windows of a store, memory-mapped: only the rows that are asked for are read."""

    def __init__(self, folder: Path, windows: int | None = None) -> None:
        manifest = read_manifest(folder)
        assert manifest is not None, f"{folder} has no manifest"
        self.folder, self.manifest = folder, manifest
        self.taps: list[int] = manifest["taps"]
        self.windows = covered(manifest, FEATURES) if windows is None else windows
        self._open: dict[tuple[str, int], safe_open] = {}
        self._arrays: dict[tuple[str, int, str], Tensor] = {}
        shards, before = manifest["parts"][FEATURES], 0
        # rows up to the end of each shard
        self._ends: dict[Rows, list[int]] = {"window": [], "token": [], "shard": []}
        for index, shard in enumerate(shards):
            if before >= self.windows:
                break
            inside = min(shard["windows"], self.windows - before)
            tokens = shard["tokens"]
            if inside < shard["windows"]:
                tokens = int((self._array(FEATURES, index, "token/window") < self.windows).sum())
            before += inside
            self._ends["window"].append(before)
            self._ends["token"].append(tokens + (self._ends["token"] or [0])[-1])
            self._ends["shard"].append(index + 1)

    @property
    def criteria(self) -> list[str]:
        """Those collected for all of these windows."""
        return [
            part
            for part in self.manifest["parts"]
            if part not in NO_CRITERION and covered(self.manifest, part) >= self.windows
        ]

    def count(self, rows: Rows) -> int:
        return self._ends[rows][-1]

    def require(self, criterion: str) -> None:
        if criterion not in self.criteria:
            raise UserError(
                f"criterion={criterion} is not in these traces, which have {self.criteria}: "
                f"add it with traces.criteria=[{criterion}]"
            )

    def read(self, rows: Rows, part: str, name: str, indices: Tensor) -> Tensor:
        """-> [len(indices), ...]: the array `name` of a part, in float32 or its own integer type."""
        places: list[Tensor] = []
        pieces: dict[str, list[Tensor]] = defaultdict(list)
        for shard, here, local in self._locate(rows, indices):
            places.append(here.nonzero()[:, 0])
            for suffix in SUFFIXES:
                if self._has(part, shard, f"{rows}/{name}{suffix}"):
                    pieces[suffix].append(self._array(part, shard, f"{rows}/{name}{suffix}")[local])
        assert places, "no rows asked for"
        # still packed, at half the bytes
        arrays = {suffix: torch.cat(found) for suffix, found in pieces.items()}
        values = decode(arrays) if len(arrays) > 1 else arrays[""]
        require_numbers(self.folder, f"{part} {name}", values)
        place = torch.cat(places)
        return values if place.equal(torch.arange(len(place))) else values[place.argsort()]

    def read_embeddings(self, indices: Tensor, of: str) -> tuple[Tensor, Tensor]:
        """of: `prompt` or `sequence`, of each window -> float32 [N, T, E], padded with 0 to the longest, and
        bool [N, T], True at what is no padding."""
        counts = self.read("window", EMBEDDINGS, {"prompt": "prompt", "sequence": "length"}[of], indices)
        states: list[Tensor] = [torch.zeros(0)] * len(indices)
        for shard, here, local in self._locate("window", indices):
            lengths = self._array(EMBEDDINGS, shard, "window/length")
            starts = lengths.cumsum(0) - lengths
            packed = self._array(EMBEDDINGS, shard, "position/state")
            scale = self._array(EMBEDDINGS, shard, "position/state/scale")
            for place, start in zip(here.nonzero()[:, 0].tolist(), starts[local].tolist(), strict=True):
                read = slice(start, start + int(counts[place]))
                states[place] = unpack(packed[read], scale[read])
        padded = pad_sequence(states, batch_first=True)
        return padded, torch.arange(padded.shape[1]) < counts[:, None]

    def read_top(self, rows: Rows, criterion: str, kind: str, indices: Tensor) -> Tensor:
        """-> bool [len(indices), L, U]: which units are the best share `traces.top`, if that was kept."""
        units = self.manifest["units"][kind]
        found = torch.empty(len(indices), self.manifest["layers"], units, dtype=torch.bool)
        for shard, here, local in self._locate(rows, indices):
            name = f"{rows}/{kind}/top"
            if not self._has(criterion, shard, name):
                raise UserError(f"{self.folder} keeps no bits of the best units: collect with traces.top=0.5")
            found[here] = from_bits(self._array(criterion, shard, name)[local], units)
        return found

    def _locate(self, rows: Rows, indices: Tensor) -> Iterable[tuple[int, Tensor, Tensor]]:
        """-> shard, bool where in `indices`, and those rows' numbers within the shard."""
        ends = torch.tensor(self._ends[rows])
        which = torch.searchsorted(ends, indices, right=True)
        for shard in which.unique().tolist():
            here = which == shard
            yield shard, here, indices[here] - (int(ends[shard - 1]) if shard else 0)

    def _file(self, part: str, index: int) -> safe_open:
        if (part, index) not in self._open:
            name = self.manifest["parts"][part][index]["file"]
            self._open[part, index] = safe_open(self.folder / name, "pt")
        return self._open[part, index]

    def _has(self, part: str, index: int, name: str) -> bool:
        return name in self._file(part, index).keys()  # noqa: SIM118

    def _array(self, part: str, index: int, name: str) -> Tensor:
        if (part, index, name) not in self._arrays:
            self._arrays[part, index, name] = self._file(part, index).get_tensor(name)
        return self._arrays[part, index, name]

    def static_scores(self, criterion: str, kind: str) -> Tensor:
        """-> [L, U]: the mean over the windows, or of a statistic the mean over whole shards."""
        self.require(criterion)
        rows: Rows = "window" if self._has(criterion, 0, f"window/{kind}") else "shard"
        count = self.count(rows)
        if rows == "shard":  # the last may be of fewer windows, and is another statistic
            count = self.windows // self.manifest["settings"]["traces"]["shard_windows"]
        total: Tensor | None = None
        for chunk in torch.arange(count).split(64):
            part = self.read(rows, criterion, kind, chunk).double().sum(0)
            total = part if total is None else total + part
        assert total is not None
        return (total / count).float()
