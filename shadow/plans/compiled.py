"""Functions compiled by numba, whose machine code is kept on disk where a folder can be written."""

import hashlib
import logging
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.event import Event, Listener, register

log = logging.getLogger(__name__)


class SaysOnce(Listener):
    """One line before the first function is compiled, of those that no earlier process has kept."""

    def __init__(self) -> None:
        self.unsaid = {
            "shadow.executors.cpu": "compiling executor=gathered for this processor: half a minute, once",
            "shadow.plans": "compiling the choice of units for this processor: some seconds, once",
        }

    def on_start(self, event: Event) -> None:
        package = event.data["dispatcher"].py_func.__module__.rpartition(".")[0]
        if package in self.unsaid:
            log.warning("%s; later processes find it", self.unsaid.pop(package))  # seen without logging too

    def on_end(self, event: Event) -> None:
        pass


register("numba:compile", SaysOnce())


def compiled(fastmath: Collection[str] = ()) -> Callable[[Callable], Any]:
    """Other threads run meanwhile, and a division by zero is infinite. fastmath: LLVM's flags."""

    def compile_later(function: Callable) -> Any:
        found = njit(fastmath=set(fastmath), nogil=True, error_model="numpy")(function)
        try:
            found.enable_caching()
            # numba looks at a function's own file alone, and would go on with old code of what it calls
            kept = found._cache._cache_file
            kept._source_stamp = (kept._source_stamp, sources())
        except RuntimeError:  # numba's, where it may write neither beside the source nor in the user's home
            say_unkept()
        return found

    return compile_later


@cache
def sources() -> str:
    """A checksum of all files that have compiled functions."""
    package, found = Path(__file__).parent.parent, hashlib.sha256()
    for file in sorted([*package.glob("plans/*.py"), *package.glob("executors/cpu/*.py")]):
        found.update(file.read_bytes())
    return found.hexdigest()


@cache
def say_unkept() -> None:
    log.warning(
        "compiled code is not kept, as neither this package's folder nor the user's cache folder can be "
        "written: every process compiles anew, which takes a minute, unless NUMBA_CACHE_DIR names a folder "
        "that can"
    )
