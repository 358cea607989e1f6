"""What a run will take, from a model's shape alone: bytes of traces, operations, size of the predictor."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from shadow.criteria.statistics import STATISTICS
from shadow.data.batches import Example, collate
from shadow.models.kinds import find_sites, width_of
from shadow.models.layouts import find_layers
from shadow.models.sites import KINDS, Kind, Source, count_units
from shadow.scorers.nets import NetShape, TapNet
from shadow.scorers.paper_nets import MLPShape
from shadow.traces.collector import embeddings, features, pooled
from shadow.traces.packing import Stored, encode
from shadow.traces.shards import CONTEXTS, EMBEDDINGS, FEATURES, MEANS


@dataclass(frozen=True)
class RowBytes:
    """Bytes on disk for each window, each sampled token, each shard."""

    window: float = 0
    token: float = 0
    shard: float = 0

    def of(self, windows: int, tokens: int, shards: int) -> float:
        return self.window * windows + self.token * tokens + self.shard * shards


def weightless(config: PretrainedConfig) -> PreTrainedModel:
    """A model of this shape whose weights take no memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def part_bytes(
    model: PreTrainedModel, part: str, taps: int, tokens: int, stored: Stored, top: float | None
) -> RowBytes:
    """Of a part of a trace store, of windows of so many tokens; the means are of one shard alone."""
    if part == FEATURES:
        return feature_bytes(taps, width_of(model, "state"))
    if part == CONTEXTS:
        return context_bytes(taps, width_of(model, "context"))
    if part == EMBEDDINGS:
        return embedding_bytes(tokens, width_of(model, "state"))
    if part == MEANS:
        return RowBytes(shard=mean_bytes(model))
    return criterion_bytes(model, part, stored, top)


def feature_bytes(taps: int, width: int) -> RowBytes:
    states = torch.zeros(1, 1, taps, width)
    number = torch.zeros(1, dtype=torch.int64)
    arrays = features(states, collate([Example([0], 0)]), number, number, 0)
    size = {
        rows: sum(a.nbytes for name, a in arrays.items() if name.startswith(rows))
        for rows in ("window", "token")
    }
    return RowBytes(size["window"], size["token"])


def context_bytes(taps: int, width: int) -> RowBytes:
    arrays = pooled(torch.zeros(1, 1, taps, width), collate([Example([0], 0)]))
    return RowBytes(window=sum(values.nbytes for values in arrays.values()))


def embedding_bytes(tokens: int, width: int) -> RowBytes:
    """Of windows of so many tokens, every position of which is kept."""
    arrays = embeddings(torch.zeros(1, tokens, width), collate([Example([0] * tokens, tokens - 1)]))
    return RowBytes(window=sum(values.nbytes for values in arrays.values()))


def criterion_bytes(model: PreTrainedModel, criterion: str, stored: Stored, top: float | None) -> RowBytes:
    sites = find_sites(model)
    if criterion in STATISTICS:
        return RowBytes(shard=sum(4 * site.units for site in sites))
    size = sum(a.nbytes for site in sites for a in encode(torch.zeros(1, site.units), stored, top).values())
    return RowBytes(size, size)


def mean_bytes(model: PreTrainedModel) -> float:
    """Of the means of activations: once for a store."""
    return 4.0 * sum(site.units * site.width for site in find_sites(model))


def forward_flops(model: PreTrainedModel, tokens: int) -> float:
    """Of one window of so many tokens: two for each weight and token, and what attention multiplies.

    The backward to the activations alone takes as many again in the linear layers, and twice in attention.
    """
    weights = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, nn.Linear))
    return 2.0 * (weights + expert_weights(model)) * tokens + attention_flops(model, tokens)


def expert_weights(model: PreTrainedModel) -> float:
    """Of the experts that one token is sent to, over all layers."""
    experts = [site for site in find_sites(model) if site.experts > 1]
    if not experts:
        return 0.0
    chosen = model.config.get_text_config().num_experts_per_tok
    return sum(chosen / s.experts * sum(w.numel() for w in s.reader.parameters()) for s in experts)


def attention_flops(model: PreTrainedModel, tokens: int) -> float:
    """Scores and weighted values, of every pair of positions: masked ones are computed too."""
    return sum(4.0 * site.module.in_features * tokens**2 for site in find_sites(model) if site.kind == "head")


def backward_flops(model: PreTrainedModel, tokens: int) -> float:
    return forward_flops(model, tokens) + attention_flops(model, tokens)


def predictor_parameters(
    model: PreTrainedModel,
    taps: Sequence[int],
    source: Source,
    shape: NetShape | MLPShape,
    ahead: int = 0,
    kinds: Sequence[Kind] = KINDS,
) -> int:
    with torch.device("meta"):
        counts = count_units(find_sites(model))
        units = {kind: counts[kind] for kind in kinds}
        net = TapNet(taps, len(find_layers(model)), width_of(model, source), units, shape, ahead)
    return sum(values.numel() for values in net.parameters() if values.requires_grad)
