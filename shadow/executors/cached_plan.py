"""A plan that outlives its call: it lies with the key-value cache that the call filled."""

import weakref
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import Cache

from shadow.errors import UserError
from shadow.plans.rules import Plan

PLACE = "shadow_plan"
MOVES = ("reorder_cache", "batch_select_indices", "batch_repeat_interleave")


@dataclass
class CachedPlan:
    """run: the name of the run that made it; columns: positions of the prompt that it is made of; plan: bool
    [U] or [B, U] of each site."""

    run: str
    columns: int
    plan: Plan

    def move(self, name: str, by: Any) -> None:
        """As the cache's method of this name moves its rows."""
        for key, keep in self.plan.items():
            if keep.dim() > 1:
                self.plan[key] = moved(keep, name, by)


def moved(keep: Tensor, name: str, by: Any) -> Tensor:
    """keep: bool [B, ...] -> [B', ...]."""
    if name == "batch_repeat_interleave":
        return keep.repeat_interleave(by, 0)
    return keep[by.to(keep.device) if isinstance(by, Tensor) else by]


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


def plan_of(cache: Cache | None, start: int, run: str, decided_at: str) -> Plan:
    """That of the prompt which began this cache of `start` positions, in the run of this name."""
    made: CachedPlan | None = None if cache is None else vars(cache).get(PLACE)
    if made is None or made.run != run:
        raise UserError(
            f"sparsity.decided_at={decided_at} follows the plan of a prompt, and the cache has {start} "
            "positions that were not read in this block: begin without past_key_values, or use "
            "sparsity.decided_at=token"
        )
    if start < made.columns:
        raise UserError(
            f"sparsity.decided_at={decided_at} follows the plan of a prompt of {made.columns} positions, and "
            f"the key-value cache was cropped to {start} of them: crop no more than what follows the prompt, "
            "or begin without past_key_values"
        )
    return made.plan
