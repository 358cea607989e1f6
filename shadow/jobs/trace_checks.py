"""Traces that cannot be collected, refused before work starts."""

from typing import get_args

from omegaconf import DictConfig, ListConfig

from shadow import criteria
from shadow.data.batches import Loss, Positions
from shadow.errors import UserError, require_choice, require_int
from shadow.jobs.calibration import asked_criteria
from shadow.jobs.method import net_of
from shadow.traces.packing import Stored


def check_traces(cfg: DictConfig) -> None:
    settings = cfg.traces
    for setting, allowed in (("loss", Loss), ("summed", Positions), ("dtype", Stored)):
        require_choice(f"traces.{setting}", settings[setting], get_args(allowed))
    for name in ("tokens_per_window", "statistic_tokens", "batch_size", "shard_windows"):
        require_int(f"traces.{name}", settings[name])
    if settings.top is not None and not (isinstance(settings.top, float) and 0 < settings.top < 1):
        raise UserError(f"traces.top is a share of the units and must be in (0, 1), got {settings.top!r}")
    if settings.criteria is not None and settings.criteria != "all":
        if not isinstance(settings.criteria, ListConfig):
            raise UserError(
                f"traces.criteria must be null, all, or names in brackets, got {settings.criteria!r}"
            )
        criteria.require("traces.criteria", list(settings.criteria))
    if settings.tokens_per_window < 0 or settings.statistic_tokens < 2:
        raise UserError(
            "traces.tokens_per_window must be at least 0 and traces.statistic_tokens at least 2, got "
            f"{settings.tokens_per_window} and {settings.statistic_tokens}"
        )
    if settings.batch_size < 1 or settings.shard_windows < 1 or settings.shard_windows % settings.batch_size:
        raise UserError(
            "traces.shard_windows must be a multiple of traces.batch_size, got "
            f"{settings.shard_windows} and {settings.batch_size}"
        )
    if "windows" in cfg.data:
        require_int("data.windows", cfg.data.windows)
        require_windows(cfg, cfg.data.windows)


def require_windows(cfg: DictConfig, windows: int) -> None:
    """Refuse a statistic that has less than a shard to compare."""
    statistics = [name for name in asked_criteria(cfg) if name in criteria.STATISTICS]
    if statistics and windows < cfg.traces.shard_windows:
        raise UserError(
            f"{', '.join(statistics)} compare the windows of a whole shard: traces.shard_windows="
            f"{cfg.traces.shard_windows} must be at most the {windows} windows that the data give"
        )


def check_tapped(cfg: DictConfig) -> None:
    """Of a predictor that is trained, that the traces keep what it reads."""
    taps, kept = net_of(cfg).taps, cfg.traces.taps
    if isinstance(taps, list) and isinstance(kept, ListConfig) and not set(taps) <= set(kept):
        raise UserError(f"predictor.taps={taps} must be among traces.taps={kept}: add them, or give `all`")
    if net_of(cfg).reading(cfg.sparsity.decided_at).rows == "token" and cfg.traces.tokens_per_window == 0:
        raise UserError(
            "traces.tokens_per_window must be at least 1 for a predictor that learns from tokens, got 0"
        )
