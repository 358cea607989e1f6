"""How kernels are launched: block sizes that are tried out on a GPU, and the interpreter without one."""

import os

import torch
import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"  # Triton reads it when a kernel is defined


def choices(*blocks: dict[str, int]) -> list[triton.Config]:
    """What `triton.autotune` is to time on the GPU; the interpreter takes the first."""
    if INTERPRETED:
        return [triton.Config(blocks[0])]
    return [triton.Config(block, num_warps=warps, num_stages=3) for block in blocks for warps in (4, 8)]


def dot_type(dtype: torch.dtype) -> tl.dtype:
    """In what products of tiles take their factors; sums are float32. The interpreter multiplies the bits of
    bfloat16 as whole numbers (triton issue 11584), so there they are widened."""
    if INTERPRETED:
        return tl.float32
    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]


def lines_of(rows: int) -> int:
    """Rows of a batch in a tile: tensor cores take 16 at least, and a single row goes without them."""
    return 1 if rows == 1 else max(16, triton.next_power_of_2(rows))
