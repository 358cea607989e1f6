"""A method as a whole: what makes a model sparse, and its form as JSON and tensors."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shadow.artifacts.learnt_policies import is_row, rows_of, thresholds_of
from shadow.checkpoint.scorer_forms import read_scorer, tell_scorer
from shadow.checkpoint.source import Source, Tensors, Told
from shadow.checkpoint.stand_in_forms import read_stand_in, tell_stand_in
from shadow.errors import UserError
from shadow.executors.gathered import Gathered
from shadow.executors.masked import Masked
from shadow.executors.run import Executor
from shadow.plans.facts import DecidedAt
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import StandIn
from shadow.scorers.protocol import Brings, Looks, Scorer

BY_SITE = ("levels", "thresholds")  # of a policy: rows of layer, slot and number
LISTS = ("dense_layers", "kinds", "slots")
EXECUTORS: dict[str, type[Masked] | type[Gathered]] = {"masked": Masked, "gathered": Gathered}


@dataclass(frozen=True)
class Method:
    """As `sparse` takes them."""

    scorer: Scorer
    policy: SparsityPolicy
    decided_at: DecidedAt
    stand_in: StandIn
    executor: Executor


def tell(method: Method) -> tuple[Told, Tensors]:
    """Refuses what a model that is loaded by others could not follow."""
    if isinstance(method.scorer, Looks):
        raise UserError(
            f"{type(method.scorer).__name__} must see a sample before the sparse pass, and who loads a "
            "checkpoint shows it none: export a method that decides in the pass itself"
        )
    if method.decided_at == "sequence":
        raise UserError(
            "sparsity.decided_at=sequence has seen the answer, which is not to be had in use: export with "
            "token or prompt"
        )
    tensors: Tensors = {}
    brought = method.scorer.stand_in if isinstance(method.scorer, Brings) else None
    told = {
        "scorer": tell_scorer(method.scorer, tensors),
        "policy": tell_policy(method.policy),
        "decided_at": method.decided_at,
        "stand_in": tell_stand_in(method.stand_in, tensors, brought=brought),
        "executor": tell_executor(method.executor),
    }
    return told, {name: values.detach().cpu().contiguous().clone() for name, values in tensors.items()}


def read(told: Mapping[str, Any], tensors: Mapping[str, Tensor], model: PreTrainedModel) -> Method:
    """A ValueError, TypeError, KeyError or RuntimeError where it is no method of this model's."""
    odd = [name for name, values in tensors.items() if not values.isfinite().all()]
    if odd:
        raise ValueError(f"{odd[0]} is not finite")
    with torch.no_grad():
        source = Source(model, tensors)
        scorer, policy = read_scorer(told["scorer"], source), read_policy(told["policy"])
        sites = source.sites(sorted(scorer.kinds))
        strange = [row for name in BY_SITE for row in getattr(policy, name) or () if row not in sites]
        if strange:
            raise ValueError(f"a level or threshold of {strange[0]}, which the model does not have")
        corrected = [site for site in sites.values() if policy.corrects(site)]
        brought = scorer.stand_in if isinstance(scorer, Brings) else None
        stand_in = read_stand_in(told["stand_in"], source, brought=brought, corrected=corrected)
    if told["decided_at"] not in get_args(DecidedAt)[:2]:
        raise ValueError(f"it decides at {told['decided_at']!r}")
    return Method(scorer, policy, told["decided_at"], stand_in, read_executor(told["executor"]))


def tell_policy(policy: SparsityPolicy) -> Told:
    told = {field.name: getattr(policy, field.name) for field in fields(policy)}
    told |= {name: None if told[name] is None else list(told[name]) for name in LISTS}
    told |= {name: None if told[name] is None else rows_of(told[name]) for name in BY_SITE}
    return told | {"slot_levels": None if policy.slot_levels is None else dict(policy.slot_levels)}


def read_policy(told: Told) -> SparsityPolicy:
    rows = [row for name in BY_SITE for row in told[name] or ()]
    odd = [row for row in rows if not is_row(row)]
    if odd:
        raise ValueError(f"a level or threshold is {odd[0]!r}")
    by_site = {name: None if told[name] is None else thresholds_of(told[name]) for name in BY_SITE}
    return SparsityPolicy(**told | by_site)


def tell_executor(executor: Executor) -> Told:
    for name, of in EXECUTORS.items():
        if type(executor) is of:
            return {"name": name} | asdict(executor)
    raise UserError(
        f"a checkpoint is run by Masked() or Gathered(...), got {type(executor).__name__}: give one of them"
    )


def read_executor(told: Told) -> Executor:
    if told["name"] not in EXECUTORS:
        raise ValueError(f"an executor {told['name']!r}")
    return EXECUTORS[told["name"]](**{name: value for name, value in told.items() if name != "name"})
