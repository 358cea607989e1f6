"""Many requests at once against `shadow serve` on 127.0.0.1: none lost, none mixed, each its text alone.

    python benchmarks/serving.py FOLDER [--requests 200] [--at-once 1 4] [--new 16] [--storage int8]
    python benchmarks/serving.py FOLDER --dense DENSE --gguf FILE    # beside two other servers

FOLDER is one of `shadow export`. Each request has its own prompt and number of new tokens, every third one
streams, and every tenth is wrong on purpose. Texts alone are made first, in this process. Of each server: how
many tokens a second, by the clock, and its processor time a token, which others on the machine disturb less.
"""

import argparse
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO, NamedTuple

import openai
import psutil
import torch

from shadow.serving.command import HERE, listen
from shadow.serving.served import Served, load

WORDS = [
    "the",
    "river",
    "ran",
    "through",
    "an",
    "old",
    "town",
    "nobody",
    "had",
    "seen",
    "return",
    "of",
    "list",
    "item",
]


LLAMA = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_parallel = sys.argv[1], int(sys.argv[2])
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.n_ctx, params.n_gpu_layers = 512 * params.n_parallel, 0
server = xllamacpp.Server(params)
print(server.listening_address, file=sys.stderr, flush=True)
time.sleep(36000)
"""


class Request(NamedTuple):
    prompt: str
    new: int
    streams: bool
    wrong: bool


class Answer(NamedTuple):
    """tokens: new ones, as the server counts them; of a stream, its parts."""

    text: str
    tokens: int


class Server(NamedTuple):
    url: str
    process: psutil.Process

    def busy(self) -> float:
        """-> seconds of processor time so far, of all its processes."""
        return sum(sum(one.cpu_times()[:2]) for one in (self.process, *self.process.children(True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--at-once", type=int, nargs="+", default=[4])
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--storage")
    parser.add_argument("--dense")
    parser.add_argument("--gguf")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    requests = drawn(asked.requests, asked.new)
    served = load(asked.folder, "model", "auto", asked.storage, None)
    say(served.executor)
    start = time.monotonic()
    expected = [None if one.wrong else alone(served, one) for one in requests]
    say(f"texts alone, in this process: {time.monotonic() - start:.1f} s")
    options = ["--name", "model", *(["--storage", asked.storage] if asked.storage else [])]
    ours = [sys.executable, "-m", "shadow.serving.command", asked.folder, "--port", "0", *options]
    lost = False
    with serving(ours) as server:
        for at_once in asked.at_once:
            found, spent = sent(server, "model", requests, at_once)
            told = Counter(map(judged, requests, found, expected))
            lost |= bool(set(told) - {"equal", "refused"})
            say(f"shadow serve, {at_once} at once: {len(requests)} requests, {dict(told)}; {spent}")
    right = [one for one in requests if not one.wrong]
    if asked.dense:
        with listen(HERE, 0) as free:
            port = str(free.getsockname()[1])
        dense = [
            "transformers.cli.transformers",
            "serve",
            asked.dense,
            "--device",
            "cpu",
            "--host",
            HERE,
            "--port",
            port,
        ]
        rated("transformers serve, dense", [sys.executable, "-m", *dense], asked.dense, right, asked.at_once)
    if asked.gguf:
        llama = [sys.executable, "-c", LLAMA, asked.gguf, str(max(asked.at_once))]
        rated("llama.cpp, dense", llama, "model", right, asked.at_once)
    if lost:
        sys.exit("not every request got its own text")


def say(line: str) -> None:
    print(line, flush=True)  # a run takes minutes, and may be read from a file


def rated(name: str, command: list[str], model: str, requests: list[Request], counts: list[int]) -> None:
    with serving(command) as server:
        sent(server, model, requests[:1], 1)  # loads, where the first request does
        for at_once in counts:
            found, spent = sent(server, model, requests, at_once)
            refused = f"; {found.count(None)} refused" if None in found else ""
            say(f"{name}, {at_once} at once: {spent}{refused}")


def drawn(count: int, new: int) -> list[Request]:
    draw = random.Random(0)
    return [
        Request(
            " ".join(draw.choices(WORDS, k=draw.randint(2, 24))),
            draw.randint(1, new),
            n % 3 == 0,
            n % 10 == 9,
        )
        for n in range(count)
    ]


def alone(served: Served, one: Request) -> str:
    ids = served.tokenizer(one.prompt, return_tensors="pt")
    said = served.model.generate(**ids, max_new_tokens=one.new, do_sample=False)  # type: ignore[operator]
    return str(served.tokenizer.decode(said[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


@contextmanager
def serving(command: list[str]) -> Iterator[Server]:
    """What it says goes to a file: a pipe that nobody reads would stop a talkative server."""
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            yield Server(f"{address_in(log, server)}/v1", psutil.Process(server.pid))
        finally:
            server.terminate()


def address_in(log: IO[str], server: subprocess.Popen) -> str:
    """Wait until the server has said where it listens."""
    while True:
        ended = server.poll() is not None
        log.seek(0)
        said = log.read()
        if found := re.search(r"http://[\w.]+:\d+", said):
            return found.group()
        if ended:
            sys.exit(f"{' '.join(server.args)[:200]} ended before it listened:\n{said[-2000:]}")
        time.sleep(0.2)


def sent(
    server: Server, model: str, requests: list[Request], at_once: int
) -> tuple[list[Answer | None], str]:
    """-> of each its answer, or None where the server refused it; and what all of them took."""
    client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=600)

    def send(one: Request) -> Answer | None:
        new = 10**6 if one.wrong else one.new
        try:
            answer = client.completions.create(
                model=model, prompt=one.prompt, max_tokens=new, stream=one.streams, temperature=0
            )
            if one.streams:
                parts = [part.choices[0].text for part in answer if part.choices]
                return Answer("".join(parts), sum(map(bool, parts)))
            return Answer(answer.choices[0].text, answer.usage.completion_tokens)
        except openai.BadRequestError:
            return None

    start, busy = time.monotonic(), server.busy()
    with ThreadPoolExecutor(at_once) as pool:
        found = list(pool.map(send, requests))
    seconds, busy = time.monotonic() - start, server.busy() - busy
    new = sum(answer.tokens for answer in found if answer)
    rate = f"{new / seconds:.1f} tokens a second, {1e3 * busy / max(new, 1):.1f} ms of processor a token"
    return found, f"{new} tokens in {seconds:.1f} s, {rate}"


def judged(one: Request, found: Answer | None, expected: str | None) -> str:
    if found is None:
        return "refused" if one.wrong else "lost"
    return "equal" if found.text == expected else "mixed"


if __name__ == "__main__":
    main()
