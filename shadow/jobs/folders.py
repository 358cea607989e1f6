"""Refuses folders that cannot be written. Hydra imports it at every start: keep it light."""

import os
import tempfile
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class FoldersCallback(Callback):
    """Of a job or a sweep: its own folder, and that of the artifacts; neither is made here.

    Hydra makes a warning of an exception, and of a folder that it cannot make itself a traceback.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        refuse_chdir(config)
        require_writable("hydra.run.dir", Path(config.hydra.run.dir))
        require_writable("paths.artifact_dir", Path(config.paths.artifact_dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        refuse_chdir(config)
        require_writable("hydra.sweep.dir", Path(config.hydra.sweep.dir))
        require_writable("paths.artifact_dir", Path(config.paths.artifact_dir))


def refuse_chdir(config: DictConfig) -> None:
    if config.hydra.job.chdir:
        raise SystemExit(
            "hydra.job.chdir must be false, got true: artifacts, models and data are sought from the folder "
            "where the command is started, and each run would have its own; leave it out"
        )


def require_writable(setting: str, folder: Path) -> None:
    """By writing a byte where the first of the missing folders would lie."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(b"0")
    except OSError as error:
        raise SystemExit(
            f"{setting} must be a folder that can be written, got {str(folder)!r} ({error.strerror}: "
            f"{str(there)!r}): make room or get the right to write there, or choose another folder with "
            "SHADOW_ROOT=/some/folder"
        ) from None
