"""Room for the numbers of one token's compiled call."""

import numpy as np

from shadow.executors.cpu.channels import ChannelWeights
from shadow.executors.cpu.decode import Bench
from shadow.executors.cpu.grouped import VECTOR
from shadow.executors.cpu.lined_up import lined_up
from shadow.executors.cpu.matrices import Out, OutRows, width_of
from shadow.executors.cpu.prefill import Fills
from shadow.executors.cpu.scoring import Nets
from shadow.executors.cpu.states import empty_states
from shadow.executors.cpu.weights import Weights

TOGETHER = 512  # rows of weights that a batch reads together, at most


def empty_bench(
    weights: Weights | ChannelWeights,
    nets: Nets,
    fills: Fills,
    members: int,
    rows: int,
    room: int,
    exact: bool,
) -> Bench:
    """rows: of the batch; room: positions that a memory holds at most."""
    # a line more than is used where a member's own begins, or two threads would write to one cache line
    sizes = weights.sizes
    inputs = isinstance(weights, ChannelWeights)
    written = sizes.width if isinstance(weights, ChannelWeights) else len_of_sums(weights.output)
    inner = sizes.heads * sizes.head_width
    read = 16 + (max(inner, sizes.neurons, sizes.width) if rows == 1 or inputs else TOGETHER)
    stored = sizes.kv_heads * sizes.head_width

    def empty(*shape: int) -> np.ndarray:
        return lined_up(shape, np.dtype(np.float32))

    return Bench(
        h=empty(rows, sizes.width),
        x=empty(members, rows + 1, sizes.width),
        query=empty(rows, inner),
        key=empty(rows, stored),
        value=empty(rows, stored),
        context=empty(rows, inner),
        sums=empty(members, rows + 1, written),
        up=empty(rows, sizes.neurons),
        gate=empty(rows, sizes.neurons),
        lines=np.empty((members, read), np.int32),
        factors=empty(members, read),
        weights=empty(members, room + 32),
        turned=empty(members, 3, sizes.head_width),
        scaled=empty(members, rows, sizes.width),
        hidden=empty(max(1, int(nets.depth[0])), rows, width_of(nets.bend)),
        told=empty(rows, nets.down_bias.shape[1]),
        bent=empty(rows, nets.down_bias.shape[1]),
        head_scores=empty(rows, sizes.layers * sizes.heads),
        neuron_scores=empty(rows, sizes.layers * sizes.neurons),
        ranked=np.empty((members, max(sizes.heads, sizes.neurons)), np.int32),
        logits=empty(rows, sizes.vocabulary),
        fill_heads=fills.of["head"].flatten(1).numpy(),
        fill_neurons=fills.of["neuron"].flatten(1).numpy(),
        fill_bases=fills.bases.numpy(),
        states=empty_states(members * rows, sizes.width, exact),
        places=np.empty((members, 2, 40), np.int64),
        words=np.empty((members, 32), np.int32),
        clock=np.zeros((members, 16), np.int64),
    )


def len_of_sums(output: Out) -> int:
    """Of what rows are added up to, with the holes of its last vector."""
    return output.blocks * VECTOR // output.bits if isinstance(output, OutRows) else width_of(output)
