"""Decoding by llama.cpp and by the gathered executor, by turns in one process, each on the same pinned cores.

python benchmarks/llama_cpp.py MODEL GGUF [--threads 1] [--storage int4 int8] [--teal 0.414 0.517]
    [--learnt BUDGETS STAND_IN] [--texts TRAIN TEST] [--rounds 7] [--alone]
First: pip install -e .[llama-cpp]

MODEL: the folder of the same model's weights in float32; GGUF: its file. --teal: levels of predictor=teal,
whose thresholds are learnt on TRAIN (files of JSON lines with a `page` each), first layer dense. --learnt:
the file of budgets and the folder of the stand-in that a job with sparsity=learnt names. --alone: llama.cpp,
with nothing of ours in its process. Of each row:
tokens a second by the clock; milliseconds of processor time a token, which others on the same cores disturb
less; and with TEST, over windows that are fed token by token to the very same run, nats over the dense
float32 model, the KL divergence from it, and how often both hold the same word for the likeliest.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import latency as shapes  # benchmarks/latency.py
import torch
import xllamacpp
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from shadow.artifacts.learnt_numbers import STAND_IN, read, read_config
from shadow.artifacts.learnt_policies import thresholds_of
from shadow.data.batches import Batch
from shadow.data.text_files import read_documents
from shadow.data.texts import text_windows
from shadow.executors.cpu.channels import pack_channels
from shadow.executors.cpu.gathered import GatheredRun
from shadow.executors.cpu.weights import pack
from shadow.executors.options import BITS
from shadow.executors.planner import Planner
from shadow.fit.thresholds import learn
from shadow.measures import latency
from shadow.models.kinds import find_sites
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import Learnt, Zero
from shadow.scorers.inputs import InputMagnitude

WINDOW = 64  # tokens


class Turn(NamedTuple):
    """Tokens a second by the clock, and milliseconds of processor time a token, of all threads."""

    rate: float
    busy: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("gguf")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--storage", nargs="+", default=["int4", "int8"])
    parser.add_argument("--teal", nargs="*", type=float, default=[])
    parser.add_argument("--learnt", nargs=2, action="append", default=[], metavar=("BUDGETS", "STAND_IN"))
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--texts", nargs=2, metavar=("TRAIN", "TEST"))
    parser.add_argument("--windows", type=int, default=24, help="of TEST")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    if args.teal and not args.texts:
        parser.error("--teal learns its thresholds on --texts TRAIN TEST")
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[-args.threads :]))
    torch.set_num_threads(args.threads)
    ids = torch.randint(10, 20000, (1, args.prompt), generator=torch.Generator().manual_seed(0))
    server, runs = serve(args.gguf, args.threads), {}
    if not args.alone:
        model = shapes.load(args.model)
        runs = runs_of(model, args)
    works: dict[str, Callable[[], Turn]] = {
        "llama.cpp, dense": lambda: completed(server, ids[0].tolist(), args.tokens)
    }
    for name, run in runs.items():
        works[name] = lambda run=run: generated(run, ids, args.tokens)
    turns: dict[str, list[Turn]] = {name: [] for name in works}
    for number in range(args.rounds + 1):  # the first warms up
        for name, work in works.items():
            turn = work()
            if number:
                turns[name].append(turn)
    told = dict.fromkeys(works, "| | | |")
    if args.texts and runs:
        windows = windows_of(args.model, args.texts[1], args.windows)
        for name, run in runs.items():
            told[name] = tell_quality(model, run, windows)
    print(f"llama.cpp: {xllamacpp.get_system_info().strip()}\n\n{args.threads} threads, pinned, prompt "
          f"{args.prompt}, {args.tokens} tokens, {args.rounds} rounds by turns\n")  # fmt: skip
    print("| | tokens a second (quartiles) | times llama.cpp | ms of processor a token | times llama.cpp | "
          "skipped % of the layers | MB a token | nats | KL | same word % |\n|" + " --- |" * 10)  # fmt: skip
    base = turns["llama.cpp, dense"]
    for name, own in turns.items():
        rates, busy = [turn.rate for turn in own], [turn.busy for turn in own]
        rate, work = latency.spread(rates), latency.spread(busy)
        faster = statistics.median(mine.rate / theirs.rate for mine, theirs in zip(own, base))
        lighter = statistics.median(theirs.busy / mine.busy for mine, theirs in zip(own, base))
        read = "| | " if name not in runs else tell_read(runs[name])
        clock = f"{rate.median:.1f} ({rate.low:.1f} to {rate.high:.1f}) | {faster:.2f}"
        processor = f"{work.median:.2f} ({work.low:.2f} to {work.high:.2f}) | {lighter:.2f}"
        print(f"| {name} | {clock} | {processor} {read}{told[name]}")


def runs_of(model: PreTrainedModel, args: argparse.Namespace) -> dict[str, GatheredRun]:
    found, scorer = {}, InputMagnitude()
    for storage in args.storage:
        everything = Planner(model, scorer, SparsityPolicy(0.0), "token", Zero())
        found[f"gathered, {storage}, everything"] = GatheredRun(model, everything, pack(model, storage))
    if not args.teal and not args.learnt:
        return found
    of_channels = {storage: pack_channels(model, storage) for storage in args.storage if storage in BITS}
    for file, folder in args.learnt:
        policy, stand_in = learnt_of(model, Path(file), Path(folder))
        for storage, weights in of_channels.items():
            planner = Planner(model, scorer, policy, "token", stand_in)
            found[f"gathered, {storage}, teal {policy.level:g}, learnt"] = GatheredRun(
                model, planner, weights
            )
    if not args.teal:
        return found
    calibration = [batch_of(ids) for ids in windows_of(args.model, args.texts[0], 64).split(8)]
    for level in args.teal:
        policy = SparsityPolicy(level, scope="threshold")
        learnt = learn(model, scorer, policy, "token", Zero(), calibration)
        policy = SparsityPolicy(level, scope="threshold", thresholds=learnt)
        for storage, weights in of_channels.items():
            planner = Planner(model, scorer, policy, "token", Zero())
            found[f"gathered, {storage}, teal {level:g}"] = GatheredRun(model, planner, weights)
    return found


def learnt_of(model: PreTrainedModel, file: Path, folder: Path) -> tuple[SparsityPolicy, Learnt]:
    known = json.loads(file.read_text(encoding="utf-8"))
    policy = SparsityPolicy(
        known["settings"]["sparsity"]["level"],
        scope="threshold",
        levels={(layer, slot): level for layer, slot, level in known["levels"]},
        thresholds=thresholds_of(known["thresholds"]),
    )
    moved = read_config(folder)["thresholds"]
    policy = policy if moved is None else replace(policy, thresholds=thresholds_of(moved))
    sites = [site for site in find_sites(model, ["channel"]) if policy.corrects(site)]
    stand_in = Learnt(sites, Zero())
    read(folder, STAND_IN, stand_in)
    return policy, stand_in


def windows_of(model: str, file: str, count: int) -> Tensor:
    """-> ids [count, WINDOW]"""
    tokenizer = AutoTokenizer.from_pretrained(model)
    found = text_windows(read_documents("TEXTS", file, "page"), tokenizer, count, WINDOW, 1.0, 0, "--windows")
    return torch.tensor([window.ids for window in found])


def batch_of(ids: Tensor) -> Batch:
    lengths = torch.full((len(ids),), WINDOW)
    return Batch(ids, lengths, lengths, ids.roll(-1, 1))


@torch.no_grad()
def tell_quality(model: PreTrainedModel, run: GatheredRun, windows: Tensor) -> str:
    """Of the tokens that are decoded one by one, behind the first."""
    nats, divergence, same = [], [], []
    for ids in windows.split(1):
        dense = model(ids).logits[0, 1:-1].log_softmax(-1)
        cache, found = run.forward(ids[:, :1]).past_key_values, []
        for new in ids[:, 1:-1].split(1, 1):
            found.append(run.forward(new, past_key_values=cache).logits[0, 0])
        own, target = torch.stack(found).log_softmax(-1), ids[0, 2:, None]
        nats.append((dense - own).gather(1, target).mean())
        divergence.append((dense.exp() * (dense - own)).sum(-1).mean())
        same.append((dense.argmax(-1) == own.argmax(-1)).float().mean())
    means = [float(torch.stack(values).mean()) for values in (nats, divergence, same)]
    return f"| {means[0]:.3f} | {means[1]:.3f} | {100 * means[2]:.1f} |"


def tell_read(run: GatheredRun) -> str:
    gone = run.bytes()["skipped_of_layers"] if run.channels is not None else 0.0
    assert isinstance(gone, float)
    return f"| {100 * gone:.1f} | {latency.sparse_bytes(run) / 1e6:.1f} "


@torch.no_grad()
def generated(run: GatheredRun, ids: Tensor, tokens: int) -> Turn:
    found = run.forward(ids, use_cache=True, logits_to_keep=1)
    busy, start = time.process_time(), time.perf_counter()
    for _ in range(tokens):
        new = found.logits[:, -1:].argmax(-1)
        found = run.forward(new, use_cache=True, past_key_values=found.past_key_values)
    took, busy = time.perf_counter() - start, time.process_time() - busy
    return Turn(tokens / took, 1e3 * busy / tokens)


def serve(file: str, threads: int) -> xllamacpp.Server:
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 512, 1, 0
    return xllamacpp.Server(params)


def completed(server: xllamacpp.Server, ids: list[int], tokens: int) -> Turn:
    """Greedily; tokens a second by llama.cpp's own clock, which tells the mean of the tokens after the first;
    its processor time is what so many tokens need more than one."""

    def ask(count: int) -> tuple[dict, float]:
        asked = {
            "prompt": ids,
            "max_tokens": count,
            "temperature": 0,
            "cache_prompt": False,
            "ignore_eos": True,
        }
        start = time.process_time()
        timings = server.handle_completions(asked)["timings"]
        return timings, time.process_time() - start

    _, first = ask(1)
    timings, all_ = ask(tokens + 1)
    return Turn(1e3 / timings["predicted_per_token_ms"], 1e3 * (all_ - first) / tokens)


if __name__ == "__main__":
    main()
