"""Token sequences whose prompt ends somewhere, side by side in a padded batch."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

IGNORED = -100  # the label that cross-entropy skips, as everywhere in transformers


Loss = Literal["answer", "next_token"]  # which tokens' loss is back-propagated
Positions = Literal["answer", "prompt", "all"]


class Example(NamedTuple):
    """ids[:prompt] has been read when a plan is decided at the prompt; the loss is on ids[prompt:]."""

    ids: list[int]
    prompt: int


class Batch(NamedTuple):
    """Right-padded rows: causal attention then leaves the real positions untouched by padding.

    ids: [B, T]; lengths: [B] real tokens; prompt: [B] tokens of the prompt; labels: [B, T], at each position
    the next token where it counts for the loss, and IGNORED elsewhere.
    """

    ids: Tensor
    lengths: Tensor
    prompt: Tensor
    labels: Tensor

    def real(self) -> Tensor:
        """-> bool [B, T], True at real tokens."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]

    def in_prompt(self) -> Tensor:
        """-> bool [B, T], True at tokens of the prompt."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.prompt[:, None]

    def targets(self, loss: Loss) -> Tensor:
        """-> [B, T]: the labels of the answer, or of every position at which a next token is known."""
        if loss == "answer":
            return self.labels
        following = torch.nn.functional.pad(self.ids[:, 1:], (0, 1))
        known = torch.nn.functional.pad(self.real()[:, 1:], (0, 1))
        # lm-eval keeps an answer's last token out of the ids: there only the label knows it
        return torch.where(known & (self.labels == IGNORED), following, self.labels)

    def positions(self, which: Positions) -> Tensor:
        """-> bool [B, T], True at the real positions of the answer, of the prompt, or of both."""
        if which == "prompt":
            return self.in_prompt()
        return self.real() if which == "all" else self.real() & ~self.in_prompt()

    def prompts(self) -> "Batch":
        """Each row cut to its own prompt: no token of an answer is left, and the loss is on the prompt's."""
        cut = [Example(ids[:end].tolist(), 0) for ids, end in zip(self.ids, self.prompt.tolist())]
        return collate(cut).to(self.ids.device)

    def arguments(self) -> dict[str, Any]:
        """Of a model's call: one forward pass, without a key-value cache."""
        return {"input_ids": self.ids, "attention_mask": self.real().long(), "use_cache": False}

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(*(tensor.to(device) for tensor in self))

    def for_model(self, model: PreTrainedModel) -> "Batch":
        """Where the model reads it. Of weights on disk accelerate takes an input from anywhere."""
        return self if model.device.type == "meta" else self.to(model.device)


def logits_of(model: PreTrainedModel, batch: Batch) -> Tensor:
    """-> [B, T, V]: one forward pass, without a key-value cache."""
    return model(**batch.arguments()).logits


def collate(examples: Sequence[Example], pad: int = 0) -> Batch:
    width = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), width), pad)
    labels = torch.full((len(examples), width), IGNORED)
    for row, (tokens, prompt) in enumerate(examples):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        first = max(prompt, 1)  # nothing predicts the first token
        labels[row, first - 1 : len(tokens) - 1] = torch.tensor(tokens[first:])
    lengths = torch.tensor([len(example.ids) for example in examples])
    return Batch(ids, lengths, torch.tensor([example.prompt for example in examples]), labels)


def batched(examples: Sequence[Example], size: int) -> Iterator[Batch]:
    for start in range(0, len(examples), size):
        yield collate(examples[start : start + size])


def last_of(states: Tensor, inside: Tensor) -> Tensor:
    """states: [B, T, ...], inside: bool [B, T] -> [B, ...]: each row's state at its last inside position."""
    positions = torch.arange(inside.shape[1], device=inside.device)
    last = torch.where(inside, positions, 0).amax(1)  # generation pads on the left
    return states[torch.arange(len(states), device=states.device), last]


def mean_of(states: Tensor, inside: Tensor) -> Tensor:
    """states: [B, T, ...], inside: bool [B, T] -> [B, ...]: the mean over each row's inside positions."""
    weights = inside.float() / inside.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("bt,bt...->b...", weights, states)


def pooled(values: Tensor, inside: Tensor | None) -> Tensor:
    """values: [B, T, U] -> themselves, or with inside: bool [B, T] their mean over it, [B, U]."""
    return values if inside is None else mean_of(values, inside.to(values.device))
