"""How far a sweep is, and how long it will take: told from the records of the jobs that have ended."""

import json
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from .duration import duration
from .records.variants import SAME_CURVE_GROUPS, split_override

ASIDE = ("tags", "launch", *SAME_CURVE_GROUPS)  # overrides that change nothing of a point


@dataclass
class Progress:
    """jobs: of the sweep; known: how many of them were measured before; seconds: a fresh one's, if known;
    varied: keys of the settings in which jobs differ."""

    jobs: int
    known: int = 0
    seconds: float | None = None
    varied: frozenset[str] = frozenset()
    began: float = field(default_factory=time.monotonic)  # a clock may be set back

    def at_the_beginning(self) -> str:
        words = f"{self.jobs} job{'' if self.jobs == 1 else 's'}"
        words += f", {self.known} measured before" if self.known else ""
        if self.seconds is None or self.known == self.jobs:
            return words
        return f"{words}, about {duration((self.jobs - self.known) * self.seconds)}"

    def left(self, ended: int, fresh: int) -> str:
        """ended: jobs of this sweep, of which so many have measured something; empty: too early to say."""
        known = max(0, self.known - (ended - fresh))  # of those that are still to come
        rest = self.jobs - ended - known
        if rest <= 0 or not fresh:
            return ""
        return f"about {duration(rest * (time.monotonic() - self.began) / fresh)} left"


def begin(config: DictConfig) -> Progress:
    """Of a sweep that has not begun."""
    params = dict(config.hydra.sweeper.get("params") or {})
    if not str(config.hydra.sweeper._target_).endswith(".BasicSweeper"):  # makes its jobs up as it goes
        trials = int(config.hydra.sweeper.get("n_trials") or 0)
        return Progress(trials, varied=frozenset(map(str, params)))
    jobs = jobs_of(config, params)
    records = earlier(config)
    there = {asked(one["overrides"]) for one in records if is_there(one, config)}
    known = sum(asked(job) in there for job in jobs) if config.get("reuse_points") else 0
    words = [dict(map(split_override, job)) for job in jobs]
    varied = {key for key in words[0] if len({one.get(key) for one in words}) > 1} if words else set()
    return Progress(len(jobs), known, usual_seconds(records, config), frozenset(varied))


def jobs_of(config: DictConfig, params: dict[Any, Any]) -> list[Sequence[str]]:
    """The overrides of each job, as Hydra's own sweeper makes them."""
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    given = [f"{key}={value}" for key, value in params.items()]
    overrides = parser.parse_overrides([*given, *config.hydra.overrides.task])
    return [job for batch in BasicSweeper.split_arguments(overrides, None) for job in batch]


def earlier(config: DictConfig) -> list[dict[str, Any]]:
    """The records of this task's jobs that have ended well."""
    logs = OmegaConf.select(config, "paths.log_dir")
    files = Path(logs).glob(f"{config.task_name}/**/run.json") if logs else ()
    own = [file for file in files if "looked_up" not in file.parts]  # the others are the dense model's
    return [record for file in own if (record := read(file)) and record.get("status") == "done"]


def read(file: Path) -> dict[str, Any] | None:
    """None: another job is writing it, or half of it was left."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def is_there(record: dict[str, Any], config: DictConfig) -> bool:
    """Whether its point is still kept."""
    kept = str(record.get("kept_in") or "")
    return bool(kept) and (Path(config.paths.artifact_dir) / "points" / kept).is_file()


def asked(overrides: Iterable[str]) -> frozenset[str]:
    """What decides a job's point, of the words that it was given."""
    return frozenset(word for word in overrides if word.lstrip("+~").split("=")[0].split(".")[0] not in ASIDE)


def usual_seconds(records: Iterable[dict[str, Any]], config: DictConfig) -> float | None:
    """Of the jobs of this model and measure that have measured something."""
    wanted = {name: plain_of(config.get(name)) for name in ("model", "measure", "executor")}
    found = [
        record["seconds"]
        for record in records
        if not record.get("reused_from") and {name: record["settings"].get(name) for name in wanted} == wanted
    ]
    return statistics.median(found) if found else None


def plain_of(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
