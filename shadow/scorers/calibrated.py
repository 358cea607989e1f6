"""What a dense pass over the calibration shows of signals, for methods whose numbers come from it."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shadow.data.batches import Batch, logits_of
from shadow.plans.facts import Facts
from shadow.signals import Signal, hook_signals


@torch.no_grad()
def watch(
    model: PreTrainedModel,
    signals: Sequence[Signal],
    batches: Sequence[Batch],
    fn: Callable[[Signal, Tensor], None],
) -> None:
    """Call fn(signal, x), x: float32 [N, U], with each signal at the real tokens of each batch."""
    real = torch.zeros(0)

    def see(signal: Signal, x: Tensor) -> None:
        fn(signal, x[real.to(x.device)].float())

    with hook_signals(model, signals, see):
        for batch in batches:
            real = batch.real()
            logits_of(model, batch.for_model(model))


class Moments(NamedTuple):
    """Of a signal's numbers, [U]: over how many tokens, their sums, and the sums of their squares."""

    tokens: int
    sums: Tensor
    squares: Tensor

    def with_more(self, more: "Moments") -> "Moments":
        return Moments(self.tokens + more.tokens, self.sums + more.sums, self.squares + more.squares)

    @property
    def mean(self) -> Tensor:
        return (self.sums / self.tokens).float()

    @property
    def variance(self) -> Tensor:
        return (self.squares / self.tokens - (self.sums / self.tokens).square()).clamp(min=0).float()

    @property
    def norm(self) -> Tensor:
        return self.squares.sqrt().float()


def moments_of(
    model: PreTrainedModel, signals: Sequence[Signal], batches: Sequence[Batch]
) -> dict[Signal, Moments]:
    """Over all real tokens, in float64: variances are small beside squares."""
    found: dict[Signal, Moments] = {}

    def add(signal: Signal, x: Tensor) -> None:
        x = x.double()
        here = Moments(len(x), x.sum(0), x.square().sum(0))
        found[signal] = found[signal].with_more(here) if signal in found else here

    watch(model, signals, batches, add)
    return found


def mean_magnitudes(
    model: PreTrainedModel, signals: Sequence[Signal], batches: Sequence[Batch]
) -> dict[Signal, Tensor]:
    """-> of each signal: the mean of |x| over all real tokens, [U]."""
    sums: dict[Signal, Tensor] = {}

    def add(signal: Signal, x: Tensor) -> None:
        sums[signal] = sums.get(signal, 0) + x.abs().sum(0)

    watch(model, signals, batches, add)
    tokens = sum(int(batch.lengths.sum()) for batch in batches)
    return {signal: total / tokens for signal, total in sums.items()}


def rows_of(
    model: PreTrainedModel, signals: Sequence[Signal], batches: Sequence[Batch], most: int
) -> dict[Signal, Tensor]:
    """-> of each signal: [N, U] at no more than so many real tokens, evenly spread over all of them."""
    step = math.ceil(sum(int(batch.lengths.sum()) for batch in batches) / most)
    seen: dict[Signal, int] = dict.fromkeys(signals, 0)
    parts: dict[Signal, list[Tensor]] = {signal: [] for signal in signals}

    def take(signal: Signal, x: Tensor) -> None:
        parts[signal].append(x[-seen[signal] % step :: step].clone())
        seen[signal] += len(x)

    watch(model, signals, batches, take)
    return {signal: torch.cat(found) for signal, found in parts.items()}


def sent_elsewhere(facts: Facts) -> str | None:
    """Refuses what calibration would count of tokens that an expert has not seen."""
    if facts.experts == 1:
        return None
    return (
        f"{facts.scorer.name} takes figures of the calibration, which counts tokens that were sent to other "
        "experts: use predictor=teal, wina or cats"
    )
