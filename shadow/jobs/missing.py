"""Artifacts that a job misses, and the command that makes them."""

import re
import shlex
from collections.abc import Iterable, Sequence

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from shadow.artifacts import learnt_numbers
from shadow.artifacts.hub import CONFIG
from shadow.commands.scripts import spoken
from shadow.errors import UserError
from shadow.jobs.calibration import asked_criteria, asked_size, holds, needs_means, needs_traces, reads_store
from shadow.jobs.keys import budgets_file, learnt_folder, predictor_folder, router_folder, traces_folder
from shadow.jobs.method import is_trained, learns_budgets, learns_stand_in, needs_of, ranks_layers
from shadow.jobs.trace_checks import check_traces
from shadow.traces.shards import FEATURES, MEANS, read_manifest

# what an override of evaluate.py must begin with to concern the artifacts that train.py makes
TRAINS = [
    "model",
    "data",
    "traces",
    "criterion",
    "predictor",
    "sparsity.decided_at",
    "sparsity.stand_in",
    "sparsity.head_unit",
    "trainer",
    "seed",
    "paths",
    "experiment",
    "debug",
    "hydra.searchpath",  # where options of one's own lie
]
SEVERAL = re.compile(r"trainer=(ddp|fsdp)$|trainer\.(devices|num_nodes|strategy)=")  # processes, of a fit
METHOD = [*TRAINS, "sparsity"]  # and what a method without a net learns


def check_made(cfg: DictConfig) -> None:
    """That the predictor, what is needed of the traces, and budgets are there or may be made."""
    if cfg.sparsity.level == 0:
        return
    if reads_store(cfg):
        check_traces(cfg)
    if makes_missing(cfg):
        return
    if reads_store(cfg):
        check_predictor_made(cfg)
        check_traces_made(cfg)
    if needs_of(cfg).router:
        folder = router_folder(cfg)
        if not (folder / learnt_numbers.CONFIG).is_file():
            raise UserError(f"there are no routers {folder}: {cure(METHOD, 'them')}")
    if learns_budgets(cfg) and not budgets_file(cfg).is_file():
        what, without = (
            ("thresholds", "sparsity=layer")
            if cfg.sparsity.scope == "threshold"
            else ("budgets", "sparsity.budgets=uniform")
        )
        raise UserError(f"there are no {what} {budgets_file(cfg)}: {cure(METHOD, 'them')}, or give {without}")
    if learns_stand_in(cfg):
        folder = learnt_folder(cfg)
        if not (folder / learnt_numbers.CONFIG).is_file():
            raise UserError(
                f"there is no learnt stand-in {folder}: {cure(METHOD)}, or give sparsity.learnt.windows=0"
            )


def makes_missing(cfg: DictConfig) -> bool:
    """As told; untold, of the model that lies in this package, whose fits take a minute."""
    told = cfg.make_missing
    if not isinstance(told, bool | None):
        raise UserError(f"make_missing must be true, false or null, got {told!r}")
    source = cfg.model.get("source") or {}
    return source.get("module") == "shadow.opt_mini" if told is None else told


def check_predictor_made(cfg: DictConfig) -> None:
    if is_trained(cfg) and not (predictor_folder(cfg) / CONFIG).is_file():
        raise UserError(f"there is no predictor {predictor_folder(cfg)}: {cure()}")


def check_traces_made(cfg: DictConfig) -> None:
    parts = [MEANS] if needs_means(cfg) else []
    if needs_traces(cfg) and (not is_trained(cfg) or ranks_layers(cfg)):
        parts += [FEATURES, *asked_criteria(cfg)]
    if parts and not holds(read_manifest(traces_folder(cfg)), asked_size(cfg), parts):
        raise UserError(
            f"there is no trace store with all that is asked for in {traces_folder(cfg)}: {cure()}"
        )


def cure(groups: Sequence[str] = TRAINS, it: str = "it") -> str:
    if HydraConfig.get().runtime.choices.get("sweep"):  # which has settings that train.py would not have
        return "set make_missing=true"
    return f"make {it} with `{train_command(groups)}`, or set make_missing=true"


def train_command(groups: Sequence[str] = TRAINS) -> str:
    """What makes what this job misses, from this job's own overrides of these, as this job was started."""
    return command("train", given(groups))


def evaluate_command() -> str:
    """What measures what this job has made."""
    return command("evaluate", [word for word in given(METHOD) if not SEVERAL.match(word)])


def given(groups: Sequence[str]) -> list[str]:
    """This job's own overrides of these."""
    return [
        override
        for override in [*HydraConfig.get().overrides.hydra, *HydraConfig.get().overrides.task]
        if any(re.match(rf"[+~]*{re.escape(start)}[=.@]", override) for start in groups)
    ]


def dense_command() -> str:
    """What measures the dense model as this job measures."""
    words = HydraConfig.get().overrides.task
    return command(
        "evaluate", [*(w for w in words if not w.startswith("sparsity.level=")), "sparsity.level=0"]
    )


def command(script: str, words: Iterable[str]) -> str:
    return " ".join([spoken(script), *map(shlex.quote, words)])
