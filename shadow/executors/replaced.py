"""Methods of a model that a block replaces, and copies of a model in a block, which have nothing of it."""

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import torch
from torch import nn

from shadow import signals
from shadow.errors import UserError


@contextmanager
def replace_method(owner: nn.Module, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Inside the block this method of the owner is another one; afterwards it is what it was.

    torch.compile leaves it and all that it calls as they are: compiled code goes past hooks.
    """
    eager = torch.compiler.disable(method)

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        return eager(*args, **kwargs)

    stand_in.__signature__ = inspect.signature(getattr(owner, name))  # type: ignore[attr-defined]
    stood = stand_in.stood = vars(owner).get(name)  # type: ignore[attr-defined]  # accelerate has a `forward`
    setattr(owner, name, stand_in)
    try:
        yield
    finally:
        if stood is None:
            delattr(owner, name)
        else:
            setattr(owner, name, stood)


@contextmanager
def copied_without(model: nn.Module) -> Iterator[None]:
    """Inside the block a deep copy of the model, or of a part, has none of what this module has put on it; a
    pickle, which would, is refused."""
    modules = list(model.modules())
    for module in modules:
        vars(module).update({"__deepcopy__": partial(_copied, module), "__reduce_ex__": _refuse_pickle})
    try:
        yield
    finally:
        for module in modules:
            for name in COPYING:
                vars(module).pop(name, None)  # a block that ended out of turn has taken it


COPYING = ("__deepcopy__", "__reduce_ex__")  # what a copy, and a pickle, ask an object for first


def _copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    found = memo[id(module)] = type(module).__new__(type(module))
    state = {name: value for name, value in vars(module).items() if name not in COPYING}
    found.__setstate__(copy.deepcopy(state, memo))
    _take_off(found)
    return found


def _refuse_pickle(protocol: object) -> NoReturn:
    raise UserError(
        "the model cannot be pickled inside a sparse block, as it would hold the block too: do it before the "
        "block or after it, while save_pretrained, state_dict and copy.deepcopy work inside"
    )


def _take_off(module: nn.Module) -> None:
    """What functions of this module, and hooks, have put on a copy."""
    for name, value in list(vars(module).items()):
        if getattr(value, "__module__", None) != __name__:
            continue
        while getattr(value, "__module__", None) == __name__:  # one stands before another
            value = getattr(value, "stood", None)
        del vars(module)[name]
        if value is not None:
            vars(module)[name] = value
    for hooks, with_kwargs in (
        (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
        (module._forward_hooks, module._forward_hooks_with_kwargs),
    ):
        for number, hook in list(hooks.items()):
            if hook.__module__ == signals.__name__:
                del hooks[number]
                with_kwargs.pop(number, None)
