"""All criteria of a batch, from one forward and at most one backward."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from shadow.batches import IGNORED, Batch
from shadow.criteria import CRITERIA
from shadow.sites import Site, differentiable_embeddings, find_sites, visit, watch


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """logits: [B, T, V], labels: [B, T] -> [B, T]: cross-entropy in nats, 0 where the label is IGNORED."""
    return F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")


def row_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """-> [B]: the mean over each row's own loss tokens."""
    return token_losses(logits, labels).sum(1) / (labels != IGNORED).sum(1).clamp(min=1)


def score(
    model: PreTrainedModel,
    batch: Batch,
    criteria: Sequence[str],
    receive: Callable[[str, Site, Tensor], None],
    taps: Sequence[int] = (),
) -> dict[int, Tensor]:
    """Call receive(criterion, site, per_token) with float32 [B, T, U] for every criterion and site.

    Returns the input states [B, T, E] of the layers `taps`. The loss back-propagated is the sum over rows of
    each row's own mean, so a row's scores do not depend on what else is in its batch. Only the inputs'
    gradients are computed, and a site's activation is let go as soon as its gradient has been reduced. Values
    at padding are meaningless.
    """
    at_once = {name: CRITERIA[name] for name in criteria if not CRITERIA[name].needs_grad}
    on_backward = {name: CRITERIA[name] for name in criteria if CRITERIA[name].needs_grad}
    states: dict[int, Tensor] = {}

    def see(site: Site, x: Tensor) -> None:
        act = x.detach().float()  # fp32: squares of half-precision values vanish or overflow

        def hook(grad: Tensor) -> None:
            for name, criterion in on_backward.items():
                receive(name, site, criterion.per_token(act, grad.float()))

        for name, criterion in at_once.items():
            receive(name, site, criterion.per_token(act, None))
        if on_backward:
            x.register_hook(hook)

    def keep(layer: int, state: Tensor) -> None:
        states[layer] = state.detach()

    with ExitStack() as stack:
        embedded = stack.enter_context(differentiable_embeddings(model)) if on_backward else []
        stack.enter_context(visit(find_sites(model), see))
        stack.enter_context(watch(model, taps, keep))
        with torch.set_grad_enabled(bool(on_backward)):
            logits = model(input_ids=batch.ids, attention_mask=batch.real().long(), use_cache=False).logits
            if on_backward:
                torch.autograd.grad(row_losses(logits, batch.labels).sum(), embedded)
    return states
