"""How much the importance of heads depends on the input: the variance of their ranks over windows."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from scipy.stats import rankdata
from torch import Tensor
from transformers import PreTrainedModel

from shadow.criteria import Seen
from shadow.criteria.one_pass import score
from shadow.criteria.statistics import Shown
from shadow.data.batches import Example, Loss, batched
from shadow.models.sites import Site


def rank_variances(
    model: PreTrainedModel, examples: Sequence[Example], criteria: Sequence[str], loss: Loss, batch_size: int
) -> dict[tuple[str, int], Tensor]:
    """-> by criterion and layer, of each head [U]: 0 if every window gives it the same rank among its layer's
    heads, 1 where ranks are drawn anew for each window (uniform ones, of variance (U^2 - 1) / 12).

    Of two windows and more; equal scores share a rank. (ShadowLLM, its figure of rank variance over heads.)
    """
    found: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    for batch in batched(examples, batch_size):
        batch = batch.to(model.device)
        real = batch.real()

        def receive(name: str, at: Site, seen: Seen | Shown, real: Tensor = real) -> None:
            if at.kind == "head" and not isinstance(seen, Shown):
                found[name, at.layer].append(seen.window(real).float().cpu())

        score(model, batch, criteria, receive, loss=loss)
    return {place: rank_variance(torch.cat(scores)) for place, scores in sorted(found.items())}


def rank_variance(scores: Tensor) -> Tensor:
    """[W, U] -> [U], as `rank_variances` has it."""
    ranks = torch.from_numpy(rankdata(scores.double().numpy(), axis=-1))
    units = scores.shape[-1]
    return (ranks.var(0) * 12 / (units**2 - 1)).float()
