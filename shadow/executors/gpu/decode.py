"""One new token for every row of a batch, on the device: torch, and kernels where units are dropped."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from shadow.executors.gpu.attention import attend, remember
from shadow.executors.gpu.cache import DeviceKeyValues
from shadow.executors.gpu.units import read_units, write_units
from shadow.executors.gpu.weights import DeviceWeights, LayerRows, Norm

Through = Callable[[int, Tensor], None]  # adds to the state [B, E] what a layer writes


def step(weights: DeviceWeights, memory: DeviceKeyValues, through: Through, ids: Tensor) -> Tensor:
    """ids: int64 [B], the token at the memory's `end` of each row -> logits, float32 [B, V].

    Nothing here waits for the device, and all that differs between tokens lies in its memory. The stream is
    float32; what weights are multiplied with is of their dtype.
    """
    sizes = weights.sizes
    h = F.embedding(ids, weights.embedding).float()
    if weights.positions is not None:
        h += F.embedding(sizes.first + memory.end - memory.start, weights.positions)
    for index in range(sizes.layers):
        through(index, h)
    x = normed(weights, weights.last_norm, h)
    return F.linear(x, weights.vocabulary, weights.vocabulary_bias).float()


def normed(weights: DeviceWeights, norm: Norm, h: Tensor) -> Tensor:
    """h: float32 [B, E] -> [B, E] of the weights' dtype."""
    if weights.sizes.centred:
        x = F.layer_norm(h, h.shape[-1:], norm.weight, norm.bias, weights.sizes.epsilon)
    else:
        x = F.rms_norm(h, h.shape[-1:], norm.weight, weights.sizes.epsilon)
    return x.to(weights.embedding.dtype)


def attention(
    weights: DeviceWeights, layer: LayerRows, index: int, memory: DeviceKeyValues, h: Tensor
) -> None:
    """Add to h, [B, E], what the heads that stay write. All heads' keys and values are remembered, as later
    tokens may need them."""
    x = normed(weights, layer.attention_norm, h)
    heads = memory.choices["head"].of_layer(index)
    query = read_units(x, layer.query, layer.query_bias, heads)
    key = F.linear(x, layer.key, layer.key_bias)
    value = F.linear(x, layer.value, layer.value_bias)
    keys, values = memory.keys[index], memory.values[index]
    remember(key, value, keys, values, memory.turns, memory.start, memory.end)
    context = attend(
        query, keys, values, memory.turns, heads.keep, memory.start, memory.end, weights.sizes.scaling,
        layer.fill_heads,
    )  # fmt: skip
    write_units(context, layer.output, heads, layer.base_heads, h)


def neurons(weights: DeviceWeights, layer: LayerRows, index: int, memory: DeviceKeyValues, h: Tensor) -> None:
    """Add to h, [B, E], what the neurons that stay write."""
    x = normed(weights, layer.neuron_norm, h)
    units = memory.choices["neuron"].of_layer(index)
    activation = "silu" if weights.sizes.gated else "relu"
    said = read_units(
        x, layer.up, layer.up_bias, units, activation, layer.gate, layer.gate_bias, layer.fill_neurons
    )
    write_units(said, layer.down, units, layer.base_neurons, h)
