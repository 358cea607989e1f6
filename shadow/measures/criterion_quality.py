"""How well criteria agree with what removing units really does."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor
from transformers import PreTrainedModel

from shadow.criteria import Seen
from shadow.criteria.one_pass import score
from shadow.criteria.removal import removal
from shadow.criteria.statistics import STATISTICS, Shown
from shadow.data.batches import Batch, Example, Loss, batched
from shadow.models.kinds import find_sites
from shadow.models.layouts import find_layers
from shadow.models.sites import KINDS, Kind, Site


class Agreement(NamedTuple):
    """spearman: rank correlation; recall: share of the true upper half in the predicted one; each [...]."""

    spearman: np.ndarray
    recall: np.ndarray


class Judged(NamedTuple):
    """Means over windows and layers, with standard errors over windows (or over layers, of averages)."""

    spearman: float
    spearman_error: float
    recall: float
    recall_error: float


def agreement(scores: Tensor, truth: Tensor) -> Agreement:
    """[..., n] each -> [...]; NaN where either does not vary. Equal scores share a rank."""
    ranked = [rankdata(values.double().numpy(), axis=-1) for values in (scores, truth)]
    centred = [ranks - ranks.mean(-1, keepdims=True) for ranks in ranked]
    lengths = [np.sqrt((ranks**2).sum(-1)) for ranks in centred]
    product = lengths[0] * lengths[1]
    flat = product == 0
    spearman = np.where(flat, np.nan, (centred[0] * centred[1]).sum(-1) / np.where(flat, 1, product))
    middle = scores.shape[-1] // 2
    upper = [values.argsort(dim=-1, stable=True).argsort(-1) >= middle for values in (scores, truth)]
    recall = (upper[0] & upper[1]).sum(-1) / upper[1].sum(-1)
    return Agreement(spearman, np.where(flat, np.nan, recall.numpy()))


def sample_units(
    model: PreTrainedModel, layers: int, per_layer: Mapping[Kind, int | None], seed: int
) -> dict[Site, Tensor]:
    """So many units of each kind, or all (None), in evenly spread layers, the last one among them."""
    total = len(find_layers(model))
    count = min(layers, total)
    chosen = {round((index + 1) * total / count) - 1 for index in range(count)}
    draw = torch.Generator().manual_seed(seed)
    return {
        site: torch.randperm(site.units, generator=draw)[: per_layer[site.kind]]
        for site in find_sites(model)
        if site.layer in chosen
    }


def criterion_quality(
    model: PreTrainedModel,
    examples: Sequence[Example],
    criteria: Sequence[str],
    loss: Loss,
    units: Mapping[Site, Tensor],
    batch_size: int,
) -> dict[str, Judged]:
    """-> by `quality/<criterion>/<kind>` for each window by itself, `quality_static/...` for their means, and
    `quality_size/...` for each window against the size of the change: most criteria do not foretell its sign.

    Units are compared within their layer. nwot, jacov and epenas compare the windows, at all tokens that the
    shortest one has, and are judged only for the means.
    """
    batches = [batch.to(model.device) for batch in batched(examples, batch_size)]
    truths = [removal(model, batch, units, loss, batch_size) for batch in batches]
    truth = {site: torch.cat([of_batch[site] for of_batch in truths]) for site in units}  # [W, n]
    shortest = min(len(example.ids) for example in examples)
    classes = torch.tensor([example.ids[min(example.prompt, len(example.ids) - 1)] for example in examples])
    found = observe(model, batches, criteria, loss, units, shortest)
    judged = {}
    for name in criteria:
        for kind in KINDS:
            sites = [site for site in units if site.kind == kind]
            real = torch.stack([truth[site] for site in sites], 1)  # [W, l, n]
            if name in STATISTICS:
                means = torch.stack([STATISTICS[name].of(found[name, site], classes) for site in sites])
            else:
                scores = torch.stack([found[name, site] for site in sites], 1)
                for truth_of, true in {"quality": real, "quality_size": real.abs()}.items():
                    each = agreement(scores, true)
                    judged[f"{truth_of}/{name}/{kind}"] = judge(Agreement(*map(_mean, each)))
                means = scores.mean(0)
            judged[f"quality_static/{name}/{kind}"] = judge(agreement(means, real.mean(0)))
    return judged


def observe(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    criteria: Sequence[str],
    loss: Loss,
    units: Mapping[Site, Tensor],
    tokens: int,
) -> dict[tuple[str, Site], Tensor]:
    """-> window scores [W, n] of each site, or what a statistic compares of so many tokens: [W, T, n, D]."""
    found: dict[tuple[str, Site], list[Tensor]] = {(name, site): [] for name in criteria for site in units}
    by_place = {(site.layer, site.kind): site for site in units}
    for batch in batches:
        real = batch.real()

        def receive(name: str, at: Site, seen: Seen | Shown, real: Tensor = real) -> None:
            site = by_place.get((at.layer, at.kind))
            if site is not None and isinstance(seen, Shown):
                found[name, site].append(seen.values[:, :tokens, units[site]].cpu())
            elif site is not None and not isinstance(seen, Shown):
                found[name, site].append(seen.window(real)[:, units[site]].cpu())

        score(model, batch, criteria, receive, loss=loss)
    return {key: torch.cat(parts) for key, parts in found.items()}


def judge(found: Agreement) -> Judged:
    return Judged(*(figure for values in found for figure in (float(_mean(values)), _error(values))))


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the last axis, without what is NaN; NaN where nothing else is."""
    real = ~np.isnan(values)
    return np.where(real.any(-1), np.nansum(values, -1) / np.maximum(real.sum(-1), 1), np.nan)


def _error(values: np.ndarray) -> float:
    real = values[~np.isnan(values)]
    return float(real.std(ddof=1) / len(real) ** 0.5) if len(real) > 1 else float("nan")
