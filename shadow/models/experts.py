"""A mixture of experts whose weights lie in one parameter: how `sites` sees their neurons."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shadow.errors import UserError
from shadow.models.sharded import whole

# implementations of transformers whose rows are in a known order: of experts, or of tokens and their choices
ORDERS = {"grouped_mm": True, "batched_mm": False}


def experts_at(layer: nn.Module, path: str, index: int) -> nn.Module:
    """The experts of a layer; down_proj: [X, E, F] of X experts of F neurons each."""
    try:
        found = layer.get_submodule(path)
    except AttributeError as error:
        raise UserError(
            f"layer {index} has no experts, and others have: layers of different kinds are not supported"
        ) from error
    down, gates = found.get_parameter("down_proj"), found.get_parameter("gate_up_proj")
    assert down.dim() == 3
    assert gates.shape == (down.shape[0], 2 * down.shape[2], down.shape[1])
    return found


def count_experts(experts: nn.Module) -> int:
    return len(experts.get_parameter("down_proj"))


def expert_width(experts: nn.Module) -> int:
    """Neurons of one expert."""
    return experts.get_parameter("down_proj").shape[2]


def expert_columns(experts: nn.Module) -> Tensor:
    """-> [E, X * F, 1]: the weights by which each neuron is read, expert by expert."""
    return whole(experts.get_parameter("down_proj").detach()).transpose(0, 1).flatten(1)[..., None]


@contextmanager
def visit_experts(experts: nn.Module, fn: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Call fn(x), x: [N, X * F], when each of N tokens has the neurons of the experts that it is sent to.

    The others' are 0. What fn returns is what the chosen experts read. The neurons are
    those before the router weighs what their expert says; x stands in the autograd graph. All that is
    replaced is `_apply_gate`, by which transformers makes a row of neurons for each token and chosen expert.
    """
    implementation = getattr(experts.config, "_experts_implementation", None)
    if implementation not in ORDERS:
        raise UserError(
            f"neurons of experts are visible with experts_implementation in {sorted(ORDERS)}, got "
            f"{implementation!r}: call model.set_experts_implementation('grouped_mm')"
        )
    sent: list[Tensor] = []  # [N, K]: the experts of each token
    before = vars(experts).get("_apply_gate")
    gate: Callable[[Tensor], Tensor] = experts._apply_gate  # type: ignore[assignment]

    def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        sent[:] = [args[1] if len(args) > 1 else kwargs["top_k_index"]]

    def apply_gate(gates: Tensor) -> Tensor:
        neurons = gate(gates)  # [N * K, F]
        chosen = sent[0].flatten()
        rows = torch.sort(chosen).indices if ORDERS[implementation] else torch.arange(len(chosen))
        token, expert = rows.to(chosen.device) // sent[0].shape[1], chosen[rows]
        shape = (len(sent[0]), count_experts(experts), neurons.shape[1])
        x = neurons.new_zeros(shape).index_put((token, expert), neurons)
        return fn(x.flatten(1)).view(shape)[token, expert]

    with ExitStack() as stack:
        stack.callback(experts.register_forward_pre_hook(note, with_kwargs=True).remove)
        experts._apply_gate = apply_gate  # type: ignore[assignment]
        try:
            yield
        finally:
            if before is None:
                del experts._apply_gate
            else:
                experts._apply_gate = before
