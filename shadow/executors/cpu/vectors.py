"""What compiled code does with vectors of 64 bytes."""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from shadow.executors.cpu.byte_products import PATH, Path, pair_products, products
from shadow.executors.cpu.registers import (
    BYTE,
    BYTES,
    FLOATS,
    HALF,
    INT,
    INTS,
    SHORT,
    SHORTS,
    VectorType,
    call,
    constant,
    parts,
    shuffled,
)


def _operation(result: types.Type, takes: Sequence[types.Type | None], build: Callable[..., Any]) -> Any:
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

    return (none, one, two, three)[count]


def _at(builder: Any, address: Any, kind: ir.Type) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _reader(kind: VectorType, stored: ir.Type, widen: str = "") -> Any:
    """(address) -> the numbers from there on."""

    def build(builder: Any, address: Any) -> Any:
        found = builder.load(_at(builder, address, stored), align=1)
        return found if not widen else getattr(builder, widen)(found, kind.ir)

    return _operation(kind, (types.int64,), build)


def _store(builder: Any, address: Any, value: Any) -> None:
    builder.store(value, _at(builder, address, value.type), align=1)


def _fused(builder: Any, one: Any, other: Any, added: Any) -> Any:
    return call(builder, "llvm.fma.v16f32", one.type, one, other, added)


def _low(builder: Any, pairs: Any) -> Any:
    return builder.and_(pairs, constant(BYTES, 15))


def _high(builder: Any, pairs: Any) -> Any:
    return builder.lshr(pairs, constant(BYTES, 4))


def _sum(builder: Any, value: Any) -> Any:
    """Halves upon one another: a fixed order."""
    while value.type.count > 1:
        half = value.type.count // 2
        one, other = parts(builder, value, half)
        value = builder.add(one, other) if value.type.element == INT else builder.fadd(one, other)
    return builder.extract_element(value, ir.Constant(INT, 0))


def _four(start: int) -> Any:
    """Each of four neighbours four times."""

    def build(builder: Any, value: Any) -> Any:
        return shuffled(builder, value, value, [start + lane // 4 for lane in range(16)])

    return _operation(FLOATS, (FLOATS,), build)


def product(path: Path) -> Any:
    return _operation(INTS, (INTS, BYTES, BYTES), lambda builder, *values: products(builder, path, *values))


def _kept_halves(builder: Any, address: Any, mask: Any) -> Any:
    """As `read_halves`; those whose mask (uint16) is 0 are 0, whatever stands there."""
    words = ir.VectorType(SHORT, 16)
    found = builder.load(_at(builder, address, words), align=1)
    found = builder.and_(found, builder.load(_at(builder, mask, words), align=1))
    return builder.fpext(builder.bitcast(found, ir.VectorType(HALF, 16)), FLOATS.ir)


def _one(builder: Any, name: str, value: Any) -> Any:
    return call(builder, f"{name}.v{value.type.count}f32", value.type, value)


def _greater(builder: Any, one: Any, other: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", one, other), one, other)


def _largest(builder: Any, value: Any) -> Any:
    while value.type.count > 1:
        value = _greater(builder, *parts(builder, value, value.type.count // 2))
    return builder.extract_element(value, ir.Constant(INT, 0))


def _nearest(builder: Any, value: Any) -> Any:
    return builder.fptosi(_one(builder, "llvm.rint", value), INTS.ir)


def _exponential(builder: Any, value: Any) -> Any:
    """2^whole times a polynomial (Taylor's, of degree 6) of what is left, below half of log 2; to 1e-7."""

    def of(number: float) -> Any:
        return constant(FLOATS, number)

    value = _greater(builder, value, of(-87.0))
    whole = _one(builder, "llvm.rint", builder.fmul(value, of(1.4426950408889634)))
    left = _fused(builder, whole, of(-0.693359375), value)
    left = _fused(builder, whole, of(2.12194440e-4), left)
    found = of(1 / 720)
    for number in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        found = _fused(builder, found, left, of(number))
    power = builder.shl(builder.add(builder.fptosi(whole, INTS.ir), constant(INTS, 127)), constant(INTS, 23))
    return builder.fmul(found, builder.bitcast(power, FLOATS.ir))


def _sixteen(builder: Any, address: Any) -> Any:
    return builder.zext(builder.load(_at(builder, address, ir.VectorType(BYTE, 16)), align=1), INTS.ir)


def _two_eights(builder: Any, address: Any) -> Any:
    """Bytes from here on, and from 16 behind."""
    eight = ir.VectorType(BYTE, 8)
    there = builder.add(address, ir.Constant(ir.IntType(64), 16))
    one, other = (builder.load(_at(builder, place, eight), align=1) for place in (address, there))
    return builder.zext(shuffled(builder, one, other, range(16)), INTS.ir)


def _half_precision(builder: Any, address: Any) -> Any:
    return builder.fpext(builder.load(_at(builder, address, HALF), align=1), ir.FloatType())


def _store_bytes(builder: Any, address: Any, value: Any) -> None:
    short = builder.trunc(value, ir.VectorType(BYTE, 16))
    builder.store(short, _at(builder, address, short.type), align=1)


def _woven(first: int) -> Any:
    """Of each 16 bytes of two vectors 8 from `first` on, by turns."""
    lanes = [lane * 16 + first + at // 2 + 64 * (at % 2) for lane in range(4) for at in range(16)]
    return _operation(BYTES, (BYTES, BYTES), lambda builder, one, other: shuffled(builder, one, other, lanes))


def _everywhere(builder: Any, address: Any) -> Any:
    """Four bytes, again and again."""
    word = builder.load(_at(builder, address, INT), align=1)
    lone = builder.insert_element(ir.Constant(INTS.ir, ir.Undefined), word, ir.Constant(INT, 0))
    return builder.bitcast(shuffled(builder, lone, lone, [0] * 16), BYTES.ir)


def _half(start: int) -> Any:
    """16 of 32 numbers, as wide ones."""

    def build(builder: Any, value: Any) -> Any:
        return builder.sext(shuffled(builder, value, value, range(start, start + 16)), INTS.ir)

    return _operation(INTS, (SHORTS,), build)


def _prefetch(builder: Any, address: Any) -> None:
    place, flags = _at(builder, address, BYTE), [ir.Constant(INT, flag) for flag in (0, 3, 1)]
    call(builder, "llvm.prefetch.p0", ir.VoidType(), place, *flags)


def pairs(path: Path) -> Any:
    return _operation(SHORTS, (BYTES, BYTES), lambda builder, *values: pair_products(builder, path, *values))


prefetch = _operation(types.void, (types.int64,), _prefetch)
woven_first, woven_last = _woven(0), _woven(8)
read_everywhere = _operation(BYTES, (types.int64,), _everywhere)
read_kept_halves = _operation(FLOATS, (types.int64, types.int64), _kept_halves)
largest = _operation(types.float32, (FLOATS,), _largest)
magnitude = _operation(FLOATS, (FLOATS,), lambda builder, value: _one(builder, "llvm.fabs", value))
greater = _operation(FLOATS, (FLOATS, FLOATS), _greater)
nearest = _operation(INTS, (FLOATS,), _nearest)
store_as_bytes = _operation(types.void, (types.int64, INTS), _store_bytes)
total_of_ints = _operation(types.int32, (INTS,), _sum)
first_half, last_half = _half(0), _half(16)
no_shorts = _operation(SHORTS, (), lambda builder: constant(SHORTS, 0))
add_shorts = _operation(SHORTS, (SHORTS, SHORTS), lambda builder, one, other: builder.add(one, other))
add_ints = _operation(INTS, (INTS, INTS), lambda builder, one, other: builder.add(one, other))
sixteenfold = _operation(INTS, (INTS,), lambda builder, value: builder.shl(value, constant(INTS, 4)))
pair_up = pairs(PATH)
everywhere = _operation(
    FLOATS,
    (types.float32,),
    lambda builder, value: builder.shuffle_vector(
        builder.insert_element(constant(FLOATS, 0.0), value, ir.Constant(INT, 0)),
        constant(FLOATS, 0.0),
        ir.Constant(ir.VectorType(INT, 16), [0] * 16),
    ),
)


def wide_product(path: Path) -> Any:
    """The same of counts up to 255."""

    def build(builder: Any, sums: Any, counts: Any, signed: Any) -> Any:
        if path != "maddubs":
            return products(builder, path, sums, counts, signed)
        sums = products(builder, path, sums, _low(builder, counts), signed)
        upper = products(builder, path, constant(INTS, 0), _high(builder, counts), signed)
        return builder.add(sums, builder.shl(upper, constant(INTS, 4)))

    return _operation(INTS, (INTS, BYTES, BYTES), build)


def _address(builder: Any, data: Any) -> Any:
    return builder.ptrtoint(data, ir.IntType(64))


address_of = _operation(types.int64, (None,), _address)  # of an array's first byte, while the caller has it
cycles = _operation(
    types.int64, (), lambda builder: call(builder, "llvm.readcyclecounter", ir.IntType(64))
)  # of the processor's clock, which runs evenly
read_bytes = _reader(BYTES, BYTES.ir)
read_floats = _reader(FLOATS, FLOATS.ir)
read_halves = _reader(FLOATS, ir.VectorType(HALF, 16), "fpext")  # array: of bytes
read_half = _operation(types.float32, (types.int64,), _half_precision)
read_sixteen = _operation(INTS, (types.int64,), _sixteen)
read_two_eights = _operation(INTS, (types.int64,), _two_eights)
low_of = _operation(INTS, (INTS,), lambda builder, value: builder.and_(value, constant(INTS, 15)))
high_of = _operation(INTS, (INTS,), lambda builder, value: builder.lshr(value, constant(INTS, 4)))
below_128 = _operation(INTS, (INTS,), lambda builder, value: builder.sub(value, constant(INTS, 128)))
read_place = _operation(
    types.int64, (types.int64,), lambda builder, address: builder.load(_at(builder, address, ir.IntType(64)))
)
store_floats = _operation(types.void, (types.int64, FLOATS), _store)
no_floats = _operation(FLOATS, (), lambda builder: constant(FLOATS, 0.0))
no_ints = _operation(INTS, (), lambda builder: constant(INTS, 0))
as_floats = _operation(FLOATS, (INTS,), lambda builder, value: builder.sitofp(value, FLOATS.ir))
times = _operation(FLOATS, (FLOATS, FLOATS), lambda builder, one, other: builder.fmul(one, other))
plus = _operation(FLOATS, (FLOATS, FLOATS), lambda builder, one, other: builder.fadd(one, other))
exponential = _operation(FLOATS, (FLOATS,), _exponential)  # of numbers up to 88; below -87 it is that of -87
fused = _operation(FLOATS, (FLOATS, FLOATS, FLOATS), _fused)
low = _operation(BYTES, (BYTES,), _low)
high = _operation(BYTES, (BYTES,), _high)
total = _operation(types.float32, (FLOATS,), _sum)
four0, four1, four2, four3 = (_four(start) for start in (0, 4, 8, 12))
add_products = product(PATH)
add_wide_products = wide_product(PATH)
