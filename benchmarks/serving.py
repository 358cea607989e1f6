"""Many requests at once against `shadow serve` on 127.0.0.1: none lost, none mixed, each its text alone.

    python benchmarks/serving.py FOLDER [--requests 200] [--at-once 4] [--new 16] [--storage int8]
    python benchmarks/serving.py FOLDER --dense DENSE    # also the rate of `transformers serve DENSE`

FOLDER is one of `shadow export`. Each request has its own prompt and number of new tokens, every third one
streams, and every tenth is wrong on purpose. Texts alone are made first, in this process.
"""

import argparse
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import openai
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


class Request(NamedTuple):
    prompt: str
    new: int
    streams: bool
    wrong: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--storage")
    parser.add_argument("--dense")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    requests = drawn(asked.requests, asked.new)
    served = load(asked.folder, "model", "auto", asked.storage, None)
    print(served.executor)
    start = time.monotonic()
    expected = [None if one.wrong else alone(served, one) for one in requests]
    print(f"alone, in this process: {rate(requests, time.monotonic() - start)}")
    options = ["--name", "model", *(["--storage", asked.storage] if asked.storage else [])]
    with serving(
        [sys.executable, "-m", "shadow.serving.command", asked.folder, "--port", "0", *options]
    ) as url:
        found, seconds = sent(url, "model", requests, asked.at_once)
    told = Counter(
        judged(one, text, right) for one, text, right in zip(requests, found, expected, strict=True)
    )
    print(f"{len(requests)} requests, {asked.at_once} at once: {dict(told)}; {rate(requests, seconds)}")
    if asked.dense:
        with listen(HERE, 0) as free:
            port = str(free.getsockname()[1])
        dense = ["transformers.cli.transformers", "serve", asked.dense, "--device", "cpu", "--port", port]
        with serving([sys.executable, "-m", *dense], f"http://{HERE}:{port}") as url:
            right = [one for one in requests if not one.wrong]
            _, seconds = sent(url, asked.dense, right, asked.at_once)
        print(f"`transformers serve`, the dense model: {rate(right, seconds)}")
    if set(told) - {"equal", "refused"}:
        sys.exit("not every request got its own text")


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
def serving(command: list[str], url: str | None = None) -> Iterator[str]:
    """url: of a server that does not tell it."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            for line in server.stderr:
                if said := re.search(r"http://[\d.]+:\d+", line):
                    url = url or said.group()
                    break
            yield f"{url}/v1"
        finally:
            server.terminate()


def sent(url: str, model: str, requests: list[Request], at_once: int) -> tuple[list[str | None], float]:
    """-> of each the text, or None where the server refused it; and the seconds of all."""
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600)

    def send(one: Request) -> str | None:
        new = 10**6 if one.wrong else one.new
        try:
            answer = client.completions.create(
                model=model, prompt=one.prompt, max_tokens=new, stream=one.streams, temperature=0
            )
            if one.streams:
                return "".join(part.choices[0].text for part in answer)
            return answer.choices[0].text
        except openai.BadRequestError:
            return None

    start = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        found = list(pool.map(send, requests))
    return found, time.monotonic() - start


def judged(one: Request, found: str | None, expected: str | None) -> str:
    if found is None:
        return "refused" if one.wrong else "lost"
    return "equal" if found == expected else "mixed"


def rate(requests: list[Request], seconds: float) -> str:
    new = sum(one.new for one in requests if not one.wrong)
    return f"{new} tokens in {seconds:.1f} s, {new / seconds:.1f} a second"


if __name__ == "__main__":
    main()
