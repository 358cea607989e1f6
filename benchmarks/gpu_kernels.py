"""Kernels of kept units beside dense cuBLAS and torch's attention: microseconds, ratios, rooflines; on CUDA.

python benchmarks/gpu_kernels.py [SHAPE ...] [--level 0 0.3 0.5 0.7] [--rows 1 4 16] [--length 1024]

Units that stay are drawn at random, for each row of the batch its own, so that their union grows with it.
Dense is what a layer does: linear layers with bias and activation, or query, attention over the cache and
output. *Roofline* is dense over kept bytes of weights, and of keys and values: what memory alone would allow.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from gpu_models import SHAPES, Shape
from torch import Tensor


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", nargs="*", default=list(SHAPES))
    parser.add_argument("--level", nargs="+", type=float, default=[0.0, 0.3, 0.5, 0.7])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(
            "benchmarks/gpu_kernels.py times kernels on a GPU and needs CUDA, which torch does not find here"
        )
    import triton

    print(f"{torch.cuda.get_device_name()}, {args.dtype}, torch {torch.__version__}, "
          f"triton {triton.__version__}, {args.length} positions\n")  # fmt: skip
    print(
        "| shape | part | rows | level | union % | dense, us | kernels, us | times dense | roofline | GB/s |"
    )
    print("|" + " --- |" * 10)
    for name in args.shape:
        for rows in args.rows:
            for level in args.level:
                for part, measure in (("neurons", neurons), ("heads", heads)):
                    tell = measure(SHAPES[name], rows, level, getattr(torch, args.dtype), args.length)
                    print(f"| {name} | {part} | {rows} | {level} | {tell} |", flush=True)


def neurons(shape: Shape, rows: int, level: float, dtype: torch.dtype, length: int) -> str:
    from shadow.executors.gpu.units import read_units, write_units

    x, up, down = (draw(n, shape.width, dtype=dtype) for n in (rows, shape.neurons, shape.neurons))
    gate = draw(shape.neurons, shape.width, dtype=dtype) if shape.gated else None
    bias = None if shape.gated else draw(shape.neurons, dtype=dtype)
    reads = down.T.contiguous()  # as stock models have it
    base, stream = draw(shape.width), draw(rows, shape.width)
    units = drawn(rows, shape.neurons, 1, level)

    def dense() -> Tensor:
        said = F.linear(x, up, bias)
        said = said.relu() if gate is None else said * F.silu(F.linear(x, gate))
        return F.linear(said, reads)

    def sparse() -> None:
        said = read_units(x, up, bias, units, "relu" if gate is None else "silu", gate)
        write_units(said, down, units, base, stream)

    stays = int(units.found) / shape.neurons
    size = float((3 if shape.gated else 2) * up.nbytes)
    return row(dense, sparse, stays, size, size * stays)


def heads(shape: Shape, rows: int, level: float, dtype: torch.dtype, length: int) -> str:
    from shadow.executors.gpu.attention import attend
    from shadow.executors.gpu.units import read_units, write_units

    wide = shape.width // shape.heads
    x, query, output = (draw(n, shape.width, dtype=dtype) for n in (rows, shape.width, shape.width))
    reads = output.T.contiguous()
    keys, values = (draw(rows, shape.groups, length, wide, dtype=dtype) for _ in range(2))
    base, stream = draw(shape.width), draw(rows, shape.width)
    start = torch.zeros(rows, dtype=torch.int32, device="cuda")
    end = torch.tensor([length - 1], dtype=torch.int32, device="cuda")
    units = drawn(rows, shape.heads, wide, level)

    def dense() -> Tensor:
        asked = F.linear(x, query).view(rows, shape.heads, 1, wide)
        said = F.scaled_dot_product_attention(asked, keys, values, enable_gqa=shape.heads != shape.groups)
        return F.linear(said.flatten(1), reads)

    def sparse() -> None:
        asked = read_units(x, query, None, units)
        said = attend(asked, keys, values, None, units.keep, start, end, wide**-0.5)
        write_units(said, output, units, base, stream)

    stays = int(units.found) / shape.heads
    needed = units.keep.view(rows, shape.groups, -1).any(-1).float().mean().item()
    weights, cache = query.nbytes + output.nbytes, keys.nbytes + values.nbytes
    return row(dense, sparse, stays, weights + cache, weights * stays + cache * needed)


def drawn(rows: int, units: int, width: int, level: float):
    from shadow.executors.gpu.choice import Choice
    from shadow.plans.rules import keep_top, kept

    stay = kept(units, level)
    choice = Choice(rows, 1, units, width, torch.device("cuda"))
    choice.keep[0] = keep_top(torch.rand(rows, units, device="cuda"), stay)
    choice.list(range(1))
    choice.at_most([rows * stay])
    return choice.of_layer(0)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device="cuda").div(shape[-1] ** 0.5).to(dtype)


def row(
    dense: Callable[[], object], sparse: Callable[[], object], stays: float, whole: float, read: float
) -> str:
    """whole, read: bytes. The caches are emptied between runs, as a model's other layers would."""
    import triton

    took = [
        1e3 * triton.testing.do_bench(run, warmup=50, rep=200, return_mode="median")
        for run in (dense, sparse)
    ]
    return (
        f"{100 * stays:.0f} | {took[0]:.0f} | {took[1]:.0f} | {took[0] / took[1]:.2f} | {whole / read:.2f} | "
        f"{read / took[1] / 1e3:.0f}"
    )


if __name__ == "__main__":
    main()
