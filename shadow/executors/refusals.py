"""What executor=gathered cannot follow, each in one sentence; asked before anything runs."""

from typing import get_args

from shadow.executors.families import misfit
from shadow.executors.options import BITS, OWN, Storage
from shadow.plans.facts import Facts


def gathered_refuses(facts: Facts, storage: str | None, kv_policy: str, compact: bool) -> str | None:
    """The first rule that is broken, with setting, value and cure; None if nothing is wrong."""
    of_model = _of_model(facts, storage, kv_policy, compact)
    if of_model is not None or facts.policy.level == 0:
        return of_model
    if "channel" in (facts.policy.kinds or ()):
        return _of_channels(facts, storage) or _of_tokens(facts, compact)
    return _of_scorer(facts) or _of_tokens(facts, compact)


def _of_model(facts: Facts, storage: str | None, kv_policy: str, compact: bool) -> str | None:
    if wrong := misfit(facts.config):
        return wrong
    if facts.device == "cuda" and (storage is not None or kv_policy != "write_all" or compact):
        return (
            "executor=gathered on a GPU reads the model's own weights where they are and writes all keys and "
            f"values: leave storage, kv_policy and compact out, got {storage!r}, {kv_policy!r}, {compact!r}"
        )
    if facts.device != "cuda" and storage is None and facts.dtype not in OWN:
        return (
            f"executor=gathered stores weights as one of {list(get_args(Storage))}: give storage, or load "
            f"the model with dtype={' or '.join(OWN)}, got storage=None and dtype={facts.dtype}"
        )
    if storage in BITS and kv_policy == "recompute":
        return (
            "executor.kv_policy=recompute goes back to earlier states, and needs executor.storage=float32 or "
            f"bfloat16: use one of these, or kv_policy=write_all, got storage={storage}"
        )
    return None


def _of_any(facts: Facts) -> str | None:
    """Whatever its kind of unit."""
    if "row" in (facts.policy.kinds or ()):
        return "executor=gathered reads no rows of the lm_head by a plan yet: use executor=masked"
    if "block" in (facts.policy.kinds or ()):
        return "executor=gathered runs every layer's attention and FFN: use executor=masked to skip blocks"
    if facts.policy.tokens not in ("all", "decode"):
        return (
            "executor=gathered knows sparsity.tokens=all and decode: use one of these, or executor=masked, "
            f"got {facts.policy.tokens!r}"
        )
    return None


def _of_channels(facts: Facts, storage: str | None) -> str | None:
    if wrong := _of_any(facts):
        return wrong
    if facts.device != "cuda" and storage not in BITS:
        return (
            "executor=gathered reads channels in executor.storage=int8 or int4 alone: give one of them, or "
            f"use executor=masked, got {storage or 'null'}"
        )
    if not facts.scorer.compiled:
        return (
            "executor=gathered decides about channels by |x|, or |x| times a factor of each channel, as "
            f"predictor=teal and wina do, and this scorer is {facts.scorer.name}: use executor=masked"
        )
    if facts.device == "cuda" and facts.scorer.scaled:
        return (
            "executor=gathered decides about channels on a GPU by |x| alone, as predictor=teal does, and "
            f"{facts.scorer.name} has a factor of each: use executor=masked"
        )
    if facts.decided_at != "token":
        return (
            "executor=gathered decides about channels at each token: use sparsity.decided_at=token, or "
            f"executor=masked, got {facts.decided_at}"
        )
    if "lm_head" in (facts.policy.slots or ()):
        return (
            "executor=gathered reads all inputs of the lm_head: leave it out of sparsity.slots, or use "
            "executor=masked"
        )
    if facts.stand_in != "zero":
        return (
            "executor=gathered puts nothing in the place of channels that it drops: use "
            f"sparsity.stand_in=zero, or executor=masked, got {facts.stand_in}"
        )
    return None


def _of_scorer(facts: Facts) -> str | None:
    scorer = facts.scorer
    if wrong := _of_any(facts):
        return wrong
    if facts.corrects:
        return (
            "executor=gathered changes what is written behind channels alone, as a learnt stand-in does: use "
            "executor=masked, or sparsity.learnt.windows=0"
        )
    if facts.stand_in not in ("zero", "mean"):
        return (
            "executor=gathered puts 0 or constants in dropped units' places: use sparsity.stand_in=zero or "
            f"mean, or executor=masked, got {facts.stand_in}"
        )
    if scorer.looks:
        return (
            f"executor=gathered runs no {scorer.name}, which must see a sample before it is run: use "
            "executor=masked"
        )
    if not scorer.points <= {"layer_input"}:
        return (
            f"executor=gathered needs a scorer that reads the inputs of layers, and {scorer.name} reads "
            f"{', '.join(sorted(scorer.points))}: use executor=masked"
        )
    return None


def _of_tokens(facts: Facts, compact: bool) -> str | None:
    """Where plans change from one token to the next."""
    policy, scorer = facts.policy, facts.scorer
    if facts.decided_at != "token" or not scorer.points:
        return None
    if not scorer.compiled:
        return (
            "executor=gathered decides at each token by nets of this framework's own alone, and "
            f"{scorer.name} is none: use sparsity.decided_at=prompt, or executor=masked"
        )
    if policy.scope not in ("layer", "threshold"):
        return (
            "executor=gathered needs sparsity.scope=layer or threshold where each token decides, got "
            f"{policy.scope}: use one of these, sparsity.decided_at=prompt, or executor=masked"
        )
    if policy.head_unit == "group" and "head" in (policy.kinds or ()) and facts.group > 1:
        return (
            "executor=gathered chooses query heads one by one where each token decides and needs "
            "sparsity.head_unit=query, got group: use executor=masked, or sparsity.decided_at=prompt"
        )
    if compact:
        return (
            "executor.compact copies rows once a prompt, and needs plans that stay for all that follows: "
            f"give sparsity.decided_at=prompt, or executor.compact=false, got token with {scorer.name}"
        )
    return None
