"""A criterion over the prompt alone: what a prompt tells without training."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shadow.criteria import BESIDE_MEANS, CONTEXTUAL, Seen, needs_gradient
from shadow.criteria.one_pass import score
from shadow.criteria.statistics import Shown
from shadow.data.batches import Batch
from shadow.errors import UserError
from shadow.models.sites import KINDS, Kind, Site, SiteKey
from shadow.signals import Signal


class PromptActivation:
    """A criterion over the prompt alone, from a dense pass over it: what a prompt tells without training.

    One plan for a row. With criterion=griffin this is GRIFFIN (Dong et al. 2024, arXiv 2404.01365), for heads
    too; with a criterion of gradients its sister, whose loss is that of the prompt's own next tokens.
    """

    kinds: frozenset[Kind] = frozenset(KINDS)

    def __init__(self, criterion: str, means: Mapping[SiteKey, Tensor] | None = None) -> None:
        """means: [U, D] of every site's activation over the calibration, for `l2_deviation`."""
        allowed = [*CONTEXTUAL, *BESIDE_MEANS]
        if criterion not in allowed:
            raise UserError(f"the criterion of a prompt must be in {allowed}, got {criterion!r}")
        self.criterion, self.means = criterion, means
        self.seen: dict[SiteKey, Tensor] = {}
        self._prompt = torch.zeros(0)  # [B], of the batch that was looked at

    def look(self, model: PreTrainedModel, batch: Batch) -> None:
        least = 2 if needs_gradient(self.criterion) else 1  # a loss needs a next token
        if int(batch.prompt.min()) < least:
            raise UserError(
                f"predictor=prompt_activation with criterion={self.criterion} needs at least {least} "
                f"token{'s' * (least > 1)} in each prompt, got a prompt of {int(batch.prompt.min())}"
            )
        prompts = batch.prompts()
        inside = prompts.real()

        def receive(name: str, site: Site, seen: Seen | Shown) -> None:
            assert not isinstance(seen, Shown)
            self.seen[site.key] = seen.window(inside)

        score(model, prompts, [self.criterion], receive, means=self.means)
        self._prompt = batch.prompt

    def signals(self, sites: Sequence[Site]) -> list[Signal]:
        return [Signal(0, "layer_input")]

    def scores(self, signal: Signal, x: Tensor, pool: Tensor | None) -> dict[SiteKey, Tensor]:
        if not self.seen:
            raise UserError("prompt_activation must see the prompt first: run batches through `Run.logits`")
        if pool is None or not torch.equal(pool.sum(1), self._prompt):
            raise UserError("prompt_activation knows the prompt alone: use sparsity.decided_at=prompt")
        return self.seen
