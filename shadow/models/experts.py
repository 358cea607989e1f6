"""A mixture of experts whose weights lie in one parameter: how `sites` sees their neurons."""

from torch import Tensor, nn

from shadow.errors import UserError
from shadow.models.sharded import whole


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
