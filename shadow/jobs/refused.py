"""A job that is refused ends with its sentence alone. Hydra imports it at every start: keep it light."""

from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig


class RefusalCallback(Callback):
    """Of one job; a sweep goes on with the next one."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        failed = job_return.status == JobStatus.FAILED
        error = job_return._return_value if failed else None  # the property prints before it raises
        if config.hydra.mode == RunMode.RUN and isinstance(error, CompactHydraException):
            raise SystemExit(str(error))  # Hydra would put two lines of its own around it
