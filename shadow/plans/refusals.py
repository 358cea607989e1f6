"""What a scorer and a policy cannot do together, each in one sentence; asked before anything runs."""

from typing import get_args

from shadow.plans.facts import DecidedAt, Facts


def refusal(facts: Facts) -> str | None:
    """The first rule that is broken, with setting, value and cure; None if nothing is wrong."""
    policy, layers = facts.policy, facts.layers
    if facts.decided_at not in get_args(DecidedAt):
        return f"sparsity.decided_at must be token, prompt or sequence, got {facts.decided_at!r}"
    if any(not 0 <= layer < layers for layer in policy.dense_layers):
        return (
            f"sparsity.dense_layers must be in [0, {layers}) for this model, got {list(policy.dense_layers)}"
        )
    if policy.level == 0:
        return None
    return _of_kinds(facts) or _of_time(facts) or _of_layers(facts)


def _of_kinds(facts: Facts) -> str | None:
    policy, scorer = facts.policy, facts.scorer
    kinds = list(policy.kinds or ())
    if not set(kinds) <= scorer.kinds:
        return (
            f"sparsity.kinds must be among {sorted(scorer.kinds)}, which are all that {scorer.name} scores, "
            f"got {kinds}"
        )
    if facts.corrects and facts.experts > 1 and kinds != ["head"]:
        return (
            "a learnt stand-in changes what projections write, and those of experts write for tokens that "
            "are sent to them alone: give sparsity.learnt.windows=0, or sparsity.kinds=[head]"
        )
    if facts.corrects and "row" in kinds:
        return (
            "a learnt stand-in does not say what rows of the lm_head would write that are not read: give "
            "sparsity.learnt.windows=0, or a predictor without rows"
        )
    if "block" in kinds and (wrong := _of_blocks(facts)):
        return wrong
    of_the_site = policy.scope == "threshold" and set() < scorer.points <= {"gate", "up", "site"}
    if facts.experts > 1 and kinds != ["head"] and policy.scope != "layer" and not of_the_site:
        return (
            "neurons of experts are ranked within their expert, of which each loses the same share, and need "
            f"sparsity.scope=layer, got {policy.scope}: use that, or sparsity.kinds=[head]"
        )
    return None


def _of_blocks(facts: Facts) -> str | None:
    """A site has one block."""
    if facts.policy.scope not in ("threshold", "global"):
        return (
            "a layer has one attention and one FFN, of which no share goes: to skip blocks give "
            f"sparsity.scope=threshold, or global with one step, got {facts.policy.scope}"
        )
    if facts.stand_in not in ("zero", "ByKind"):
        return (
            "a block that is skipped adds nothing to the stream: give sparsity.stand_in=zero, or "
            f"sparsity.learnt.windows for a learnt one, got {facts.stand_in}"
        )
    return None


def _of_time(facts: Facts) -> str | None:
    if facts.scorer.pooled and facts.decided_at == "token":
        return reads_whole_prompts(facts.scorer.name)
    if facts.policy.scope == "threshold" and not facts.scorer.points:
        return (
            "sparsity.scope=threshold needs scores that differ between tokens, or prompts, and those of "
            f"{facts.scorer.name} are the same for all: use sparsity.scope=layer or global"
        )
    return None


def _of_layers(facts: Facts) -> str | None:
    policy, scorer = facts.policy, facts.scorer
    if scorer.points and not set(range(scorer.first)) <= set(policy.dense_layers):
        return (
            "sparsity.dense_layers must hold every layer before the first that the predictor scores "
            f"({scorer.first}), got {list(policy.dense_layers)}"
        )
    if policy.scope == "global" and scorer.steps > 1:
        return (
            f"sparsity.scope=global ranks over layers that {scorer.name} with {scorer.steps} taps has not "
            "scored yet: use sparsity.scope=layer, or a predictor with one tap"
        )
    return None


def reads_whole_prompts(name: str) -> str:
    return (
        f"{name} reads a whole prompt and scores no single token: give sparsity.decided_at=prompt or "
        "sequence, got token"
    )
