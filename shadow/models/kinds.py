"""Kinds of unit, a row each: the sites that a layer has of them, and what an absent unit leaves unread."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from shadow.models.experts import count_experts, expert_width, experts_at
from shadow.models.layouts import Layout, find_layers, linear_at, require_layout
from shadow.models.sites import BLOCKS, KINDS, Kind, Ranking, Site, Source


class Layer(NamedTuple):
    """One layer of a model, to look for sites in."""

    number: int
    module: nn.Module
    layout: Layout
    config: PretrainedConfig

    @property
    def attends(self) -> tuple[nn.Linear, ...]:
        """What reads attention's input."""
        return tuple(linear_at(self.module, path) for path in self.layout.attends)

    @property
    def output(self) -> nn.Linear:
        """What reads the heads."""
        return linear_at(self.module, self.layout.head)

    @property
    def writers(self) -> tuple[nn.Linear, ...]:
        """What writes the neurons; none of experts."""
        return tuple(linear_at(self.module, path) for path in self.layout.writes)

    @property
    def experts(self) -> nn.Module:
        return experts_at(self.module, self.layout.neuron, self.number)


def heads_of(layer: Layer) -> list[Site]:
    """An absent head leaves its query's rows unread, and its columns of the output projection. Its keys and
    values are read all the same, as later tokens may need them."""
    reader, heads = layer.output, layer.config.num_attention_heads
    width = reader.in_features // heads
    rows, columns = width * layer.attends[0].in_features, width * reader.out_features
    group = heads // key_value_heads(layer.config)
    return [
        Site(
            *(layer.number, "head", "head", (reader,), heads, width, heads, rows + columns),
            ranking=Ranking(group=group),
            seen_cost={"head_output": rows, "site": rows},
        )
    ]


def neurons_of(layer: Layer) -> list[Site]:
    """An absent neuron leaves its rows of what writes it unread, and its column of what reads it."""
    if not layer.layout.writes:
        experts = layer.experts
        count, width = count_experts(experts), expert_width(experts)
        size = layer.config.hidden_size
        return [
            Site(
                *(layer.number, "neuron", "neuron", (experts,), count * width, 1),
                *(layer.config.num_experts_per_tok * width, 3 * size),
                ranking=Ranking(experts=count),
                seen_cost={"gate": size, "up": size, "site": 2 * size},
            )
        ]
    reads, writers = linear_at(layer.module, layer.layout.neuron), layer.writers
    units, size = reads.in_features, writers[0].in_features
    rows = sum(writer.out_features for writer in writers) // units * size
    seen = {"gate": size, "site": rows} | ({"up": size} if rows > size else {})
    return [
        Site(
            *(layer.number, "neuron", "neuron", (reads,), units, 1, units, rows + reads.out_features),
            writers=writers,
            seen_cost=seen,
        )
    ]


def channels_of(layer: Layer) -> list[Site]:
    """An absent channel leaves a column of each projection unread that reads this input."""
    index = layer.number
    sites = [channels(index, "qkv", layer.attends), channels(index, "o", (layer.output,))]
    if layer.layout.writes:
        down = linear_at(layer.module, layer.layout.neuron)
        return [*sites, channels(index, "gate_up", layer.writers), channels(index, "down", (down,))]
    experts, size = layer.experts, layer.config.hidden_size
    count, width, chosen = count_experts(experts), expert_width(experts), layer.config.num_experts_per_tok
    read = Site(index, "gate_up", "channel", (experts,), size, 1, size, 2 * width * chosen)
    written = Site(
        *(index, "down", "channel", (experts,), count * width, 1, chosen * width, size),
        ranking=Ranking(experts=count),
    )
    return [*sites, read, written]


def channels(layer: int, slot: str, readers: tuple[nn.Linear, ...]) -> Site:
    units = readers[0].in_features
    return Site(layer, slot, "channel", readers, units, 1, units, sum(r.out_features for r in readers))


def blocks_of(layer: Layer) -> list[Site]:
    """An absent attention leaves unread what its absent heads would, for keys and values are there for later
    tokens; an absent FFN all of its projections, but not what chooses experts. Either is one unit, and adds
    nothing to the stream: its bias is left out too."""
    parts = zip(BLOCKS, (*heads_of(layer), *neurons_of(layer)), strict=True)
    return [
        Site(
            *(layer.number, slot, "block", part.readers, 1, part.units * part.width, 1),
            part.active * part.cost,
            seen_cost={point: part.active * cost for point, cost in part.seen_cost.items()},
        )
        for slot, part in parts
    ]


FINDERS: dict[Kind, Callable[[Layer], list[Site]]] = {
    "head": heads_of,
    "neuron": neurons_of,
    "channel": channels_of,
    "block": blocks_of,
}


def find_sites(model: PreTrainedModel, kinds: Sequence[Kind] = KINDS) -> list[Site]:
    """Every site of these kinds in forward order: layer 0's heads, layer 0's neurons, layer 1's heads, ...

    The inputs of the lm_head come last, as channels of the layer behind the last one, and its rows.
    """
    found = find_layers(model)
    layout, config = require_layout(model.config.model_type), model.config.get_text_config()
    layers = [Layer(index, one, layout, config) for index, one in enumerate(found)]
    sites = [site for layer in layers for kind in FINDERS if kind in kinds for site in FINDERS[kind](layer)]
    head = model.get_output_embeddings()
    if "channel" in kinds and isinstance(head, nn.Linear):
        sites.append(channels(len(layers), "lm_head", (head,)))
    if "row" in kinds and isinstance(head, nn.Linear):
        sites.append(rows(len(layers), head))
    return sites


def rows(layer: int, head: nn.Linear) -> Site:
    """An absent word leaves its row of the lm_head unread."""
    units = head.out_features
    return Site(layer, "vocabulary", "row", (head,), units, 1, units, head.in_features)


def key_value_heads(config: PretrainedConfig) -> int:
    if config.model_type == "falcon":
        several = config.new_decoder_architecture or not config.multi_query
        return config.num_kv_heads if several else 1
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def structure_of(model: PreTrainedModel) -> Ranking:
    """Query heads that share a key-value head, and experts of a layer."""
    sites = find_sites(model)
    return Ranking(max(site.ranking.group for site in sites), max(site.ranking.experts for site in sites))


def width_of(model: PreTrainedModel, source: Source) -> int:
    """How many numbers of a position a predictor of this source reads."""
    if source == "state":
        return model.config.get_text_config().hidden_size
    return find_sites(model, ["head"])[0].module.in_features


class Weights(NamedTuple):
    """Weights that one token reads: of all layers' projections, and of the lm_head."""

    layers: int
    head: int

    @property
    def all(self) -> int:
        return self.layers + self.head


def weights_of(model: PreTrainedModel) -> Weights:
    """Of experts those that a token is sent to; embedding rows, norms and biases are not counted."""
    config, layers = model.config.get_text_config(), find_layers(model)
    matrices = [values for values in layers.parameters() if values.dim() == 2]
    experts = [values for values in layers.parameters() if values.dim() == 3]
    share = config.num_experts_per_tok / len(experts[0]) if experts else 0.0
    read = sum(values.numel() for values in matrices) + round(share * sum(v.numel() for v in experts))
    head = model.get_output_embeddings()
    return Weights(read, head.weight.numel() if isinstance(head, nn.Linear) else 0)
