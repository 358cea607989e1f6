"""What is refused before work starts: what can be known before the model is loaded."""

from typing import get_args

from omegaconf import DictConfig, ListConfig

from shadow import criteria
from shadow.data.batches import Loss
from shadow.errors import UserError, require_choice, require_number, require_whole
from shadow.executors.gathered import Gathered
from shadow.executors.masked import Masked
from shadow.fit.block_budgets import MOST
from shadow.fit.thresholds import OF_THE_SITE
from shadow.front import Named
from shadow.jobs.calibration import calibration_data, needs_traces
from shadow.jobs.config import data_label, device_of, executor_label, is_one_process
from shadow.jobs.device_checks import check_accelerator, check_devices
from shadow.jobs.disjoint import check_disjoint
from shadow.jobs.measure_checks import check_measure
from shadow.jobs.method import executor_of, facts_of, is_trained, learns, net_of, policy_of, recipe_of
from shadow.jobs.missing import check_made
from shadow.jobs.references import resolved
from shadow.jobs.trace_checks import check_tapped, check_traces
from shadow.plans.facts import DecidedAt
from shadow.plans.refusals import refusal

STAGES = ("estimate", "traces", "predictor")
BUDGETS = ("uniform", "greedy", "global", "block", "divergence", "tails", "angular")


@resolved()
def check_train(cfg: DictConfig) -> None:
    require_choice("stage", cfg.stage, STAGES)
    check_devices(cfg)
    check_predictor(cfg)
    check_traces(cfg)
    if cfg.stage == "predictor" and learns(cfg):
        check_plans(cfg)
        if not is_single(cfg):
            several = "fit with sparsity=layer in several, and " if is_trained(cfg) else ""
            raise UserError(
                f"budgets, thresholds and stand-ins are learnt in one process: {several}run train.py with "
                f"trainer.devices=1 and trainer.strategy=auto, got {cfg.trainer.devices} and "
                f"{cfg.trainer.strategy}"
            )
    calibration_data(cfg)


@resolved()
def check_evaluate(cfg: DictConfig) -> None:
    policy_of(cfg)  # refuses what is no policy before anything long begins
    check_measure(cfg)
    check_latency(cfg)
    check_divergence(cfg)
    check_scorer(cfg)
    check_disjoint(cfg)


def check_scorer(cfg: DictConfig) -> None:
    """What plans come from: a method, in one process, and artifacts that are there or may be made."""
    check_accelerator(cfg)
    check_method(cfg)
    check_process(cfg)
    check_made(cfg)


def check_predictor(cfg: DictConfig) -> None:
    """What the recipe refuses whatever is pruned, as far as a fit and its traces go."""
    check_criterion(cfg)
    check_sparsity(cfg)
    raise_first(recipe_of(cfg).refuses(cfg.criterion.name, facts_of(cfg, level=0)))
    if is_trained(cfg):
        check_tapped(cfg)
        net_of(cfg).taps_in(facts_of(cfg, level=0).layers)
        net_of(cfg).reading(cfg.sparsity.decided_at)


def check_plans(cfg: DictConfig) -> None:
    """That the recipe and the policy fit each other: each says its own rules."""
    check_predictor(cfg)
    facts = facts_of(cfg)
    raise_first(recipe_of(cfg).refuses(cfg.criterion.name, facts), refusal(facts))


def check_method(cfg: DictConfig) -> None:
    """That the executor fits both, too."""
    check_plans(cfg)
    raise_first(executor_of(cfg).refuses(facts_of(cfg)))


def raise_first(*sentences: str | None) -> None:
    for sentence in sentences:
        if sentence is not None:
            raise UserError(sentence)


def check_criterion(cfg: DictConfig) -> None:
    name = cfg.criterion.name
    if name != criteria.REMOVAL:
        criteria.require("criterion", [name])
    elif needs_traces(cfg):
        raise UserError(
            "criterion=removal tries every unit on the sample itself, over windows, and no traces have it: "
            "use predictor=oracle and sparsity.decided_at=prompt or sequence, got predictor="
            f"{cfg.predictor.name} and sparsity.budgets={cfg.sparsity.budgets}"
        )
    require_choice("traces.loss", cfg.traces.loss, get_args(Loss))


def check_sparsity(cfg: DictConfig) -> None:
    """The settings of `sparsity` that are no policy's."""
    policy, settings = policy_of(cfg), cfg.sparsity
    require_choice("sparsity.decided_at", settings.decided_at, get_args(DecidedAt))
    require_choice("sparsity.stand_in", settings.stand_in, get_args(Named))
    require_choice("sparsity.budgets", settings.budgets, BUDGETS)
    if settings.budgets != "uniform" and settings.scope == "global":
        raise UserError(
            f"sparsity.budgets={settings.budgets} says what each layer loses and needs sparsity.scope=layer "
            "or threshold, got global"
        )
    check_shares(cfg)
    if policy.level > 0 and "channel" in (policy.kinds or ()):
        for setting, value, instead in (("budgets", "global", "uniform"), ("stand_in", "mean", "zero")):
            if settings[setting] == value:
                raise UserError(
                    f"sparsity.{setting}={value} comes from the calibration of heads and neurons, and "
                    f"predictor={cfg.predictor.name} prunes channels: give sparsity.{setting}={instead}"
                )
    if policy.level > 0 and "block" in (policy.kinds or ()) and settings.budgets in ("greedy", "global"):
        raise UserError(
            f"sparsity.budgets={settings.budgets} counts units of a site, and predictor={cfg.predictor.name} "
            "skips blocks, of which a site has one: give sparsity.budgets=uniform, divergence or angular"
        )
    if settings.budgets == "global" and settings.min_units < 1:
        raise UserError(
            "sparsity.budgets=global may rank a whole layer last, which no level of a layer removes: give "
            f"sparsity.min_units=1, got {settings.min_units}"
        )
    require_whole("sparsity.budget_windows", settings.budget_windows, 1)
    learnt = settings.learnt
    require_whole("sparsity.learnt.epochs", learnt.epochs, 1)
    require_whole("sparsity.learnt.batch_size", learnt.batch_size, 1)
    if not isinstance(learnt.move_thresholds, bool):
        raise UserError(
            f"sparsity.learnt.move_thresholds must be true or false, got {learnt.move_thresholds!r}"
        )
    require_number("sparsity.learnt.lr", learnt.lr, "above 0", lambda rate: rate > 0)
    if settings.budget_fewshot is not None and ("num_fewshot" not in cfg.data or settings.budget_fewshot < 0):
        raise UserError(
            "sparsity.budget_fewshot counts the shots of tasks' prompts, at least 0, and needs data=tasks, "
            f"got {settings.budget_fewshot} with data={data_label(cfg)}"
        )


def check_shares(cfg: DictConfig) -> None:
    """The settings of sparsity.budgets=divergence and block, and what the latter cannot share out."""
    settings, facts = cfg.sparsity, facts_of(cfg)
    require_whole("sparsity.block.windows", settings.block.windows, 1)
    require_number("sparsity.block.step", settings.block.step, "in (0, 0.5]", lambda step: 0 < step <= 0.5)
    probes = settings.slot_probes
    listed = isinstance(probes, ListConfig) and len(probes) > 0
    if not listed or not all(type(part) in (int, float) and part > 0 for part in probes) or max(probes) <= 1:
        raise UserError(
            "sparsity.slot_probes must be parts of the level above 0, one of them above 1, for a slot may "
            f"lose more than others, got {probes}"
        )
    if settings.budgets != "block" or settings.level == 0:
        return
    if settings.level > MOST:
        raise UserError(
            f"sparsity.budgets=block takes at most {MOST} of a site, and sparsity.level must be no more, got "
            f"{settings.level}"
        )
    if settings.decided_at != "token" or not set() < facts.scorer.points <= OF_THE_SITE:
        reads = sorted(facts.scorer.points) or "nothing"
        raise UserError(
            "sparsity.budgets=block runs each layer by itself and needs a predictor that sees what it "
            f"decides about, at each token: {facts.scorer.name} reads {reads}, "
            f"decided at {settings.decided_at}; give sparsity.budgets=greedy"
        )
    if facts.experts > 1:
        raise UserError(
            "sparsity.budgets=block does not know what experts are sent: give sparsity.budgets=greedy, or "
            "uniform"
        )


def check_latency(cfg: DictConfig) -> None:
    measure = cfg.measure
    if not measure.latency:
        return
    if device_of(cfg).type != "cpu":
        raise UserError(
            "measure.latency times what runs on the CPU, and this job's model lies on a GPU: give "
            f"trainer=cpu, got trainer.accelerator={cfg.trainer.accelerator}"
        )
    if not isinstance(executor_of(cfg), Gathered):
        raise UserError(
            "measure.latency times an executor that leaves out what plans drop, and "
            f"executor={executor_label(cfg)} computes everything: give executor=gathered"
        )
    for name, least in (("prompt_tokens", 2), ("new_tokens", 2), ("rounds", 2)):
        if measure[name] < least:
            raise UserError(f"measure.{name} must be at least {least}, got {measure[name]}")


def check_divergence(cfg: DictConfig) -> None:
    if cfg.measure.divergence:
        require_dense_pass(cfg, "measure.divergence=true", "measure.divergence=false")


def require_dense_pass(cfg: DictConfig, asked: str, otherwise: str) -> None:
    if not isinstance(executor_of(cfg), Masked):
        raise UserError(
            f"{asked} lets the same model run dense and sparse, and executor={executor_label(cfg)} has no "
            f"dense pass: give {otherwise}, or executor=masked"
        )


def is_single(cfg: DictConfig) -> bool:
    return cfg.trainer.strategy == "auto" and is_one_process(cfg)


def check_process(cfg: DictConfig) -> None:
    if not is_single(cfg):
        raise UserError(
            "evaluate.py measures in one process: give trainer.devices=1 and trainer.strategy=auto, got "
            f"{cfg.trainer.devices} and {cfg.trainer.strategy}; train.py collects and fits in several"
        )
