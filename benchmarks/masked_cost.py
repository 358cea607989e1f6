"""What evaluating the masked model costs beside evaluating the dense one: ratios of wall time, by turns.

python benchmarks/masked_cost.py MODEL PREDICTOR [--level 0.5] [--decided-at token] [--rounds 15]
MODEL: a folder or a hub id; PREDICTOR: a folder that train.py has finished, or its hub id. Writes nothing.
"""

import argparse
import logging
import random
import statistics
import time

import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from shadow.artifacts.hub import load_predictor
from shadow.data.texts import builtin_topics
from shadow.front import sparse
from shadow.measures.sparse_hf import SparseHFLM
from shadow.models.load import LM
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.fixed import Fixed

Request = tuple[tuple[str, str], list[int], list[int]]
SHAPES = {"zero-shot questions": (40, 8, 4), "five-shot questions": (400, 8, 1)}  # prompt, answer, questions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("predictor")
    parser.add_argument("--level", type=float, default=0.5)
    parser.add_argument("--decided-at", choices=["token", "prompt", "sequence"], default="token")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    asked = parser.parse_args()
    transformers_logging.disable_progress_bar()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    torch.set_num_threads(asked.threads)
    lm = LM(AutoModelForCausalLM.from_pretrained(asked.model), AutoTokenizer.from_pretrained(asked.model))
    lm.model.eval().requires_grad_(False)
    predictor = load_predictor(asked.predictor)
    print(f"{asked.model}, {lm.model.dtype}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"level {asked.level:g} decided at {asked.decided_at}, batches of {asked.batch_size}")
    print("wall time in medians (quartiles) of turns")
    for label, shape in SHAPES.items():
        requests = questions(lm, *shape)
        dense = HFLM(lm.model, tokenizer=lm.tokenizer, batch_size=asked.batch_size)
        seconds: dict[str, list[float]] = {"dense": [], "level 0": [], "masked": []}
        for turn in range(asked.rounds + 1):
            for name, of_name in seconds.items():
                if name == "dense":
                    took = clocked(dense, requests)
                else:
                    scorer, level = (predictor, asked.level) if name == "masked" else (Fixed({}), 0.0)
                    with sparse(lm.model, scorer, SparsityPolicy(level), asked.decided_at) as run:
                        took = clocked(SparseHFLM(run, lm, asked.batch_size), requests)
                if turn:  # the first warms up
                    of_name.append(took)
        tokens = sum(len(context) + len(answer) - 1 for _, context, answer in requests)
        print(
            f"{label}: {len(requests)} requests, {tokens} tokens, "
            f"dense {statistics.median(seconds['dense']):.2f} s"
        )
        for name in ("level 0", "masked"):
            ratios = [ours / theirs for ours, theirs in zip(seconds[name], seconds["dense"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(f"  {name:8} {middle:.3f} ({low:.3f} to {high:.3f}) of dense")


def questions(lm: LM, prompt: int, answer: int, count: int) -> list[Request]:
    """Each with four continuations; of Python's language help, lengths varied by a quarter."""
    ids = lm.tokenizer("\n\n".join(builtin_topics("eval", 0.3, 0)), verbose=False)["input_ids"]
    draw = random.Random(0)
    found: list[Request] = []
    for _ in range(count):
        length = round(prompt * draw.uniform(0.75, 1.25))
        start = draw.randrange(len(ids) - length)
        for _ in range(4):
            then = draw.randrange(len(ids) - answer)
            found.append((("", ""), ids[start : start + length], ids[then : then + answer]))
    return found


def clocked(model: HFLM, requests: list[Request]) -> float:
    start = time.perf_counter()
    model._loglikelihood_tokens(requests, disable_tqdm=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
