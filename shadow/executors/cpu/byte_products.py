"""What a processor multiplies bytes with, chosen by what it has."""

from typing import Any, Literal

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core.registry import cpu_target

from shadow.executors.cpu.registers import INT, SHORT, SHORTS, call, parts, shuffled, whole

Path = Literal["vnni512", "vnni256", "maddubs", "plain"]


def features() -> set[str]:
    """Of the processor that numba compiles for."""
    told = cpu_target.target_context.codegen()._tm_features  # NUMBA_CPU_FEATURES, or the host's
    return {one[1:] for one in (told or llvm.get_host_cpu_features().flatten()).split(",") if one[:1] == "+"}


def best_path(known: set[str]) -> Path:
    if {"avx512vnni", "avx512bw", "avx512vl"} <= known:
        return "vnni512"
    if "avxvnni" in known:
        return "vnni256"
    return "maddubs" if "avx2" in known else "plain"


PATH = best_path(features())


def pair_products(builder: Any, path: Path, counts: Any, signed: Any) -> Any:
    """-> <32 x i16>, of each two neighbours counts (unsigned) times signed: <64 x i8>; must fit 16 bits."""
    if path in ("vnni512", "vnni256") and "avx512bw" in features():
        return call(builder, "llvm.x86.avx512.pmaddubs.w.512", SHORTS.ir, counts, signed)
    if path != "plain":
        cut, half = zip(parts(builder, counts, 32), parts(builder, signed, 32)), ir.VectorType(SHORT, 16)
        return whole(builder, [call(builder, "llvm.x86.avx2.pmadd.ub.sw", half, c, s) for c, s in cut])
    wide = ir.VectorType(SHORT, 64)
    every = builder.mul(builder.zext(counts, wide), builder.sext(signed, wide))
    one, other = (shuffled(builder, every, every, range(start, 64, 2)) for start in range(2))
    return builder.add(one, other)


def products(builder: Any, path: Path, total: Any, counts: Any, signed: Any) -> Any:
    """total: <16 x i32> + of each four neighbours counts (unsigned) times signed: <64 x i8>. Exact: of
    `maddubs` two neighbouring products must fit 16 bits, as 4-bit counts and those up to 128 do."""
    if path == "vnni512":
        return call(builder, "llvm.x86.avx512.vpdpbusd.512", total.type, total, counts, signed)
    if path == "vnni256":
        name = "llvm.x86.avx512.vpdpbusd.256"
        cut = zip(parts(builder, total, 8), parts(builder, counts, 32), parts(builder, signed, 32))
        return whole(builder, [call(builder, name, t.type, t, c, s) for t, c, s in cut])
    if path == "maddubs":
        found = []
        ones = ir.Constant(ir.VectorType(SHORT, 16), [1] * 16)
        for t, c, s in zip(parts(builder, total, 8), parts(builder, counts, 32), parts(builder, signed, 32)):
            pairs = call(builder, "llvm.x86.avx2.pmadd.ub.sw", ir.VectorType(SHORT, 16), c, s)
            fours = call(builder, "llvm.x86.avx2.pmadd.wd", ir.VectorType(INT, 8), pairs, ones)
            found.append(builder.add(t, fours))
        return whole(builder, found)
    wide = ir.VectorType(INT, 64)
    every = builder.mul(builder.zext(counts, wide), builder.sext(signed, wide))
    for start in range(4):
        lanes = range(start, 64, 4)
        total = builder.add(total, shuffled(builder, every, every, lanes))
    return total
