"""A plan that outlives its call: it lies with the key-value cache that the call filled."""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from shadow.errors import UserError
from shadow.plans.rules import Plan

PLACE = "shadow_plan"
MOVES = ("reorder_cache", "batch_select_indices", "batch_repeat_interleave")


@dataclass
class CachedPlan:
    """run: the name of the run that made it; prompt: ids [B, P] or embeddings [B, P, E] that it is made of;
    plan: bool [U] or [B, U] of each site."""

    run: str
    prompt: Tensor
    plan: Plan

    def move(self, name: str, by: Any) -> None:
        """As the cache's method of this name moves its rows."""
        self.prompt = moved(self.prompt, name, by)
        for key, keep in self.plan.items():
            if keep.dim() > 1:
                self.plan[key] = moved(keep, name, by)

    def is_of(self, read: Tensor, start: int) -> bool:
        """Whether a call that reads these behind `start` positions goes on from this very prompt: of a cache
        that was cropped its end may be read again."""
        again = self.prompt[:, start:]
        if again.shape[1] == 0:
            return True
        return read.dtype == again.dtype and torch.equal(read[:, : again.shape[1]], again)


def moved(rows: Tensor, name: str, by: Any) -> Tensor:
    """rows: [B, ...] -> [B', ...]."""
    if name == "batch_repeat_interleave":
        return rows.repeat_interleave(by, 0)
    return rows[by.to(rows.device) if isinstance(by, Tensor) else by]


class Following:
    """A method of a cache that moves rows, and the rows of its plan with them.

    It stands on the one cache, and is copied and pickled with it. The cache is held weakly: a circle would
    keep its memory until the garbage collector comes by.
    """

    def __init__(self, cache: Cache, name: str) -> None:
        self.cache, self.name = weakref.ref(cache), name

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        cache = self.cache()
        assert cache is not None
        getattr(type(cache), self.name)(cache, *args, **kwargs)
        (by,) = [*args, *kwargs.values()]
        vars(cache)[PLACE].move(self.name, by)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Following":
        cache = self.cache()
        assert cache is not None
        return Following(memo.get(id(cache), cache), self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return Following, (self.cache(), self.name)  # it is pickled within its cache


def keep_in(cache: Cache, made: CachedPlan) -> None:
    vars(cache)[PLACE] = made
    for name in MOVES:
        vars(cache)[name] = Following(cache, name)


def plan_of(cache: Cache | None, start: int, read: Tensor, run: str, decided_at: str) -> Plan:
    """That of the prompt which began this cache of `start` positions, in the run of this name; read: what the
    call brings, ids [B, T] or embeddings [B, T, E]."""
    made: CachedPlan | None = None if cache is None else vars(cache).get(PLACE)
    if made is None or made.run != run:
        raise UserError(
            f"sparsity.decided_at={decided_at} follows the plan of a prompt, and the cache has {start} "
            "positions that were not read in this block: begin without past_key_values, or use "
            "sparsity.decided_at=token"
        )
    if not made.is_of(read, start):
        raise UserError(
            f"sparsity.decided_at={decided_at} follows the plan of a prompt of {made.prompt.shape[1]} "
            f"positions, and the key-value cache was cropped to {start} of them: crop no more than what "
            "follows the prompt, or begin without past_key_values"
        )
    return made.plan
