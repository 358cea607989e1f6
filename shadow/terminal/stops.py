"""Ctrl-C and SIGTERM: one line, that nothing is lost, and the exit codes that shells expect."""

import signal
import sys
from types import FrameType, TracebackType

STOPPED = "stopped; nothing is lost, and the same command goes on where this one was"
INTERRUPTED = 128 + signal.SIGINT


class Terminated(KeyboardInterrupt):
    """SIGTERM, which then ends a job as Ctrl-C does."""


def exit_code(error: BaseException) -> int | None:
    """None: somebody else's end. Lightning makes a SystemExit of a KeyboardInterrupt."""
    cause = error.__context__ if isinstance(error, SystemExit) else error
    if isinstance(cause, Terminated):
        return 128 + signal.SIGTERM
    return INTERRUPTED if isinstance(cause, KeyboardInterrupt) else None


def expect() -> None:
    """For the whole process: also outside a job, where modules are imported or configs composed."""
    signal.signal(signal.SIGTERM, raise_terminated)
    sys.excepthook = in_one_line


def raise_terminated(number: int, frame: FrameType | None) -> None:
    raise Terminated


def in_one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if (code := exit_code(error)) is None:
        sys.__excepthook__(kind, error, trace)
        return
    print(STOPPED, file=sys.stderr)
    raise SystemExit(code)  # from a hook it is what the process ends with; without, 1 for SIGTERM
