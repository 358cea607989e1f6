"""What compiled code does with vectors of 64 bytes."""

from typing import Any

from llvmlite import ir
from numba import types

from shadow.executors.cpu.byte_products import PATH, Path, pair_products, products
from shadow.executors.cpu.operations import at, load, operation, store
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


def _reader(kind: VectorType, stored: ir.Type, widen: str = "") -> Any:
    """(address) -> the numbers from there on."""

    def build(builder: Any, address: Any) -> Any:
        found = load(builder, address, stored)
        return found if not widen else getattr(builder, widen)(found, kind.ir)

    return operation(kind, (types.int64,), build)


def _fused(builder: Any, one: Any, other: Any, added: Any) -> Any:
    return call(builder, "llvm.fma.v16f32", one.type, one, other, added)


def _low(builder: Any, pairs: Any) -> Any:
    return builder.and_(pairs, constant(BYTES, 15))


def _high(builder: Any, pairs: Any) -> Any:
    return builder.lshr(pairs, constant(BYTES, 4))


def halves_of(builder: Any, pairs: Any) -> tuple[Any, Any]:
    return _low(builder, pairs), _high(builder, pairs)


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

    return operation(FLOATS, (FLOATS,), build)


def product(path: Path) -> Any:
    return operation(INTS, (INTS, BYTES, BYTES), lambda builder, *values: products(builder, path, *values))


def _kept_halves(builder: Any, address: Any, mask: Any) -> Any:
    """As `read_halves`; those whose mask (uint16) is 0 are 0, whatever stands there."""
    words = ir.VectorType(SHORT, 16)
    found = load(builder, address, words)
    found = builder.and_(found, load(builder, mask, words))
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
    """2^whole times a polynomial (Taylor's, of degree 6) of what is left, below half of log 2; to 1e-7. Below
    -87 it is 0: sums with numbers that are nearly 0 take a hundred times as long."""

    def of(number: float) -> Any:
        return constant(FLOATS, number)

    low = builder.fcmp_ordered("<", value, of(-87.0))
    value = builder.select(low, of(-87.0), value)
    whole = _one(builder, "llvm.rint", builder.fmul(value, of(1.4426950408889634)))
    left = _fused(builder, whole, of(-0.693359375), value)
    left = _fused(builder, whole, of(2.12194440e-4), left)
    found = of(1 / 720)
    for number in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        found = _fused(builder, found, left, of(number))
    power = builder.shl(builder.add(builder.fptosi(whole, INTS.ir), constant(INTS, 127)), constant(INTS, 23))
    return builder.select(low, of(0.0), builder.fmul(found, builder.bitcast(power, FLOATS.ir)))


def _silu(builder: Any, value: Any) -> Any:
    most = constant(FLOATS, 87.0)
    turned = builder.fneg(value)
    turned = builder.select(builder.fcmp_ordered("<", turned, most), turned, most)
    return builder.fdiv(value, builder.fadd(_exponential(builder, turned), constant(FLOATS, 1.0)))


def _sixteen(builder: Any, address: Any) -> Any:
    return builder.zext(load(builder, address, ir.VectorType(BYTE, 16)), INTS.ir)


def _two_eights(builder: Any, address: Any) -> Any:
    """Bytes from here on, and from 16 behind."""
    eight = ir.VectorType(BYTE, 8)
    there = builder.add(address, ir.Constant(ir.IntType(64), 16))
    one, other = (load(builder, place, eight) for place in (address, there))
    return builder.zext(shuffled(builder, one, other, range(16)), INTS.ir)


def _half_precision(builder: Any, address: Any) -> Any:
    return builder.fpext(load(builder, address, HALF), ir.FloatType())


def _store_bytes(builder: Any, address: Any, value: Any) -> None:
    short = builder.trunc(value, ir.VectorType(BYTE, 16))
    store(builder, address, short)


def _woven(first: int) -> Any:
    """Of each 16 bytes of two vectors 8 from `first` on, by turns."""
    lanes = [lane * 16 + first + at // 2 + 64 * (at % 2) for lane in range(4) for at in range(16)]
    return operation(BYTES, (BYTES, BYTES), lambda builder, one, other: shuffled(builder, one, other, lanes))


def _everywhere(kind: VectorType) -> Any:
    """Four bytes, again and again."""

    def build(builder: Any, address: Any) -> Any:
        word = load(builder, address, INT)
        lone = builder.insert_element(ir.Constant(INTS.ir, ir.Undefined), word, ir.Constant(INT, 0))
        return builder.bitcast(shuffled(builder, lone, lone, [0] * 16), kind.ir)

    return operation(kind, (types.int64,), build)


def _half(start: int) -> Any:
    """16 of 32 numbers, as wide ones."""

    def build(builder: Any, value: Any) -> Any:
        return builder.sext(shuffled(builder, value, value, range(start, start + 16)), INTS.ir)

    return operation(INTS, (SHORTS,), build)


def _prefetch(builder: Any, address: Any) -> None:
    place, flags = at(builder, address, BYTE), [ir.Constant(INT, flag) for flag in (0, 3, 1)]
    call(builder, "llvm.prefetch.p0", ir.VoidType(), place, *flags)


def pairs(path: Path) -> Any:
    return operation(SHORTS, (BYTES, BYTES), lambda builder, *values: pair_products(builder, path, *values))


prefetch = operation(types.void, (types.int64,), _prefetch)
woven_first, woven_last = _woven(0), _woven(8)
read_everywhere, read_everywhere_float = _everywhere(BYTES), _everywhere(FLOATS)
read_kept_halves = operation(FLOATS, (types.int64, types.int64), _kept_halves)
largest = operation(types.float32, (FLOATS,), _largest)
magnitude = operation(FLOATS, (FLOATS,), lambda builder, value: _one(builder, "llvm.fabs", value))
greater = operation(FLOATS, (FLOATS, FLOATS), _greater)
nearest = operation(INTS, (FLOATS,), _nearest)
store_as_bytes = operation(types.void, (types.int64, INTS), _store_bytes)
total_of_ints = operation(types.int32, (INTS,), _sum)
first_half, last_half = _half(0), _half(16)
no_shorts = operation(SHORTS, (), lambda builder: constant(SHORTS, 0))
add_shorts = operation(SHORTS, (SHORTS, SHORTS), lambda builder, one, other: builder.add(one, other))
add_ints = operation(INTS, (INTS, INTS), lambda builder, one, other: builder.add(one, other))
sixteenfold = operation(INTS, (INTS,), lambda builder, value: builder.shl(value, constant(INTS, 4)))
pair_up = pairs(PATH)
everywhere = operation(
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

    return operation(INTS, (INTS, BYTES, BYTES), build)


def _address(builder: Any, data: Any) -> Any:
    return builder.ptrtoint(data, ir.IntType(64))


address_of = operation(types.int64, (None,), _address)  # of an array's first byte, while the caller has it
cycles = operation(
    types.int64, (), lambda builder: call(builder, "llvm.readcyclecounter", ir.IntType(64))
)  # of the processor's clock, which runs evenly
read_bytes = _reader(BYTES, BYTES.ir)
read_floats = _reader(FLOATS, FLOATS.ir)
read_halves = _reader(FLOATS, ir.VectorType(HALF, 16), "fpext")  # array: of bytes
read_half = operation(types.float32, (types.int64,), _half_precision)
read_sixteen = operation(INTS, (types.int64,), _sixteen)
read_two_eights = operation(INTS, (types.int64,), _two_eights)
low_of = operation(INTS, (INTS,), lambda builder, value: builder.and_(value, constant(INTS, 15)))
high_of = operation(INTS, (INTS,), lambda builder, value: builder.lshr(value, constant(INTS, 4)))
below_128 = operation(INTS, (INTS,), lambda builder, value: builder.sub(value, constant(INTS, 128)))
read_place = operation(
    types.int64, (types.int64,), lambda builder, address: load(builder, address, ir.IntType(64))
)
store_floats = operation(types.void, (types.int64, FLOATS), store)
no_floats = operation(FLOATS, (), lambda builder: constant(FLOATS, 0.0))
no_ints = operation(INTS, (), lambda builder: constant(INTS, 0))
as_floats = operation(FLOATS, (INTS,), lambda builder, value: builder.sitofp(value, FLOATS.ir))
times = operation(FLOATS, (FLOATS, FLOATS), lambda builder, one, other: builder.fmul(one, other))
plus = operation(FLOATS, (FLOATS, FLOATS), lambda builder, one, other: builder.fadd(one, other))
exponential = operation(FLOATS, (FLOATS,), _exponential)  # of numbers up to 88
silu = operation(FLOATS, (FLOATS,), _silu)
fused = operation(FLOATS, (FLOATS, FLOATS, FLOATS), _fused)
low = operation(BYTES, (BYTES,), _low)
high = operation(BYTES, (BYTES,), _high)
total = operation(types.float32, (FLOATS,), _sum)
four0, four1, four2, four3 = (_four(start) for start in (0, 4, 8, 12))
add_products = product(PATH)
add_wide_products = wide_product(PATH)
