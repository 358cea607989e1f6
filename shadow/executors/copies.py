"""Inside a block a model is not to be copied: the copy would keep hooks, or answer for the original."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from torch import nn

from shadow.errors import UserError


@contextmanager
def uncopied(model: nn.Module) -> Iterator[None]:
    """Of any module of the model `copy.deepcopy`, `pickle` and `torch.save` are refused."""
    modules = list(model.modules())
    for module in modules:
        vars(module)["__reduce_ex__"] = refuse  # what both ask an object for first
    try:
        yield
    finally:
        for module in modules:
            vars(module).pop("__reduce_ex__", None)  # a block that ended out of turn has taken it


def refuse(protocol: object) -> NoReturn:
    raise UserError(
        "the model cannot be copied or pickled inside a sparse block, as the copy would hold the block too: "
        "do it before the block or after it, while save_pretrained and state_dict work inside"
    )
