"""Whether both executors write the same text: greedily, each by its own plans, and on the gathered one's.

python benchmarks/same_text.py MODEL PREDICTOR TEXTS [--prompts 50] [--prompt 32] [--tokens 32] [--level 0.5]

MODEL and PREDICTOR are folders, TEXTS is a file of JSON lines with a `page` each. Each token decides; the
model is in float32. Nothing is timed.
"""

import argparse
from collections.abc import Iterator

import latency as shapes  # benchmarks/latency.py
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from shadow.artifacts.hub import load_predictor
from shadow.data.text_files import read_documents
from shadow.data.texts import text_windows
from shadow.executors.cache_layer import memory_of
from shadow.executors.cpu.cache import KeyValues
from shadow.executors.gathered import Gathered
from shadow.front import sparse, stand_in_of
from shadow.models.cache_name import cache_of, named_cache
from shadow.models.kinds import find_sites
from shadow.plans.policy import SparsityPolicy
from shadow.plans.rules import Plan
from shadow.scorers.fixed import Fixed, random_scores
from shadow.scorers.predicted import Predicted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("predictor")
    parser.add_argument("texts")
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--level", type=float, default=0.5)
    args = parser.parse_args()
    model, predictor = shapes.load(args.model), load_predictor(args.predictor)
    policy = SparsityPolicy(args.level)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    documents = read_documents("TEXTS", args.texts, "page")
    prompts = text_windows(documents, tokenizer, args.prompts, args.prompt, 1.0, 0, "--prompts")
    same, same_plans, largest = 0, 0, 0.0
    for ids in torch.tensor([prompt.ids for prompt in prompts]).split(1):
        logits, plans = gathered(model, predictor, policy, ids, args.tokens)
        alone = masked(model, predictor, policy, ids, args.tokens)
        following = follow(model, predictor, policy, ids, logits, plans)
        said = logits.argmax(-1)
        same += torch.equal(alone.argmax(-1), said)
        same_plans += torch.equal(following.argmax(-1), said)
        largest = max(largest, float((following - logits).abs().max() / logits.abs().max()))
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, level {args.level}, top-k at each "
          f"token; {args.tokens} tokens after {args.prompts} prompts of {args.prompt}")  # fmt: skip
    print(f"the same text, each executor by its own plans: {same} of {args.prompts}")
    print(f"the same text on the same plans: {same_plans} of {args.prompts}; logits differ by at most "
          f"{largest:.1e} of the largest")  # fmt: skip


def gathered(
    model: PreTrainedModel, predictor: Predicted, policy: SparsityPolicy, ids: Tensor, tokens: int
) -> tuple[Tensor, list[Plan]]:
    """-> logits [tokens, V], and the plans of the prompt and of each new token that is read."""
    found, plans = [], []
    with sparse(model, predictor, policy, executor=Gathered()) as run:
        for out in greedily(model, ids, tokens):
            memory = memory_of(cache_of(out), KeyValues)
            assert memory is not None
            plans.append(plan_of(memory, policy) if plans else dict(run.plan))
            found.append(out.logits[0, -1])
    return torch.stack(found), plans


def plan_of(memory: KeyValues, policy: SparsityPolicy) -> Plan:
    """What the last token's choice keeps, as the masked executor takes it: bool [1, 1, U] each."""
    pruned = [layer for layer in range(memory.sizes.layers) if layer not in policy.dense_layers]
    heads, neurons = (torch.from_numpy(keep) for keep in memory.decided.plan.choice[:2])
    plan: Plan = {}
    for layer in pruned:
        plan[layer, "head"] = heads[:, None, layer].clone()
        plan[layer, "neuron"] = neurons[:, None, layer].clone()
    return plan


def masked(
    model: PreTrainedModel, predictor: Predicted, policy: SparsityPolicy, ids: Tensor, tokens: int
) -> Tensor:
    """-> logits [tokens, V]"""
    with sparse(model, predictor, policy):
        return torch.stack([out.logits[0, -1] for out in greedily(model, ids, tokens)])


def greedily(model: PreTrainedModel, ids: Tensor, tokens: int) -> Iterator[CausalLMOutputWithPast]:
    """What the model says behind the prompt, and behind each new token that it is given back."""
    cache = None
    for _ in range(tokens):
        with torch.no_grad():
            out = model(ids, **named_cache(cache), use_cache=True)
        yield out
        ids, cache = out.logits[:, -1:].argmax(-1), cache_of(out)


@torch.no_grad()
def follow(
    model: PreTrainedModel,
    predictor: Predicted,
    policy: SparsityPolicy,
    ids: Tensor,
    logits: Tensor,
    plans: list[Plan],
) -> Tensor:
    """The masked executor on another's tokens and plans -> logits [tokens, V]."""
    read = [ids, *logits[:-1].argmax(-1).view(-1, 1, 1)]
    stand_in = stand_in_of("auto", predictor)
    found, cache = [], None
    # a scorer without signals leaves the plan that it is given
    with sparse(model, Fixed(random_scores(find_sites(model), 0)), policy, stand_in=stand_in) as run:
        for tokens, plan in zip(read, plans, strict=True):
            run.planner.plan = plan
            out = model(tokens, **named_cache(cache), use_cache=True)
            cache = cache_of(out)
            found.append(out.logits[0, -1])
    return torch.stack(found)


if __name__ == "__main__":
    main()
