"""From LLVM's code to functions of compiled code."""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def operation(result: types.Type, takes: Sequence[types.Type | None], build: Callable[..., Any]) -> Any:
    """A function of compiled code. takes: None: of any type; build: (builder, *values) -> value."""

    def typed(typing: Any, *given: Any) -> Any:
        signature = result(*(own if take is None else take for own, take in zip(given, takes, strict=True)))

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            ready = [
                context.make_array(kind)(context, builder, arg).data if isinstance(kind, types.Array) else arg
                for kind, arg in zip(signature.args, args)
            ]
            found = build(builder, *ready)
            return context.get_dummy_value() if result == types.void else found

        return signature, generate

    return intrinsic(_of_fixed_length(typed, len(takes)))


def _of_fixed_length(typed: Callable[..., Any], count: int) -> Callable[..., Any]:
    """numba reads the names of arguments."""

    def none(typing: Any) -> Any:
        return typed(typing)

    def one(typing: Any, a: Any) -> Any:
        return typed(typing, a)

    def two(typing: Any, a: Any, b: Any) -> Any:
        return typed(typing, a, b)

    def three(typing: Any, a: Any, b: Any, c: Any) -> Any:
        return typed(typing, a, b, c)

    def four(typing: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        return typed(typing, a, b, c, d)

    return (none, one, two, three, four)[count]


def at(builder: Any, address: Any, kind: ir.Type) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def load(builder: Any, address: Any, kind: ir.Type) -> Any:
    return builder.load(at(builder, address, kind), align=1)


def store(builder: Any, address: Any, value: Any) -> None:
    builder.store(value, at(builder, address, value.type), align=1)
