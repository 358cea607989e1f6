"""What a job asks of its calibration: examples, criteria and parts of a trace store."""

from collections.abc import Sequence
from dataclasses import replace

from hydra.utils import instantiate
from omegaconf import DictConfig

from shadow.criteria import CRITERIA, RANDOM
from shadow.data.calibration import CalibrationData, TaskPrompts
from shadow.errors import UserError
from shadow.jobs.method import is_trained, needs_of, ranks_layers, stand_in_of, traits_of
from shadow.traces.shards import FEATURES, MEANS, covered, reach

GROWS = ("windows", "examples_per_task")  # of the data: a store of fewer becomes one of more


def calibration_data(cfg: DictConfig) -> CalibrationData:
    return instantiate(cfg.data, _convert_="all")


def budget_data(cfg: DictConfig) -> CalibrationData:
    """The calibration's own examples, with as many shots as budgets are to be learnt with."""
    data = calibration_data(cfg)
    shots = cfg.sparsity.budget_fewshot
    return replace(data, num_fewshot=shots) if isinstance(data, TaskPrompts) and shots is not None else data


def asked_size(cfg: DictConfig) -> str:
    """How many examples the data are asked for, as a store's manifest knows it."""
    return next(str(cfg.data[key]) for key in GROWS if key in cfg.data)


def needs_traces(cfg: DictConfig) -> bool:
    """Whether scores come from traces: the scorer's, or those that rank layers."""
    return needs_of(cfg).traces or (ranks_layers(cfg) and cfg.criterion.name != RANDOM)


def reads_criterion(cfg: DictConfig) -> bool:
    """Whether the job's criterion decides anything."""
    return is_trained(cfg) or needs_traces(cfg) or traits_of(cfg).by_criterion


def needs_means(cfg: DictConfig) -> bool:
    """Whether the sparse pass takes the calibration's means from the traces."""
    return cfg.sparsity.level > 0 and (needs_of(cfg).means or stand_in_of(cfg) == "mean")


def reads_store(cfg: DictConfig) -> bool:
    """Whether the method is made of what collecting leaves."""
    return is_trained(cfg) or needs_traces(cfg) or needs_means(cfg)


def asked_criteria(cfg: DictConfig) -> list[str]:
    """What the store of this job must hold: `traces.criteria`, and the criterion that is used of it."""
    asked = cfg.traces.criteria
    names = list(CRITERIA) if asked == "all" else list(asked or [])
    used = [cfg.criterion.name] if needs_traces(cfg) and cfg.criterion.name not in names else []
    return [name for name in [*names, *used] if name != RANDOM]


def asked_parts(cfg: DictConfig) -> list[str]:
    return [FEATURES, MEANS, *needs_of(cfg).parts, *asked_criteria(cfg)]


def trace_taps(cfg: DictConfig, layers: int) -> list[int]:
    taps = list(range(layers)) if cfg.traces.taps == "all" else list(cfg.traces.taps)
    if not taps or any(not 0 <= tap < layers for tap in taps):
        raise UserError(f"traces.taps must be `all` or layers in [0, {layers}) of this model, got {taps}")
    return taps


def holds(manifest: dict | None, asked: str, parts: Sequence[str]) -> bool:
    """Whether a store has these parts of all windows that so many examples come to."""
    windows = (manifest or {}).get("sizes", {}).get(asked)
    if manifest is None or windows is None:
        return False
    size = manifest["settings"]["traces"]["shard_windows"]
    return all(covered(manifest, part) >= reach(part, windows, size) for part in parts)
