"""Decoding by llama.cpp and by the gathered executor, by turns in one process: tokens a second.

python benchmarks/llama_cpp.py MODEL GGUF [GGUF ...] [--also Q8_0] [--level 0.5]
First: pip install -e .[llama-cpp]

MODEL: the folder of the same model's weights; GGUF: its file, in full; --also: the first file's weights
in that quantization too. llama.cpp is dense; predictors are random, as in latency.py.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import gguf
import latency as shapes  # benchmarks/latency.py
import torch
import xllamacpp

from shadow.executors.cpu.gathered import GatheredRun
from shadow.executors.cpu.weights import pack
from shadow.executors.planner import Planner
from shadow.measures import latency
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import Zero


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("gguf", nargs="+")
    parser.add_argument("--also", nargs="+", default=[], choices=["Q8_0", "F16", "F32", "BF16"])
    parser.add_argument("--level", type=float, default=0.5)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    model, threads = shapes.load(args.model), torch.get_num_threads()
    ids = torch.randint(10, 20000, (1, args.prompt), generator=torch.Generator().manual_seed(0))
    works = {}
    folder = tempfile.TemporaryDirectory()
    others = [requantized(args.gguf[0], name, Path(folder.name)) for name in args.also]
    for file in [*args.gguf, *others]:
        server = serve(file, threads)
        works[f"llama.cpp, {Path(file).stem.rpartition('.')[2]}, dense"] = lambda server=server: completed(
            server, ids[0].tolist(), args.tokens
        )
    for storage in ("float32", "bfloat16", "int8"):
        weights = pack(model, storage)
        for name, level in (("none", 0.0), ("one tap", args.level)):
            scorer, decided_at = shapes.scorer_of(model, name)
            planner = Planner(model, scorer, SparsityPolicy(level), decided_at, Zero())
            run = GatheredRun(model, planner, weights)
            works[f"gathered, {storage}, {name}, level {level}"] = lambda run=run: latency.time_generation(
                run.forward, ids, args.tokens
            )
    found = latency.by_turns(works, args.rounds)
    rates = {name: [len(t.tokens) / sum(t.tokens) for t in timings] for name, timings in found.items()}
    first = next(iter(rates))
    print(f"llama.cpp: {xllamacpp.get_system_info().strip()}\n\n{threads} threads, prompt {args.prompt}, "
          f"{args.tokens} tokens, {args.rounds} rounds by turns\n")  # fmt: skip
    print(f"| | tokens a second | times {first} |\n| --- | --- | --- |")
    for name, own in rates.items():
        ratios = [rate / base for rate, base in zip(own, rates[first])]
        print(f"| {name} | {statistics.median(own):.1f} ({min(own):.1f} to {max(own):.1f}) | "
              f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |")  # fmt: skip


def requantized(file: str, name: str, folder: Path) -> str:
    """The same weights as another GGUF file; what is not quantized in the one stays so in the other."""
    read, kind = gguf.GGUFReader(file), gguf.GGMLQuantizationType[name]
    text = read.fields["general.architecture"].contents()
    found = folder / f"{Path(file).name.split('.')[0]}.{name}.gguf"
    written = gguf.GGUFWriter(found, text)
    for key, field in read.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        written.add_key_value(key, field.contents(), field.types[0], *field.types[1:2])
    for tensor in read.tensors:
        if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
            written.add_tensor(tensor.name, tensor.data)
            continue
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        written.add_tensor(tensor.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    written.write_header_to_file()
    written.write_kv_data_to_file()
    written.write_tensors_to_file()
    written.close()
    return str(found)


def serve(file: str, threads: int) -> xllamacpp.Server:
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 512, 1, 0
    return xllamacpp.Server(params)


def completed(server: xllamacpp.Server, ids: list[int], tokens: int) -> latency.Timing:
    """Greedily; by llama.cpp's own clock, which tells the mean of the tokens after the first."""
    asked = {"prompt": ids, "max_tokens": tokens, "temperature": 0, "cache_prompt": False, "ignore_eos": True}
    timings = server.handle_completions(asked)["timings"]
    each = timings["predicted_per_token_ms"] / 1e3
    return latency.Timing(timings["prompt_ms"] / 1e3, [each] * timings["predicted_n"])


if __name__ == "__main__":
    main()
