"""What all tokens of a text follow; and the neurons that a prompt keeps, copied one behind the other."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shadow.executors.cpu.channels import ChannelWeights
from shadow.executors.cpu.grouped import InRows, OutRows
from shadow.executors.cpu.lined_up import lined_up
from shadow.executors.cpu.matrices import In, Out
from shadow.executors.cpu.scoring import NEURONS, Choice, list_all
from shadow.executors.cpu.storage import Rows
from shadow.executors.cpu.weights import Weights
from shadow.executors.families import Sizes
from shadow.models.sites import KINDS
from shadow.plans.rules import Plan as SitePlan


class Plan(NamedTuple):
    """What a token's compiled call reads: weights, what stays of them, and what a dropped neuron says,
    float32 [L, F]."""

    weights: Weights | ChannelWeights
    choice: Choice
    fill: np.ndarray


def whole_plan(weights: Weights | ChannelWeights, rows: int, decided: SitePlan, fill: np.ndarray) -> Plan:
    """What all tokens follow by what a prompt has decided, or everything, of which tokens then choose; fill:
    as in `Plan`."""
    sizes = weights.sizes
    choice = everything(sizes, rows, sizes.layers)
    for layer in range(sizes.layers):
        for index, kind in enumerate(KINDS):
            keep = decided.get((layer, kind))
            if keep is not None:
                (choice.heads, choice.neurons)[index][:, layer] = keep.numpy()
    list_all(choice)
    return Plan(weights, choice, fill)


def everything(sizes: Sizes, lines: int, layers: int) -> Choice:
    """All of it stays, in so many layers; not listed yet."""
    return Choice(
        heads=np.ones((lines, layers, sizes.heads), np.bool_),
        neurons=np.ones((lines, layers, sizes.neurons), np.bool_),
        head_list=np.zeros((layers, sizes.heads), np.int32),
        neuron_list=np.zeros((layers, sizes.neurons), np.int32),
        counts=np.zeros((layers, 2), np.int64),
        kept=np.zeros((layers, 2), np.int64),
    )


def compact(plan: Plan) -> Plan:
    """The same plan by copies, in which a layer's neurons are numbered by their place among the kept ones.

    Arrays have room for all neurons; of memory they take what is written to them.
    """
    weights, choice = plan.weights, plan.choice
    assert isinstance(weights, Weights)
    up, down = copied_in(weights.up, choice), copied_out(weights.down, choice)
    gate = copied_in(weights.gate, choice) if weights.sizes.gated else up
    up_bias, gate_bias, fill = (np.zeros_like(one) for one in (weights.up_bias, weights.gate_bias, plan.fill))
    pairs = (up_bias, weights.up_bias), (gate_bias, weights.gate_bias), (fill, plan.fill)
    neurons, listed = np.zeros_like(choice.neurons), choice.neuron_list.copy()
    for layer, lines in enumerate(kept(choice)):
        for new, old in pairs:
            new[layer, : len(lines)] = old[layer, lines]
        neurons[:, layer, : len(lines)] = choice.neurons[:, layer, lines]
        listed[layer, : len(lines)] = np.arange(len(lines))
    return Plan(
        weights._replace(up=up, gate=gate, down=down, up_bias=up_bias, gate_bias=gate_bias),
        choice._replace(neurons=neurons, neuron_list=listed),
        fill,
    )


def of_rows(plan: Plan, order: Tensor | None) -> Plan:
    """order: int64 [B'], rows of the batch; None: all of them. A copy that shares the weights alone."""
    rows = slice(None) if order is None else order.numpy()
    heads, neurons, *others = plan.choice
    choice = Choice(heads[rows].copy(), neurons[rows].copy(), *(part.copy() for part in others))
    if order is not None:
        list_all(choice)
    return plan._replace(choice=choice)


def kept(choice: Choice) -> list[np.ndarray]:
    """-> int32 [N] of each layer: the neurons that stay in any row, in rising order."""
    return [own[:count] for own, count in zip(choice.neuron_list, choice.counts[:, NEURONS])]


def copied(rows: Rows, choice: Choice) -> Rows:
    """Its kept rows first."""
    found = Rows(lined_up(rows.values.shape, rows.values.dtype))
    copy_kept(rows.values, found.values, choice)
    return found


def copied_in(rows: In, choice: Choice) -> In:
    if isinstance(rows, Rows):
        return copied(rows, choice)
    return rows._replace(records=copied_records(rows, choice))


def copied_out(rows: Out, choice: Choice) -> Out:
    """Grids of 32 rows stay where they are."""
    if isinstance(rows, Rows):
        return copied(rows, choice)
    unit = rows.unit.copy()
    for layer, lines in enumerate(kept(choice)):
        unit[layer, : len(lines)] = lines
    return rows._replace(records=copied_records(rows, choice), unit=unit)


def copied_records(rows: InRows | OutRows, choice: Choice) -> np.ndarray:
    found = lined_up(rows.records.shape, rows.records.dtype)
    shape, end = (rows.layers, rows.rows, rows.stride), rows.layers * rows.rows * rows.stride
    copy_kept(rows.records[:end].reshape(shape), found[:end].reshape(shape), choice)
    found[end:] = 0
    return found


def copy_kept(old: np.ndarray, new: np.ndarray, choice: Choice) -> None:
    """Of [L, R, N], a layer's kept rows one behind the other."""
    for layer, lines in enumerate(kept(choice)):
        room = torch.from_numpy(new[layer, : len(lines)])
        torch.index_select(torch.from_numpy(old[layer]), 0, torch.from_numpy(lines), out=room)
