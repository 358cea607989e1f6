"""Masked, gathered and dense on one model, with the same tokens: how far their logits lie apart."""

from collections.abc import Iterator

import torch
from gpu_models import PROMPT, WAYS, Way, build, device, fitting, gathered, ids_of, no_kernels, said, shapes
from torch import Tensor
from transformers import PreTrainedModel

from shadow.front import sparse
from shadow.models import load
from shadow.plans.policy import SparsityPolicy

COLUMNS = ("model", "dtype", "layers", "plan", "level", "skipped %", "compared", "largest difference",
           "of the largest logit, %", "same greedy tokens, %", "why")  # fmt: skip
LEVEL = 0.5


def run(dry: bool) -> Iterator[dict]:
    """Both executors at level 0.5, and both beside dense at level 0."""
    for name in (*(() if dry else ("opt-mini",)), *shapes(dry)):
        model = model_of(name, dry)
        for way in WAYS.values():
            yield from of_way(name, model, way(model, LEVEL), dry)
        scorer = WAYS["channels"](model, LEVEL).scorer
        yield from of_way(name, model, Way("everything", scorer, SparsityPolicy(0)), dry)
        del model
        torch.cuda.empty_cache()


def model_of(name: str, dry: bool) -> PreTrainedModel:
    """opt-mini is compared in float32, so that differences are of order alone."""
    if name == "opt-mini":
        lm = load.from_installed("shadow.opt_mini", torch.float32, None)
        return lm.model.eval().requires_grad_(False).to(device())
    dtype = torch.float32 if dry else torch.bfloat16
    return build(fitting(shapes(dry)[name], dtype, 1), dtype)


def of_way(name: str, model: PreTrainedModel, way: Way, dry: bool) -> list[dict]:
    ids = ids_of(model, 1 if dry else 4, PROMPT + (1 if dry else 32))
    about = {
        "model": name,
        "dtype": str(model.dtype)[6:],
        "layers": model.config.num_hidden_layers,
        "plan": way.name,
        "level": way.policy.level,
    }
    if why := no_kernels():
        return [about | {"why": why}]
    dense = said(model, ids)
    with sparse(model, way.scorer, way.policy) as run:
        masked = said(model, ids)
    with gathered(model, way) as run:
        found = said(model, ids)
        skipped = 100 * float(run.bytes()["skipped"])  # type: ignore[arg-type]
    about["skipped %"] = skipped
    pairs = {"gathered, masked": (found, masked), "gathered, dense": (found, dense)}
    return [about | {"compared": two} | apart(*pair) for two, pair in pairs.items()]


def apart(one: Tensor, other: Tensor) -> dict:
    """Logits [B, T, V] of each."""
    far = (one - other).abs().max().item()
    same = (one.argmax(-1) == other.argmax(-1)).float().mean().item()
    return {
        "largest difference": far,
        "of the largest logit, %": 100 * far / other.abs().max().item(),
        "same greedy tokens, %": 100 * same,
    }
