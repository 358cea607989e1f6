"""One job: its seed, loggers and record, and how it ends."""

import importlib.metadata
import logging
import platform
import subprocess
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from shadow.artifacts.files import FULL, cannot_write, write_json
from shadow.errors import UncountedTokens, UserError
from shadow.jobs.config import plain
from shadow.jobs.loggers import begin, is_offline
from shadow.jobs.memory import peak_memory
from shadow.jobs.start import check_start
from shadow.terminal.noise import without_noise
from shadow.terminal.stops import STOPPED, exit_code

log = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "pytorch-lightning", "lm-eval", "numba", "hydra-core", "shadow-llm")

# what the classes that a config names say of values that they cannot take
OF_SETTINGS = (TypeError, ValueError, MisconfigurationException)


class Job:
    """loggers: for Lightning and for metrics; record: what becomes run.json."""

    def __init__(self, cfg: DictConfig) -> None:
        hydra, settings = HydraConfig.get(), plain(cfg)
        self.loggers: list[Logger] = []
        self.record: dict[str, Any] = {
            "status": "running",
            "error": None,
            "task": cfg.task_name,
            "settings": settings,
            "overrides": list(hydra.overrides.task),
            "seed": cfg.seed,
            "commit": commit(),
            "versions": versions(),
            "machine": {
                "processor": platform.processor() or platform.machine(),
                "threads": torch.get_num_threads(),
            },
            "reused_from": None,
            "kept_in": None,
            "achieved": {},
            "bytes": {},
            "metrics": {},
            "predictor": None,
        }

    def open_loggers(self) -> None:
        hydra, settings = HydraConfig.get(), self.record["settings"]
        nodes = {name: node for name, node in (settings.get("logger") or {}).items() if node is not None}
        for name, node in nodes.items():
            if name == "wandb":
                node["offline"] = is_offline(node["offline"])
                if node["group"] is None and hydra.mode == RunMode.MULTIRUN:
                    node["group"] = Path(hydra.sweep.dir).name  # no path of this machine goes out
            self.loggers.append(instantiate(node))
            begin(self.loggers[-1], settings)

    def log_metrics(self, metrics: dict[str, float]) -> None:
        for logger in self.loggers:
            logger.log_metrics(metrics)
            logger.save()


@contextmanager
def job(cfg: DictConfig) -> Iterator[Job]:
    """Seed first; run.json last, whatever happens. What the user can mend is said in one sentence."""
    start = time.monotonic()
    for name in ("pytorch_lightning", "lightning_fabric"):  # tell of devices and products at every start
        logging.getLogger(name).setLevel(logging.WARNING)
    this = Job(cfg)
    try:
        check_start(cfg)
        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        this.open_loggers()
        with without_noise():
            warnings.simplefilter("error", UncountedTokens)  # figures of what was not run are no figures
            yield this
        this.record["status"] = "done"
    except BaseException as error:
        if (code := exit_code(error)) is not None:
            this.record |= {"status": "failed", "error": "it was stopped"}
            log.info(STOPPED)
            raise SystemExit(code) from None
        cause = cause_of(error, cfg)
        mendable = isinstance(cause, UserError)
        sentence = str(cause) if mendable else f"{type(cause).__name__}: {cause}"
        this.record |= {"status": "failed", "error": sentence}
        if not mendable:
            log.exception("the job failed")
        if HydraConfig.get().mode == RunMode.MULTIRUN:  # else a debugger may want to look
            let_go(error)
        if mendable:
            raise CompactHydraException(sentence) from None
        raise
    finally:
        this.record["seconds"] = round(time.monotonic() - start, 1)
        this.record["peak_memory_gb"] = round(peak_memory(), 3)
        try:
            rank_zero_only(write_json)(Path(cfg.paths.output_dir) / "run.json", this.record)
        except UserError as error:
            if this.record["status"] == "done":
                raise CompactHydraException(str(error)) from None
            log.error("%s", error)  # beside what ended the job
        finally:
            finish_wandb(this)


def cause_of(error: BaseException, cfg: DictConfig) -> BaseException:
    """What the user is to read."""
    if isinstance(error.__cause__, UserError):  # from within instantiate
        return error.__cause__
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, OF_SETTINGS):
        node = str(error).rpartition("full_key: ")[2].strip() if "full_key: " in str(error) else "logger"
        return UserError(f"{node} cannot be made of its settings: {' '.join(str(error.__cause__).split())}")
    if isinstance(error, OSError) and error.errno in FULL:  # a logger's file
        return cannot_write(Path(cfg.paths.output_dir), error)
    return error


def let_go(error: BaseException | None) -> None:
    """Of what the functions that it passed through held: Hydra keeps it until the sweep ends."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def finish_wandb(this: Job) -> None:
    if any(isinstance(logger, WandbLogger) for logger in this.loggers):
        import wandb

        wandb.finish(exit_code=int(this.record["status"] != "done"))


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in PACKAGES
    }


@cache  # an edit in the middle of a sweep does not reach the modules that its jobs run
def commit() -> dict[str, Any]:
    """The git commit of the working tree that this package lies in, if it lies in one."""
    root = Path(__file__).parent.parent.parent
    try:
        sha = _git(root, "rev-parse", "HEAD")
        return {"sha": sha, "dirty": bool(_git(root, "status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):  # no git, or installed from a wheel
        return {"sha": None, "dirty": None}


def _git(root: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", root, *words], capture_output=True, text=True, check=True
    ).stdout.strip()
