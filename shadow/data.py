"""Calibration data: where examples come from, how many, and how long."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from shadow import texts
from shadow.batches import Batch, Example, collate
from shadow.errors import UserError
from shadow.models import LM
from shadow.texts import Part


class CalibrationData(Protocol):
    def examples(self, lm: LM) -> list[Example]:
        """What criteria are collected on; disjoint from `documents("eval")` and from what tasks evaluate."""
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
        return texts.text_windows(
            self.documents("train"),
            lm.tokenizer,
            self.windows,
            self.tokens,
            self.prompt_share,
            self.seed,
            "data.windows",
        )

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
        return texts.read_documents(f"data.{part}", file, self.column)

    def examples(self, lm: LM) -> list[Example]:
        return texts.text_windows(
            self.documents("train"),
            lm.tokenizer,
            self.windows,
            self.tokens,
            self.prompt_share,
            self.seed,
            "data.windows",
        )

    def fingerprint(self) -> str:
        return texts.fingerprint(self.documents("train"))


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
            "data=tasks has no running text for measure=perplexity or measure=choices: use measure=tasks"
        )

    def examples(self, lm: LM) -> list[Example]:
        from shadow.tasks import few_shot_examples  # lm-eval takes seconds to import

        return few_shot_examples(
            lm, self.tasks, self.root, self.examples_per_task, self.num_fewshot, self.max_tokens, self.seed
        )

    def fingerprint(self) -> str:
        if not self.root:
            return "hub"
        files = [Path(self.root).expanduser() / task / "train.jsonl" for task in self.tasks]
        return texts.fingerprint([file.read_text(encoding="utf-8") for file in files if file.is_file()])


class CalibrationExamples(pl.LightningDataModule):
    """Examples `start` and after, in order, in batches for `Trainer.predict`."""

    def __init__(self, examples: Sequence[Example], batch_size: int, start: int = 0) -> None:
        super().__init__()
        self.examples = examples
        self.batch_size = batch_size
        self.start = start

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(self.examples[self.start :], batch_size=self.batch_size, collate_fn=collate)  # type: ignore[arg-type]

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)
