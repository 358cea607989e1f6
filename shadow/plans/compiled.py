"""Functions compiled by numba, whose machine code is kept on disk where a folder can be written."""

import logging
from collections.abc import Callable, Collection
from functools import cache
from typing import Any

from numba import njit

log = logging.getLogger(__name__)


def compiled(fastmath: Collection[str] = ()) -> Callable[[Callable], Any]:
    """Other threads run meanwhile, and a division by zero is infinite. fastmath: LLVM's flags."""

    def compile_later(function: Callable) -> Any:
        found = njit(fastmath=set(fastmath), nogil=True, error_model="numpy")(function)
        try:
            found.enable_caching()
        except RuntimeError:  # numba's, where it may write neither beside the source nor in the user's home
            say_unkept()
        return found

    return compile_later


@cache
def say_unkept() -> None:
    log.warning(
        "compiled code is not kept, as neither this package's folder nor the user's cache folder can be "
        "written: every process compiles anew, which takes a minute, unless NUMBA_CACHE_DIR names a folder "
        "that can"
    )
