"""Calibration data: where examples come from, how many, and how long."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from shadow.data import texts
from shadow.data.batches import Batch, Example, collate
from shadow.data.text_files import read_documents
from shadow.data.texts import Part
from shadow.errors import UserError
from shadow.models.load import LM


class CalibrationData(Protocol):
    def examples(self, lm: LM) -> list[Example]:
        """What criteria are collected on; disjoint from `documents("eval")` and from what tasks evaluate.

        More examples of the same data begin with the fewer: a store grows.
        """
        ...

    def documents(self, part: Part) -> list[str]:
        """Running text of one part."""
        ...

    def fingerprint(self) -> str:
        """Names the content, so that changed files do not pass for the old ones."""
        ...


@dataclass(frozen=True)
class BuiltinText:
    """Windows of the language help that ships with Python: no network, no files."""

    windows: int
    tokens: int
    prompt_share: float
    eval_share: float
    split_seed: int
    seed: int

    def documents(self, part: Part) -> list[str]:
        return texts.builtin_topics(part, self.eval_share, self.split_seed)

    def examples(self, lm: LM) -> list[Example]:
        return windows_of(self, lm)

    def fingerprint(self) -> str:
        return texts.fingerprint(self.documents("train"))


@dataclass(frozen=True)
class TextFiles:
    """Windows of the user's text: one file for calibration, another for evaluation."""

    train: str | None
    eval: str | None
    column: str
    windows: int
    tokens: int
    prompt_share: float
    seed: int

    def documents(self, part: Part) -> list[str]:
        file = self.train if part == "train" else self.eval
        return read_documents(f"data.{part}", file, self.column)

    def examples(self, lm: LM) -> list[Example]:
        return windows_of(self, lm)

    def fingerprint(self) -> str:
        return texts.fingerprint(self.documents("train"))


def windows_of(data: BuiltinText | TextFiles, lm: LM) -> list[Example]:
    return texts.text_windows(
        data.documents("train"),
        lm.tokenizer,
        data.windows,
        data.tokens,
        data.prompt_share,
        data.seed,
        "data.windows",
    )


@dataclass(frozen=True)
class TaskPrompts:
    """Few-shot prompts of lm-eval tasks with their gold answers, from the train split."""

    tasks: Sequence[str]
    root: str | None
    examples_per_task: int
    num_fewshot: int
    max_tokens: int
    seed: int

    def documents(self, part: Part) -> list[str]:
        raise UserError(
            "data=tasks has no running text for measure=perplexity or measure=choices: use measure=tasks, or "
            "give a file of text with measure.text=/some/file"
        )

    def examples(self, lm: LM) -> list[Example]:
        from shadow.data.tasks import few_shot_examples  # lm-eval takes seconds to import

        return few_shot_examples(
            lm,
            self.tasks,
            self.root,
            self.examples_per_task,
            self.num_fewshot,
            min(self.max_tokens, lm.model.config.get_text_config().max_position_embeddings),
            self.seed,
        )

    def fingerprint(self) -> str:
        if not self.root:
            return "hub"
        files = [Path(self.root).expanduser() / task / "train.jsonl" for task in self.tasks]
        return texts.fingerprint([file.read_text(encoding="utf-8") for file in files if file.is_file()])


class Numbered(NamedTuple):
    """Consecutive windows of one shard, the first one's number, and the parts that are made of them.

    kept: of these what their store misses, nothing where a process only runs along with the others.
    """

    first: int
    batch: Batch
    parts: list[str]
    kept: list[str]


class CalibrationExamples(pl.LightningDataModule):
    """For `Trainer.predict`: the windows of the shards that miss anything, shared out among the processes.

    missing: the parts that each shard misses. in_step: all processes make as many passes, of the same kind;
    who has fewer windows runs along with some that are another's.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        shard_windows: int,
        missing: Mapping[int, list[str]],
        in_step: bool = False,
    ) -> None:
        super().__init__()
        self.examples, self.batch_size, self.shard_windows = examples, batch_size, shard_windows
        self.missing, self.in_step = missing, in_step
        self.allow_zero_length_dataloader_with_multiple_devices = (
            True  # there may be fewer shards than processes
        )

    def predict_dataloader(self) -> DataLoader:
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        shares = [self._share(process, world) for process in range(world)]
        served = shares[rank]
        if self.in_step:
            first = min(self.missing, default=0) * self.shard_windows
            served = served + [(first, [])] * (max(map(len, shares)) - len(served))
        return DataLoader(served, batch_size=None, collate_fn=self.numbered)  # type: ignore[arg-type]

    def _share(self, rank: int, world: int) -> list[tuple[int, list[str]]]:
        """The first window of each batch of a process, and what is kept of it."""
        return [
            (first, self.missing[shard])
            for shard in sorted(self.missing)[rank::world]
            for first in range(shard * self.shard_windows, self._end(shard), self.batch_size)
        ]

    def _end(self, shard: int) -> int:
        return min((shard + 1) * self.shard_windows, len(self.examples))

    def numbered(self, what: tuple[int, list[str]]) -> Numbered:
        first, kept = what
        end = min(first + self.batch_size, self._end(first // self.shard_windows))
        anybodys = list(dict.fromkeys(part for parts in self.missing.values() for part in parts))
        return Numbered(first, collate(self.examples[first:end]), anybodys if self.in_step else kept, kept)

    def transfer_batch_to_device(
        self, numbered: Numbered, device: torch.device, dataloader_idx: int
    ) -> Numbered:
        return numbered._replace(batch=numbered.batch.to(device))
