"""The front door: a model made sparse for the length of a block."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor
from transformers import PreTrainedModel

from shadow.errors import UncountedTokens, UserError
from shadow.executors.block import block, require_eager
from shadow.executors.masked import Masked
from shadow.executors.planner import Planner
from shadow.executors.run import Executor, Run
from shadow.models.kinds import find_sites
from shadow.models.layouts import find_layers
from shadow.models.sites import SiteKey
from shadow.plans.facts import DecidedAt, Facts
from shadow.plans.policy import SparsityPolicy
from shadow.plans.refusals import refusal
from shadow.plans.stand_ins import Corrects, Mean, StandIn, Zero, kind_of_stand_in
from shadow.scorers.protocol import Brings, Scorer, traits_of

Named = Literal["auto", "mean", "zero"]


@contextmanager
def sparse(
    model: PreTrainedModel,
    scorer: Scorer,
    policy: SparsityPolicy | None = None,
    decided_at: DecidedAt = "token",
    *,
    level: float | None = None,
    stand_in: StandIn | Named | Mapping[SiteKey, Tensor] = "auto",
    executor: Executor | None = None,
) -> Iterator[Run]:
    """Inside the block the model skips what the scorer ranks low; afterwards nothing is left on it.

    Calls may come from several threads, each with its own plan. A model is in one block at a time. While a
    block is open, what torch.compile made, of any model, runs as plain Python.

    scorer: a predictor of `load_predictor`, or anything with `kinds`, `signals` and `scores`.
    policy: how many units go, and where; or level, the share of them, for a policy that is otherwise the
    default.
    decided_at: `token`, each position by its own state; `prompt`, once for all that follows, from the prompt;
    `sequence`, from prompt and answer, which is not to be had in use. The prompt is what `model.generate` is
    given; in a loop of your own, what the first call on an empty key-value cache brings, and without a cache
    what each call brings. Its plan lies with the cache.
    stand_in: what a dropped unit says: `zero`, nothing; `mean`, its calibration mean, which a predictor
    brings; `auto`, what the scorer brings, or that mean if it is a predictor that ranks units by their
    distance from it, else nothing; values of one's own, [U, D] of every site; or a `StandIn`.
    executor: `Masked()`, the default, computes everything and drops what goes; `Gathered(...)` reads the
    weights of kept units alone, and generates faster.
    """
    require_scorer(scorer)
    policy = chosen(policy, level)
    executor = Masked() if executor is None else executor
    if not hasattr(executor, "refuses") or isinstance(executor, type):
        raise UserError(
            "executor must be shadow.executors.masked.Masked() or shadow.executors.gathered.Gathered(), "
            f"got {executor!r}"
        )
    with open_run(model, scorer, policy, decided_at, stand_in_of(stand_in, scorer), executor) as run:
        yield run


@contextmanager
def open_run(
    model: PreTrainedModel,
    scorer: Scorer,
    policy: SparsityPolicy,
    decided_at: DecidedAt,
    stand_in: StandIn,
    executor: Executor,
) -> Iterator[Run]:
    """Refuse what cannot work, before anything runs."""
    require = getattr(scorer, "require", None)  # a trained net fits one shape of model
    if require is not None:
        require(model)
    if policy.level > 0 and not scorer.kinds:
        raise UserError(
            f"the scorer {type(scorer).__name__} scores no kind of unit, and sparsity.level={policy.level} "
            "of them is to go: give it scores, or level 0"
        )
    if policy.level > 0:
        policy = policy.of(scorer.kinds)
    facts = facts_of(model, scorer, policy, decided_at, stand_in)
    require_eager(model)
    reason = refusal(facts) or executor.refuses(facts)
    if reason is not None:
        raise UserError(reason)
    planner = Planner(model, scorer, policy, decided_at, stand_in)
    with block(model, planner), executor.open(model, planner) as run:
        yield run
        run.bytes()  # a run on a GPU counts when it is asked
        doubt = planner.counts.doubt()
    if doubt is not None:
        warnings.warn(doubt, UncountedTokens, stacklevel=5)


def require_scorer(scorer: object) -> None:
    if isinstance(scorer, str | Path):
        raise UserError(
            f"the scorer must be an object, got the name {str(scorer)!r}: give "
            f"shadow.load_predictor({str(scorer)!r})"
        )
    if isinstance(scorer, type):
        raise UserError(f"the scorer must be an object, got the class {scorer.__name__}: call it to make one")
    missing = [name for name in ("kinds", "signals", "scores") if not hasattr(scorer, name)]
    if missing:
        raise UserError(
            f"the scorer must have kinds, signals and scores, and {type(scorer).__name__} has no "
            f"{missing[0]}: give a predictor of shadow.load_predictor, or a scorer as "
            "shadow.scorers.protocol describes it"
        )


def chosen(policy: SparsityPolicy | None, level: float | None) -> SparsityPolicy:
    if policy is None and level is not None:
        return SparsityPolicy(level)
    if policy is None or level is not None:
        raise UserError(
            "sparse needs exactly one of level and policy, as in level=0.5, got "
            f"level={level!r} and policy={policy!r}"
        )
    if not isinstance(policy, SparsityPolicy):
        raise UserError(f"policy must be a SparsityPolicy, got {policy!r}: a level is given as level=0.5")
    return policy


def facts_of(
    model: PreTrainedModel,
    scorer: Scorer,
    policy: SparsityPolicy,
    decided_at: DecidedAt,
    stand_in: StandIn,
) -> Facts:
    sites = find_sites(model, sorted(scorer.kinds))
    return Facts(
        policy=policy,
        decided_at=decided_at,
        scorer=traits_of(scorer, sites),
        config=model.config,
        layers=len(find_layers(model)),
        group=max((site.ranking.group for site in sites), default=1),
        experts=max((site.ranking.experts for site in sites), default=1),
        device=model.device.type,
        dtype=str(model.dtype)[6:],
        stand_in=kind_of_stand_in(stand_in),
        corrects=isinstance(stand_in, Corrects),
    )


def stand_in_of(stand_in: StandIn | Named | Mapping[SiteKey, Tensor], scorer: Scorer) -> StandIn:
    if isinstance(stand_in, Mapping):
        return Mean(stand_in)
    if not isinstance(stand_in, str) and callable(stand_in) and not isinstance(stand_in, type):
        return stand_in
    if stand_in not in get_args(Named):
        raise UserError(
            f"stand_in must be one of {list(get_args(Named))}, values of each site, or a StandIn, got "
            f"{stand_in!r}"
        )
    if stand_in == "auto" and isinstance(scorer, Brings):
        return scorer.stand_in
    means = getattr(scorer, "means", None)
    if stand_in == "mean" and not means:
        raise UserError(
            "stand_in=mean needs a predictor that brings means, and this scorer has none: give zero"
        )
    if stand_in == "zero" or not means or (stand_in == "auto" and not getattr(scorer, "deviates", False)):
        return Zero()
    return Mean(means)
