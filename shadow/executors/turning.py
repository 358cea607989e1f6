"""Weights that a block turns over, columns first: how they are told meanwhile, and turned back."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel

from shadow.errors import UserError
from shadow.executors.families import describe


class Ended:
    """In the place of a run's weights when its block has ended, and they lie as the model has them."""

    def __getattr__(self, name: str) -> object:
        raise UserError("this run's block has ended, and its weights are the model's again: open a new block")


def straighten(model: PreTrainedModel) -> None:
    """What was turned over, to be read by units, lies row by row again: for dense speed, and for what saves.

    A copy, as others may hold the rows; role by role, so that the rows of one are free before the next.
    """
    layers = describe(model)[1].layers
    for roles in (("output",), ("down",), ("query", "key", "value"), ("gate", "up")):
        for layer in layers:
            for linear in (getattr(layer, role) for role in roles):
                if linear is not None:
                    linear.weight.data = linear.weight.data.contiguous()


@contextmanager
def saved_row_by_row(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block the model's state is told as its rows have it, so that it can be saved."""

    def row_by_row(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: dict) -> None:
        for name, value in state.items():
            if isinstance(value, Tensor):  # quantised modules tell more than tensors
                state[name] = value.contiguous()

    handle = model.register_state_dict_post_hook(row_by_row)
    try:
        yield
    finally:
        handle.remove()
