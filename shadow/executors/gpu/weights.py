"""A model's weights on its device, so that everything that belongs to a unit is a row."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shadow.errors import UserError
from shadow.executors.families import LayerParts, Sizes, describe, norm_of
from shadow.models.sites import SiteKey

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Norm(NamedTuple):
    """float32 [E] each."""

    weight: Tensor
    bias: Tensor


class LayerRows(NamedTuple):
    """The layer's own parameters, of width E: query [H * D], key and value [G * D], gate and up [F], and
    output, [H * D], and down, [F], turned over; biases, or None. What dropped units say, float32: fill_heads
    [H, D] and fill_neurons [F], or None; and what is read of all of that, with the bias: base_heads and
    base_neurons, [E]."""

    attention_norm: Norm
    query: Tensor
    query_bias: Tensor | None
    key: Tensor
    key_bias: Tensor | None
    value: Tensor
    value_bias: Tensor | None
    output: Tensor
    fill_heads: Tensor | None
    base_heads: Tensor
    neuron_norm: Norm
    gate: Tensor | None
    gate_bias: Tensor | None
    up: Tensor
    up_bias: Tensor | None
    down: Tensor
    fill_neurons: Tensor | None
    base_neurons: Tensor


class DeviceWeights(NamedTuple):
    """embedding, vocabulary: [V, E]; positions: [P, E], or None; frequencies: [D / 2] and their factor, or
    None."""

    sizes: Sizes
    layers: list[LayerRows]
    last_norm: Norm
    embedding: Tensor
    vocabulary: Tensor
    vocabulary_bias: Tensor | None
    positions: Tensor | None
    turns: tuple[Tensor, float] | None


def place(model: PreTrainedModel, fill: Mapping[SiteKey, Tensor] | None) -> DeviceWeights:
    """Nothing is copied but what is turned over, whose parameters become views of it: the model works as
    before. fill: [U, D] of the layers and kinds where something stands in a dropped unit's place; None: the
    layers are left out."""
    if model.dtype not in DTYPES:
        raise UserError(
            "executor=gathered on a GPU needs a model of dtype float32, bfloat16 or float16, got "
            f"{str(model.dtype)[6:]}"
        )
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1:
        raise UserError(
            f"executor=gathered needs the whole model on one GPU, and it is on {sorted(map(str, devices))}: "
            "load it with device_map=None, or use executor=masked"
        )
    sizes, parts = describe(model)
    return DeviceWeights(
        sizes=sizes,
        layers=[] if fill is None else [rows_of(n, layer, fill) for n, layer in enumerate(parts.layers)],
        last_norm=Norm(*norm_of(parts.last_norm)),
        embedding=parts.embedding.weight.detach(),
        vocabulary=parts.head.weight.detach(),
        vocabulary_bias=parts.head.bias,
        positions=None if parts.positions is None else parts.positions.weight.detach(),
        turns=parts.turns,
    )


def rows_of(index: int, layer: LayerParts, fill: Mapping[SiteKey, Tensor]) -> LayerRows:
    output, down = turn_over(layer.output), turn_over(layer.down)
    heads, neurons = (
        None if (index, kind) not in fill else fill[index, kind].to(output.device).float()
        for kind in ("head", "neuron")
    )
    return LayerRows(
        attention_norm=Norm(*norm_of(layer.attention_norm)),
        query=layer.query.weight.detach(),
        query_bias=layer.query.bias,
        key=layer.key.weight.detach(),
        key_bias=layer.key.bias,
        value=layer.value.weight.detach(),
        value_bias=layer.value.bias,
        output=output,
        fill_heads=heads,
        base_heads=base_of(layer.output, output, heads),
        neuron_norm=Norm(*norm_of(layer.neuron_norm)),
        gate=None if layer.gate is None else layer.gate.weight.detach(),
        gate_bias=None if layer.gate is None else layer.gate.bias,
        up=layer.up.weight.detach(),
        up_bias=layer.up.bias,
        down=down,
        fill_neurons=None if neurons is None else neurons.flatten(),
        base_neurons=base_of(layer.down, down, neurons),
    )


def turn_over(*linears: nn.Linear) -> Tensor:
    """-> the weights, transposed, side by side, [inputs, outputs of all], its rows one behind the other; the
    parameters become views of it."""
    weights = [linear.weight.detach().T for linear in linears]
    if len(weights) == 1 and weights[0].is_contiguous():
        return weights[0]
    rows = torch.cat(weights, 1).contiguous()
    for linear, part in zip(linears, rows.split([linear.out_features for linear in linears], 1)):
        linear.weight.data = part.T
    return rows


@torch.no_grad()
def base_of(linear: nn.Linear, rows: Tensor, fill: Tensor | None) -> Tensor:
    base = torch.zeros(rows.shape[1], device=rows.device)
    if linear.bias is not None:
        base += linear.bias.float()
    if fill is not None:
        base += fill.flatten() @ rows.float()
    return base
