"""A pass on torch's `meta` device that fails where a GPU would: tensors of two devices in one operation.

`meta` has shapes and no numbers, so that what asks for one is given ones. Unlike torch's own checks this one
sees products and look-ups too.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

aten = torch.ops.aten
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor)


class OneDevice(TorchDispatchMode):
    """joined: how many operations had tensors on `meta`."""

    def __init__(self) -> None:
        super().__init__()
        self.joined = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
        if not any(one.is_meta for one in tensors):
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            return torch.ones((), dtype=args[0].dtype).item()
        if func is aten._to_copy.default and torch.device(kwargs.get("device") or "meta").type == "cpu":
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if func in (aten._to_copy.default, aten.copy_.default):
            return func(*args, **kwargs) if args[0].is_meta else args[0]
        if func is aten.equal.default:
            return True
        if func is aten.nonzero.default:
            return everywhere(args[0])
        if func is aten.bincount.default:
            return torch.zeros(max([1, *args[2:3]]), device="meta", dtype=torch.int64)
        if func in INDEXED:
            where: list[Tensor | None] = []
            for one in args[1]:
                where += everywhere(one).unbind(1) if one is not None and one.dtype == torch.bool else [one]
            if args[0].is_meta:  # a GPU takes places that lie on the CPU, and brings them itself
                where = [one if one is None else one.to("meta") for one in where]
            args = (args[0], where, *args[2:])
            tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
        self.joined += 1
        devices = {one.device.type for one in tensors if one.dim() > 0}
        shapes = [(one.device.type, list(one.shape)) for one in tensors]
        assert len(devices) < 2, f"{func} joins tensors of {sorted(devices)}: {shapes}"
        return func(*args, **kwargs)


def everywhere(mask: Tensor) -> Tensor:
    """-> [N, dimensions]: the places of a mask that is true everywhere."""
    return torch.ones(mask.shape).nonzero().to("meta")
