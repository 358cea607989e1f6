"""Greedy budgets of a layer's sites: each step is taken where the layer's own output changes least."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shadow.data.batches import Batch, logits_of
from shadow.executors.replaced import replace_method
from shadow.models.kinds import find_sites
from shadow.models.layouts import find_layers
from shadow.models.sites import Site, SiteKey
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import StandIn
from shadow.scorers.protocol import Scorer
from shadow.signals import Signal, hook_signals, hook_sites
from shadow.terminal.bars import counted

Paths = dict[int, list[str]]  # of each layer: the slots that lose a step, one after the other
MOST = 0.95  # of a site that goes


class Seen(NamedTuple):
    """A layer's call in a dense pass. output: [B, T, E]; late: bool [B, T], the last half of each row."""

    args: tuple
    kwargs: dict[str, Any]
    output: Tensor
    late: Tensor


class Layer(NamedTuple):
    """sites: those that are pruned, by slot; weights: of all of them; calls: what a dense pass brings."""

    number: int
    module: nn.Module
    sites: dict[str, Site]
    weights: int
    calls: list[Seen]


@torch.no_grad()
def extend(
    model: PreTrainedModel,
    scorer: Scorer,
    policy: SparsityPolicy,
    stand_in: StandIn,
    batches: Sequence[Batch],
    step: float,
    paths: Mapping[int, Sequence[str]],
) -> Paths:
    """The paths of these layers, which begin with those that are known, as long as the policy's level asks.

    TEAL's greedy budgets (arXiv 2408.14690, algorithm 1), for any scorer that sees what it decides about. A
    step is a share of the weights of a layer's pruned sites, at one of them, whichever leaves the output of
    the layer by itself nearest to the dense one: by the mean distance over the last half of each row's
    positions, where the authors take the last quarter. Thresholds are quantiles of the scores at the dense
    layer, as theirs are. Theirs are steps of seven projections; here those that read one input go together.
    """
    found: Paths = {}
    for layer in counted(layers_of(model, scorer, policy, batches), "budgets", "layers"):
        path = list(paths.get(layer.number, []))
        scores = dense_scores(model, scorer, layer)
        while len(path) * step < policy.level - 1e-9:
            tried = {}
            for slot in layer.sites:
                shares = shares_of([*path, slot], layer.sites, step)
                if shares[slot] <= MOST:
                    cuts = {slot: cut_of(scores[slot], share) for slot, share in shares.items()}
                    tried[slot] = change(model, scorer, layer, stand_in, cuts)
            path.append(min(tried, key=tried.__getitem__))
        found[layer.number] = path
    return found


def levels_along(
    model: PreTrainedModel, scorer: Scorer, policy: SparsityPolicy, step: float, paths: Paths
) -> dict[SiteKey, float]:
    """What each site loses where the policy's level ends the paths; the last step may be a part of one."""
    found: dict[SiteKey, float] = {}
    whole, rest = divmod(round(policy.level / step, 6), 1)
    for number, sites in pruned_by_layer(model, scorer, policy).items():
        if number not in paths:  # the lm_head by itself
            found |= {(number, slot): policy.level_of((number, slot)) for slot in sites}
            continue
        shares = shares_of(paths[number][: int(whole)], sites, step)
        if rest:
            slot = paths[number][int(whole)]
            shares[slot] = shares.get(slot, 0.0) + rest * step * weights_of(sites) / weights_of([sites[slot]])
        found |= {(number, slot): shares.get(slot, 0.0) for slot in sites}
    return found


def shares_of(path: Sequence[str], sites: Mapping[str, Site], step: float) -> dict[str, float]:
    """Of each slot on the path: the share of its units that is gone at its end."""
    total = step * weights_of(sites)
    return {slot: path.count(slot) * total / weights_of([sites[slot]]) for slot in dict.fromkeys(path)}


def weights_of(sites: Mapping[str, Site] | Sequence[Site]) -> int:
    listed = sites.values() if isinstance(sites, Mapping) else sites
    return sum(site.active * site.cost for site in listed)


def pruned_by_layer(
    model: PreTrainedModel, scorer: Scorer, policy: SparsityPolicy
) -> dict[int, dict[str, Site]]:
    found: dict[int, dict[str, Site]] = {}
    for site in find_sites(model, sorted(scorer.kinds)):
        if policy.prunes(site.key):
            found.setdefault(site.layer, {})[site.slot] = site
    return found


def layers_of(
    model: PreTrainedModel, scorer: Scorer, policy: SparsityPolicy, batches: Sequence[Batch]
) -> list[Layer]:
    """With their calls in a dense pass over the batches; the lm_head by itself has nothing to share."""
    modules = find_layers(model)
    pruned = pruned_by_layer(model, scorer, policy)
    layers = [
        Layer(number, modules[number], sites, weights_of(sites), [])
        for number, sites in pruned.items()
        if number < len(modules)
    ]
    late = torch.zeros(0)

    def noting(layer: Layer) -> Callable[..., Any]:
        own = layer.module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            output = own(*args, **kwargs)
            layer.calls.append(Seen(args, kwargs, state_of(output), late))
            return output

        return forward

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(replace_method(layer.module, "forward", noting(layer)))
        for batch in batches:
            batch = batch.for_model(model)
            place = torch.arange(batch.ids.shape[1], device=batch.ids.device)
            late = batch.real() & (place >= batch.lengths[:, None] // 2)
            logits_of(model, batch)
    return layers


def dense_scores(model: PreTrainedModel, scorer: Scorer, layer: Layer) -> dict[str, Tensor]:
    """-> of each slot: the scores of all units at the late positions, in order."""
    parts: dict[str, list[Tensor]] = {slot: [] for slot in layer.sites}

    def note(signal: Signal, x: Tensor) -> None:
        for (_, slot), scores in scorer.scores(signal, x, None).items():
            parts[slot].append(scores[call.late.to(scores.device)].flatten())

    with hook_signals(model, scorer.signals(list(layer.sites.values())), note):
        for call in layer.calls:
            layer.module(*call.args, **call.kwargs)
    return {slot: torch.cat(of_calls).sort().values for slot, of_calls in parts.items()}


def cut_of(ordered: Tensor, share: float) -> float:
    """The score that so large a share does not exceed."""
    return float(ordered[max(round(share * len(ordered)) - 1, 0)])


def change(
    model: PreTrainedModel, scorer: Scorer, layer: Layer, stand_in: StandIn, cuts: Mapping[str, float]
) -> float:
    """How far the layer's output is from the dense one without what scores no more than the cuts."""
    keep: dict[str, Tensor] = {}
    sites = [layer.sites[slot] for slot in cuts]

    def decide(signal: Signal, x: Tensor) -> None:
        for (_, slot), scores in scorer.scores(signal, x, None).items():
            if slot in cuts:
                keep[slot] = scores > cuts[slot]

    total, count = 0.0, 0
    with (
        hook_signals(model, scorer.signals(sites), decide),
        hook_sites(model, sites, lambda site, x: stand_in(site, x, keep[site.slot])),
    ):
        for call in layer.calls:
            output = state_of(layer.module(*call.args, **call.kwargs))
            total += float((output - call.output)[call.late].float().norm(dim=-1).sum())
            count += int(call.late.sum())
    return total / count


def state_of(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]
