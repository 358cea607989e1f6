"""A model's weights, so that everything that belongs to a unit is a row."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shadow.errors import UserError
from shadow.executors.cpu.grouped import bits_for, empty_in, empty_out, put_in, put_out
from shadow.executors.cpu.mapped import file_ranges, let_go
from shadow.executors.cpu.matrices import In, InRows, Out
from shadow.executors.cpu.storage import Rows, allocate, as_tensor, put
from shadow.executors.families import LayerParts, Parts, Sizes, describe, norm_of
from shadow.executors.options import BITS, Storage


class Norms(NamedTuple):
    """float32 [L, E] each; of the last norm L is 1."""

    weight: np.ndarray
    bias: np.ndarray


class Weights(NamedTuple):
    """Rows of width E each: query [L, H * D], key and value [L, G * D], output, transposed, [L, H * D], gate
    and up [L, F], down, transposed, [L, F]; embedding and vocabulary [1, V], all in one storage, but what
    a file holds in 8 bits keeps them beside 4. Biases are float32 [L, rows]; of
    output and down they are [L, E]. Without a gate its rows are those of `up`, and are not read."""

    sizes: Sizes
    query: In
    key: In
    value: In
    output: Out
    gate: In
    up: In
    down: Out
    embedding: In
    vocabulary: In
    positions: np.ndarray  # float32 [P, E], or [0, E]
    query_bias: np.ndarray
    key_bias: np.ndarray
    value_bias: np.ndarray
    output_bias: np.ndarray
    gate_bias: np.ndarray
    up_bias: np.ndarray
    down_bias: np.ndarray
    vocabulary_bias: np.ndarray
    attention_norm: Norms
    neuron_norm: Norms
    last_norm: Norms


READ = ("query", "key", "value", "gate", "up")  # rows that are multiplied with states
ADDED = ("output", "down")  # transposed: rows that are added up


def pack(model: PreTrainedModel, storage: Storage | None = None) -> Weights:
    """The model's weights as rows; storage None: as the model has them, float32 or bfloat16.

    In the model's own dtype its parameters then *are* these rows, seen through views, so that nothing is held
    twice: the model works as before, and `pack` again only looks, until `straighten`. Of weights that were
    loaded as pages of a file the copied pages go back to the system.
    """
    own: Storage | None = {torch.float32: "float32", torch.bfloat16: "bfloat16"}.get(model.dtype)  # type: ignore[assignment]
    storage = storage or own
    assert storage is not None, "refused before"
    sizes, parts = describe(model)
    if model.device.type != "cpu":
        raise UserError(f"executor=gathered runs on the CPU, and this model is on {model.device}")
    shared = storage == own
    found = {
        name: gather(name, parts.layers, storage, shared) for name in READ if name != "gate" or sizes.gated
    }
    found.setdefault("gate", found["up"])
    added = {name: gather_added(name, parts.layers, storage, shared) for name in ADDED}
    embedding = gather_one(parts.embedding, storage, shared)
    tied = parts.head.weight.data_ptr() == parts.embedding.weight.data_ptr()
    vocabulary = embedding if tied else gather_one(parts.head, storage, shared)
    bias = {role: biases(role, parts.layers) for role in READ + ADDED}
    return Weights(
        sizes=sizes,
        query=found["query"],
        key=found["key"],
        value=found["value"],
        output=added["output"],
        gate=found["gate"],
        up=found["up"],
        down=added["down"],
        embedding=embedding,
        vocabulary=vocabulary,
        positions=position_rows(parts, sizes),
        query_bias=bias["query"],
        key_bias=bias["key"],
        value_bias=bias["value"],
        output_bias=bias["output"],
        gate_bias=bias["gate"],
        up_bias=bias["up"],
        down_bias=bias["down"],
        vocabulary_bias=bias_of(parts.head)[None].numpy(),
        attention_norm=norms([layer.attention_norm for layer in parts.layers]),
        neuron_norm=norms([layer.neuron_norm for layer in parts.layers]),
        last_norm=norms([parts.last_norm]),
    )


def storage_of(matrix: In | Out) -> Storage:
    if isinstance(matrix, Rows):
        return "float32" if matrix.values.dtype == np.float32 else "bfloat16"
    return "int8" if matrix.bits == 8 else "int4"


def gather(role: str, layers: Sequence[LayerParts], storage: Storage, shared: bool) -> In:
    projections = [linear_of(role, layer) for layer in layers]
    if storage in BITS:
        return in_groups_of(projections, BITS[storage])
    return plain(projections, storage, shared, turned=False)


def gather_added(role: str, layers: Sequence[LayerParts], storage: Storage, shared: bool) -> Out:
    projections = [linear_of(role, layer) for layer in layers]
    if storage not in BITS:
        return plain(projections, storage, shared, turned=True)
    weights, files = [p.weight.detach() for p in projections], file_ranges()
    bits = bits_for(weights, BITS[storage])
    rows = empty_out(bits, len(weights), *weights[0].T.shape)
    for layer, weight in enumerate(weights):
        put_out(rows, layer, weight.T)
        let_go(weight, files)
    return rows


def in_groups_of(modules: Sequence[nn.Linear | nn.Embedding], bits: int) -> InRows:
    weights, files = [module.weight.detach() for module in modules], file_ranges()
    rows = empty_in(bits_for(weights, bits), len(weights), *weights[0].shape)
    for layer, weight in enumerate(weights):
        put_in(rows, layer, weight)
        let_go(weight, files)
    return rows


def plain(projections: Sequence[nn.Linear], storage: Storage, shared: bool, turned: bool) -> Rows:
    found = [p.weight.detach().T if turned else p.weight.detach() for p in projections]
    if shared and (there := already(found)) is not None:
        return there
    rows, files = allocate(storage, len(found), *found[0].shape), file_ranges()
    for layer, (projection, weight) in enumerate(zip(projections, found)):
        put(rows, layer, weight)
        let_go(projection.weight, files)
        if shared:  # the layer's own memory is free before the next layer is copied
            view = as_tensor(rows, layer)
            projection.weight.data = view.T if turned else view
            found[layer] = weight = view
    return rows


def gather_one(module: nn.Embedding | nn.Linear, storage: Storage, shared: bool) -> In:
    if storage in BITS:
        return in_groups_of([module], BITS[storage])
    weight = module.weight.detach()
    if shared and (there := already([weight])) is not None:
        return there
    rows = allocate(storage, 1, *weight.shape)
    put(rows, 0, weight)
    let_go(weight, file_ranges())
    return rows


def already(weights: Sequence[Tensor]) -> Rows | None:
    """The rows that these weights, [R, E] each, are views of: those that lie one behind the other."""
    first = weights[0]
    start, step = first.data_ptr(), first.numel() * first.element_size()
    home = first.untyped_storage().data_ptr()
    for layer, weight in enumerate(weights):
        at_home = weight.untyped_storage().data_ptr() == home and weight.data_ptr() == start + layer * step
        if not weight.is_contiguous() or not at_home:
            return None
    whole = first.as_strided((len(weights), *first.shape), (first.numel(), first.shape[1], 1))
    bits = whole.view(torch.uint16) if first.dtype == torch.bfloat16 else whole
    return Rows(bits.numpy())


def linear_of(role: str, layer: LayerParts) -> nn.Linear:
    found = getattr(layer, role)
    assert isinstance(found, nn.Linear)
    return found


def biases(role: str, layers: Sequence[LayerParts]) -> np.ndarray:
    named = "up" if role == "gate" and layers[0].gate is None else role
    return torch.stack([bias_of(linear_of(named, layer)) for layer in layers]).numpy()


def bias_of(linear: nn.Linear) -> Tensor:
    return (
        torch.zeros(linear.out_features, dtype=torch.float32)
        if linear.bias is None
        else linear.bias.detach().float()
    )


def norms(modules: Sequence[nn.Module]) -> Norms:
    found = [norm_of(module) for module in modules]
    return Norms(
        torch.stack([weight for weight, _ in found]).numpy(), torch.stack([bias for _, bias in found]).numpy()
    )


def position_rows(parts: Parts, sizes: Sizes) -> np.ndarray:
    if parts.positions is None:
        return np.zeros((0, sizes.width), np.float32)
    return parts.positions.weight.detach().float().numpy()
