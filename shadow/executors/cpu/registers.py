"""Vectors of 64 bytes as types of compiled code, and LLVM's code that cuts and joins them."""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model


class VectorType(types.Type):
    """`lanes` numbers of one LLVM type, which numba keeps in a register."""

    def __init__(self, element: ir.Type, lanes: int) -> None:
        self.ir = ir.VectorType(element, lanes)
        super().__init__(name=f"vector({lanes} x {element})")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: VectorType) -> None:
        super().__init__(manager, kind, kind.ir)


BYTE, SHORT, INT, HALF, FLOAT = (
    ir.IntType(8),
    ir.IntType(16),
    ir.IntType(32),
    ir.HalfType(),
    ir.FloatType(),
)
BYTES, SHORTS, INTS, FLOATS = (
    VectorType(BYTE, 64),
    VectorType(SHORT, 32),
    VectorType(INT, 16),
    VectorType(FLOAT, 16),
)


def constant(kind: VectorType, value: int | float) -> ir.Constant:
    return ir.Constant(kind.ir, [value] * kind.ir.count)


def parts(builder: Any, value: Any, size: int) -> list[Any]:
    """A vector cut into vectors of `size` lanes."""
    index = ir.VectorType(INT, size)
    return [
        builder.shuffle_vector(
            value, ir.Constant(value.type, ir.Undefined), ir.Constant(index, list(range(at, at + size)))
        )
        for at in range(0, value.type.count, size)
    ]


def whole(builder: Any, cut: Sequence[Any]) -> Any:
    """What `parts` has cut, two at a time."""
    found = list(cut)
    while len(found) > 1:
        size = 2 * found[0].type.count
        every = ir.Constant(ir.VectorType(INT, size), list(range(size)))
        found = [builder.shuffle_vector(one, other, every) for one, other in zip(found[::2], found[1::2])]
    return found[0]


def shuffled(builder: Any, one: Any, other: Any, lanes: Sequence[int]) -> Any:
    return builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(INT, len(lanes)), list(lanes)))


def call(builder: Any, name: str, kind: ir.Type, *args: Any) -> Any:
    function = ir.FunctionType(kind, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), args)
