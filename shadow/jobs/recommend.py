"""`shadow recommend`: the method and level that skip most within a budget, written as a checkpoint."""

import logging
import math
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import hydra
from omegaconf import DictConfig, ListConfig

if TYPE_CHECKING:
    from shadow.data.batches import Example
    from shadow.measures.evaluation import Metric
    from shadow.models.load import LM

log = logging.getLogger("recommend")


class Tried(NamedTuple):
    """skipped: share of the weights' bytes; lost: nats of what the budget is of, with standard error."""

    contender: tuple[str, str]
    level: float
    skipped: float
    lost: float
    stderr: float

    def row(self) -> str:
        method = ", ".join(self.contender)
        return f"{method:<18} {self.level:>5g} {self.skipped:>8.3f}   {self.lost:.3f} ± {self.stderr:.3f}"


BUDGETS = {"nats": "nats over dense", "kl": "nats of KL from dense"}  # what a budget may be of
HEADER = f"{'method':<18} {'level':>5} {'skipped':>8}   "


@hydra.main(version_base="1.3", config_path="pkg://shadow.conf", config_name="recommend")
def run(cfg: DictConfig) -> None:
    from shadow.jobs.export import make
    from shadow.jobs.run import job

    with job(cfg) as this:
        check(cfg)
        tried = try_all(cfg, this.loggers)
        best = choose(tried, cfg.budget, BUDGETS[cfg.budget_of])
        folder = make(asked(cfg, best.contender, best.level), this.loggers)
        this.record |= {"tried": [one._asdict() for one in tried], "recommended": best._asdict()}
        this.record["checkpoint"] = str(folder)
        log.info("%s", "\n".join([HEADER + BUDGETS[cfg.budget_of], *(one.row() for one in tried)]))
        log.info(
            "recommended: %s at level %g, which skips %.1f %% of the weight bytes and loses %.3f %s\n"
            "in Python, after import shadow: AutoModelForCausalLM.from_pretrained(%r)\nmeasured: %s",
            ", ".join(best.contender),
            best.level,
            100 * best.skipped,
            best.lost,
            BUDGETS[cfg.budget_of],
            str(folder),
            command(cfg, best),
        )


def asked(cfg: DictConfig, contender: Sequence[str], level: float) -> DictConfig:
    """The settings of one that is tried, as sweep=methods has them."""
    one = cfg.copy()
    one.contender, one.sparsity.level = list(contender), level
    return one


def check(cfg: DictConfig) -> None:
    """Everything that is tried, before anything is loaded."""
    from shadow.errors import UserError, meant, require_choice, require_number, require_whole
    from shadow.jobs import checks
    from shadow.jobs.calibration import reads_store
    from shadow.jobs.export import require_free

    require_free(cfg)
    require_number("budget", cfg.budget, "a number of nats above 0", lambda nats: 0 < nats < math.inf)
    require_choice("budget_of", cfg.budget_of, tuple(BUDGETS))
    if cfg.budget_of == "kl":
        checks.require_dense_pass(cfg, "budget_of=kl", "budget_of=nats")
    require_whole("windows", cfg.windows, 2)
    pairs = isinstance(cfg.contenders, ListConfig) and all(
        isinstance(pair, ListConfig) and len(pair) == 2 for pair in cfg.contenders
    )
    if not isinstance(cfg.levels, ListConfig) or not cfg.levels or not pairs or not cfg.contenders:
        raise UserError(
            "levels and contenders must name some, as levels=[0.3,0.5] contenders=[[teal,block]], got "
            f"levels={cfg.levels} and contenders={cfg.contenders}"
        )
    for contender in cfg.contenders:
        predictor, rule = contender
        for name, known in ((predictor, cfg.recipe), (rule, cfg.rule)):
            if name not in known:
                near = meant(name, map(str, known)) or f": give some of {', '.join(map(str, known))}"
                raise UserError(f"contenders are a predictor and a rule of sweep=methods, got {name!r}{near}")
        for level in cfg.levels:
            one = asked(cfg, contender, level)
            checks.check_scorer(one)
            if reads_store(one):
                raise UserError(
                    "shadow recommend measures on windows of the calibration that its contenders leave, and "
                    f"{predictor} learns from all of them: name others, or compare by sweep=methods"
                )


def try_all(cfg: DictConfig, loggers: list) -> list[Tried]:
    from shadow.jobs import loading

    lm = loading.placed(cfg, loading.load_lm(cfg))
    windows = held_out(cfg, lm)
    dense = None
    if cfg.budget_of != "kl":  # which is 0 of the dense model from itself
        dense, _ = measured(asked(cfg, cfg.contenders[0], 0.0), lm, windows, loggers)
    tried: list[Tried] = []
    for contender in cfg.contenders:
        for level in sorted(cfg.levels):
            found, skipped = measured(asked(cfg, contender, level), lm, windows, loggers)
            tried.append(Tried(tuple(contender), level, skipped, *over(found, dense)))
            log.info("%s", tried[-1].row())
            if tried[-1].lost > cfg.budget:
                break  # more would lose more
    return tried


def held_out(cfg: DictConfig, lm: "LM") -> list["Example"]:
    """Windows of the calibration that no method here learns from; of text every token counts."""
    from shadow.data.batches import Example
    from shadow.errors import UserError
    from shadow.jobs.calibration import calibration_data

    learnt = [asked(cfg, contender, cfg.levels[0]).sparsity.learnt.windows for contender in cfg.contenders]
    first = max(cfg.sparsity.budget_windows, *learnt)
    there = calibration_data(cfg).examples(lm)
    if len(there) < first + cfg.windows:
        left = len(there) - first
        fewer = f"give windows={left} or less, or " if left >= 2 else "give "
        more = f"data.windows={first + cfg.windows}" if "windows" in cfg.data else "more tasks' examples"
        raise UserError(
            f"the calibration has {len(there)} windows: methods learn from {first}, and {cfg.windows} are "
            f"measured on: {fewer}{more}"
        )
    found = there[first : first + cfg.windows]
    return found if "tasks" in cfg.data else [Example(one.ids, 0) for one in found]


def measured(cfg: DictConfig, lm: "LM", windows: list["Example"], loggers: list) -> tuple["Metric", float]:
    """-> what the budget is of, and the share of the weights' bytes that was skipped."""
    from shadow.front import sparse
    from shadow.jobs import loading
    from shadow.jobs.method import executor_of
    from shadow.jobs.prepared import prepared
    from shadow.measures.divergence import divergence
    from shadow.measures.evaluation import perplexity

    scorer, policy, stand_in = prepared(cfg, lm, loggers)
    lm = loading.measured_lm(cfg)  # as the checkpoint will hold it
    executor, decided_at = executor_of(cfg), cfg.sparsity.decided_at
    with sparse(lm.model, scorer, policy, decided_at, stand_in=stand_in, executor=executor) as run:
        if cfg.budget_of == "kl":
            found = divergence(run, windows, cfg.measure.batch_size)["kl"]
        else:
            found = perplexity(run, lm, windows, cfg.measure.batch_size)["perplexity"]
    skipped = run.bytes()["skipped"]
    assert isinstance(skipped, float)
    return found, skipped


def over(found: "Metric", dense: "Metric | None") -> tuple[float, float]:
    """-> nats more than dense and their standard error, window by window; None: it has none."""
    import numpy as np

    gaps = np.array(found.samples) if dense is None else np.subtract(found.samples or [], dense.samples or [])
    return float(np.mean(gaps)), float(np.std(gaps, ddof=1) / math.sqrt(len(gaps)))


def choose(tried: Sequence[Tried], budget: float, of: str = BUDGETS["nats"]) -> Tried:
    from shadow.errors import UserError

    within = [one for one in tried if one.lost <= budget]
    if not within:
        least = min(tried, key=lambda one: one.lost)
        raise UserError(
            f"budget={budget:g} {of} is less than any of these loses: {', '.join(least.contender)} at level "
            f"{least.level:g} loses {least.lost:.3f}: give budget={least.lost * 1.1:.2g}, or lower levels"
        )
    return max(within, key=lambda one: one.skipped)


def command(cfg: DictConfig, best: Tried) -> str:
    """How the winner is measured on text that it has not seen."""
    from hydra.core.hydra_config import HydraConfig

    own = ("budget", "budget_of", "contender", "contenders", "levels", "windows", "folder", "sparsity.level")
    kept = [word for word in HydraConfig.get().overrides.task if word.partition("=")[0] not in own]
    contender = f"contender=[{','.join(best.contender)}]"
    words = ["methods", *kept, contender, f"sparsity.level=0,{best.level:g}"]
    return shlex.join(["shadow", "sweep", *words])


def main(argv: Sequence[str] | None = None) -> None:
    """argv: Hydra's overrides; None: those of the command line."""
    from shadow.jobs.command_line import prepare_for

    prepare_for("recommend", argv)
    run()


if __name__ == "__main__":
    main()
