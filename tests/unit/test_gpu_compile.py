"""Triton's compiler takes every kernel, and needs no GPU for it: the interpreter allows more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install -e .[gpu] (Linux)")

COMPILE = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from shadow.executors.gpu import attention, channels, choice, units

TYPES = {
    "fp32": "fill above scores parts base factor before said highest total turns".split(),
    "i8": ["keep"],
    "i32": "listed count kept way least start end".split(),
}
NUMBERS = "B E R G H D U ROOM SPLITS size bucket first layers".split()


def check(kernel, **constants):
    kernel = getattr(kernel, "fn", kernel) if hasattr(kernel, "configs") else kernel
    types = {name: "*" + kind for kind, names in TYPES.items() for name in names}
    types |= {name: "i32" for name in NUMBERS} | {"scaling": "fp32"}
    types |= {name: "constexpr" for name in constants}
    signature = {name: types.get(name, "*bf16") for name in kernel.arg_names}
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    found = triton.compile(ASTSource(kernel, signature, values), target=GPUTarget("cuda", 80, 32))
    assert found.asm["cubin"]
    print(kernel.__name__)


tile = {"DOT": tl.bfloat16, "BLOCK_R": 16, "BLOCK_E": 64}
opt = {"gate": None, "gate_bias": None, "fill": None, "ACTIVATION": "relu"}
check(units.read_kernel, WIDTH=1, LINES=16, ACTIVATION="silu", **tile)
check(units.read_kernel, WIDTH=64, LINES=1, **opt, **tile)
check(units.write_kernel, WIDTH=1, LINES=16, SPLITS=16, **tile)
check(units.add_kernel, SPLITS=4, BLOCK=256)
check(channels.pick_kernel, LEAST=1, TOP=False, BLOCK=4096)
check(channels.sum_kernel, LINES=1, SPLITS=16, **tile)
check(channels.sum_kernel, LINES=16, SPLITS=16, **tile)
attend = {"EACH": 4, "DOT": tl.bfloat16, "BLOCK_H": 16, "BLOCK_D": 64, "BLOCK_T": 64, "SPAN": 256}
check(attention.attend_kernel, **attend)
check(attention.remember_kernel, turns=None, BLOCK_D=64)
check(attention.combine_kernel, BLOCK_D=64, SPAN=256)
check(choice.choose_kernel, BLOCK=512)
check(choice.list_kernel, LINES=4, BLOCK=512)
"""


@pytest.mark.slow
def test_every_kernel_compiles_for_a_gpu(root: Path, tmp_path: Path):
    """In a process of its own, as in this one kernels are interpreted."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path)  # or nothing would be compiled the second time
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], cwd=root, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.split()) == 12
