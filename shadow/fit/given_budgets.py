"""Budgets that need no search: by the spectrum of weights, or by how far a layer turns the stream."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shadow.data.batches import Batch, logits_of
from shadow.executors.replaced import replace_method
from shadow.fit.block_budgets import MOST, state_of
from shadow.models.kinds import find_sites
from shadow.models.layouts import find_layers
from shadow.models.sites import Site, SiteKey
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.protocol import Scorer

SPREAD = 0.3  # heavy tails: the levels of sites lie within so much of the common one, as in AlphaPruning
SHARPNESS = 128 * 2048 / 1e4  # angular: of a sigmoid of the mean angle; CFSP's sum over its tokens, by 1e4


def by_tails(model: PreTrainedModel, scorer: Scorer, policy: SparsityPolicy) -> dict[SiteKey, float]:
    """ActTail (arXiv 2603.12272): where the spectrum of weights has a heavier tail, less goes.

    The exponent of a site is Hill's estimate over the upper half of the eigenvalues of W'W, of all that reads
    the site in one; levels grow with it in a straight line. As the abstract and AlphaPruning (arXiv
    2410.10912) have it; ActTail's code was not to be had.
    """
    sites = pruned(model, scorer, policy)
    found = {site.key: tail_exponent(site.columns().flatten(1).float()) for site in sites}
    low, high = min(found.values()), max(found.values())
    span = (high - low) or 1.0
    raw = {key: 1 - SPREAD + 2 * SPREAD * (exponent - low) / span for key, exponent in found.items()}
    return scaled(raw, {site.key: site.active * site.cost for site in sites}, policy.level, 0.0, MOST)


def by_angle(
    model: PreTrainedModel, scorer: Scorer, policy: SparsityPolicy, batches: Sequence[Batch]
) -> dict[SiteKey, float]:
    """CFSP's (arXiv 2409.13199): what a layer keeps grows with the angle by which it turns the stream.

    In a sigmoid of the mean angle over the calibration's tokens, in half turns, less that of all layers.
    """
    sites = pruned(model, scorer, policy)
    angles = turns(model, batches)
    mean = sum(angles) / len(angles)
    raw = {site.key: 1 / (1 + math.exp(-SHARPNESS * (angles[site.layer] - mean))) for site in sites}
    weights = {site.key: site.active * site.cost for site in sites}
    kept = scaled(raw, weights, 1 - policy.level, 1 - MOST, 1.0)
    return {key: 1 - share for key, share in kept.items()}


def pruned(model: PreTrainedModel, scorer: Scorer, policy: SparsityPolicy) -> list[Site]:
    """Those of layers: the lm_head has the common level."""
    sites = find_sites(model, sorted(scorer.kinds))
    return [site for site in sites if policy.prunes(site.key) and not site.behind]


def tail_exponent(weight: Tensor) -> float:
    """1 + k / sum of log(v_i / v_0) over the k largest eigenvalues v_i of W'W, v_0 the next smaller one."""
    gram = weight.T @ weight if weight.shape[0] > weight.shape[1] else weight @ weight.T
    values = torch.linalg.eigvalsh(gram.double()).clamp(min=1e-12)
    k = len(values) // 2
    return float(1 + k / (values[-k:] / values[-k - 1]).log().sum())


@torch.no_grad()
def turns(model: PreTrainedModel, batches: Sequence[Batch]) -> list[float]:
    """-> of each layer: the mean angle between what it reads and what it leaves, in half turns."""
    layers = find_layers(model)
    sums, real = [0.0] * len(layers), torch.zeros(0)

    def measuring(number: int, own: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            output = own(*args, **kwargs)
            before = (args[0] if args else kwargs["hidden_states"])[real].double()
            cosine = torch.cosine_similarity(before, state_of(output)[real].double(), -1)
            sums[number] += float(cosine.clamp(-1, 1).arccos().sum()) / math.pi
            return output

        return forward

    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            stack.enter_context(replace_method(layer, "forward", measuring(number, layer.forward)))
        for batch in batches:
            batch = batch.for_model(model)
            real = batch.real()
            logits_of(model, batch)
    tokens = sum(int(batch.lengths.sum()) for batch in batches)
    return [total / tokens for total in sums]


def scaled(
    raw: Mapping[SiteKey, float], weights: Mapping[SiteKey, int], total: float, low: float, high: float
) -> dict[SiteKey, float]:
    """The shares as they are to each other, within low and high, `total` of all weights together."""
    few, many = 0.0, high / min(raw.values())
    for _ in range(60):
        factor = (few + many) / 2
        shares = {key: min(max(factor * value, low), high) for key, value in raw.items()}
        reached = sum(weights[key] * share for key, share in shares.items()) / sum(weights.values())
        few, many = (factor, many) if reached < total else (few, factor)
    return shares
