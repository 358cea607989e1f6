"""What a predictor learns from: rows of a trace store, split by window, in an order that resuming repeats."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from shadow.errors import UserError
from shadow.models.sites import KINDS, Kind
from shadow.terminal.bars import stage
from shadow.traces.shards import EMBEDDINGS, FEATURES, Rows
from shadow.traces.store import Traces


class Sample(NamedTuple):
    """states: [N, taps, E]; scores: the criterion's, float32 [N, S, U] of the scored layers.

    Of whole windows, states: [N, T, E] at the one tap, and inside: bool [N, T], the positions that are read.
    """

    states: Tensor
    scores: dict[Kind, Tensor]
    inside: Tensor | None = None


class Reading(NamedTuple):
    """Which rows of a store a predictor learns from, and what it reads of them.

    state: `state` (a token row's own), or for window rows `prompt/last`, `prompt/mean`, `sequence/last`,
    `sequence/mean`; part: FEATURES or CONTEXTS. Of EMBEDDINGS all positions of the `prompt` or `sequence`.
    """

    rows: Rows
    state: str
    part: str


class TraceRows(Dataset):
    """Rows of the first store, then the same rows of each other one: the states are that store's own, and
    the scores are always the first one's, of the layers from the first tap + ahead on."""

    def __init__(
        self,
        stores: Sequence[Traces],
        indices: Tensor,
        criterion: str,
        taps: list[int],
        reading: Reading,
        ahead: int = 0,
        kinds: Sequence[Kind] = KINDS,
    ) -> None:
        self.stores, self.indices, self.criterion, self.kinds = stores, indices, criterion, kinds
        self.reading, self.first = reading, taps[0] + ahead
        self.taps = [torch.tensor([store.taps.index(tap) for tap in taps]) for store in stores]

    def __len__(self) -> int:
        return len(self.indices) * len(self.stores)

    def __getitems__(self, chosen: list[int]) -> Sample:
        """The chosen rows, in the order of the store, which then reads them at least cost."""
        numbers = torch.tensor(chosen)
        numbers = numbers[(numbers % len(self.indices)).argsort(stable=True)]
        store_of, rows = numbers // len(self.indices), self.indices[numbers % len(self.indices)]
        if self.reading.part == EMBEDDINGS:
            states, inside = self.stores[0].read_embeddings(rows, self.reading.state)
            return Sample(states, self._scores(rows), inside)
        return Sample(self._states(store_of, rows), self._scores(rows))

    def _states(self, store_of: Tensor, rows: Tensor) -> Tensor:
        """Each row's, [N, taps, E], from the store of its number."""
        states: Tensor | None = None
        for number in store_of.unique().tolist():
            here = store_of == number
            found = self.states_in(number, rows[here])
            if states is None:
                states = torch.empty(len(rows), *found.shape[1:])
            states[here] = found
        assert states is not None, "no rows asked for"
        return states

    def states_in(self, number: int, rows: Tensor) -> Tensor:
        """-> [N, taps, E], from the store of this number."""
        found = self.stores[number].read(self.reading.rows, self.reading.part, self.reading.state, rows)
        return found[:, self.taps[number]]

    def in_other_stores(self, rows: Tensor) -> list[Tensor]:
        """[N, taps, E] from each store but the first."""
        return [self.states_in(number, rows) for number in range(1, len(self.stores))]

    def _scores(self, rows: Tensor) -> dict[Kind, Tensor]:
        return {
            kind: self.stores[0].read(self.reading.rows, self.criterion, kind, rows)[:, self.first :]
            for kind in self.kinds
        }


class EpochShuffle(Sampler):
    """A shuffle by seed and epoch alone, so that a resumed fit sees the batches of an unbroken one.

    Of `world` processes each takes every other row, so that their batches together are those of one process.
    Where the rows do not go round evenly, the last few of the shuffle are left out: all must step as often.
    """

    def __init__(self, count: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.count, self.seed, self.rank, self.world, self.epoch = count, seed, rank, world, 0

    def set_epoch(self, epoch: int) -> None:  # called by Lightning
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count // self.world

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        rows = torch.randperm(self.count, generator=draw)[: len(self) * self.world]
        yield from rows[self.rank :: self.world].tolist()


class TraceData(pl.LightningDataModule):
    """Token or window rows, split into training and validation by *window*.

    stores: the first one has the scores; the others have other states of the same rows (`TraceRows`).
    """

    def __init__(
        self,
        stores: Sequence[Traces],
        criterion: str,
        taps: list[int],
        reading: Reading,
        val_share: float,
        batch_size: int,
        seed: int,
        ahead: int = 0,
        kinds: Sequence[Kind] = KINDS,
    ) -> None:
        super().__init__()
        traces = stores[0]
        traces.require(criterion)
        missing = [tap for tap in taps if tap not in traces.taps]
        if missing:
            raise UserError(f"predictor.taps={taps} must be among traces.taps={traces.taps}")
        windows = torch.randperm(traces.count("window"), generator=torch.Generator().manual_seed(seed))
        n_val = round(val_share * len(windows))
        if not 0 < n_val < len(windows):
            raise UserError(
                f"predictor.val_share must leave at least one of the {len(windows)} windows on either side, "
                f"got {val_share}"
            )
        owner = traces.read(reading.rows, FEATURES, "window", torch.arange(traces.count(reading.rows)))
        in_val = torch.isin(owner, windows[:n_val])
        numbers = torch.arange(len(owner))
        self.train = TraceRows(stores, numbers[~in_val], criterion, taps, reading, ahead, kinds)
        self.val = TraceRows(stores, numbers[in_val], criterion, taps, reading, ahead, kinds)
        self.batch_size, self.seed = batch_size, seed

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        sampler = EpochShuffle(len(self.train), self.seed, rank, world)
        return DataLoader(self.train, batch_size=self.batch_size // world, sampler=sampler, collate_fn=_as_is)

    def passed(self, name: str) -> Iterator[tuple[Tensor, Sample]]:
        """The training rows of the first store, once and in order: their numbers there, and what they hold;
        with a progress bar of this name."""
        rows = self.train
        with stage(name, len(rows.indices), "rows") as advance:
            for chosen in torch.arange(len(rows.indices)).split(self.batch_size):
                yield rows.indices[chosen], rows.__getitems__(chosen.tolist())
                advance(len(chosen))

    def val_dataloader(self) -> DataLoader:
        """All of it in each process: what is reported does not depend on their number. In one shuffled order:
        the first batches, which may be all that are asked for, are a sample of every store."""
        order = torch.randperm(len(self.val), generator=torch.Generator().manual_seed(self.seed)).tolist()
        return DataLoader(self.val, batch_size=self.batch_size, sampler=order, collate_fn=_as_is)


def _as_is(sample: Any) -> Any:
    return sample
