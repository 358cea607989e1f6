"""Lines of the log on the console: short, each printed once, and above the bar that counts."""

import logging
import os
from pathlib import Path

from rich.console import Console

RANKS = (
    "RANK",
    "LOCAL_RANK",
    "SLURM_PROCID",
)  # where Lightning, torchrun and Slurm say which process this is
CONSOLE = Console()  # lines and bars share it, so that a line does not break a bar


class Lines(logging.Handler):
    """Hydra makes one from `job_logging` and `hydra_logging`.

    Several processes of one job say the same: of the others than the first only warnings are shown, and
    what a process says of itself (`extra={"every_rank": True}`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        rank = rank_here()
        warns = record.levelno >= logging.WARNING
        if rank and not warns and not getattr(record, "every_rank", False):
            return
        words = self.format(record)
        stamp, message = words[:9], shortened(words[9:])
        named = f"[rank {rank}] " if rank else ""
        level = f"{record.levelname.lower()}: " if warns else ""
        CONSOLE.print(
            f"{stamp}{named}{level}{message}", markup=False, highlight=False, emoji=False, soft_wrap=True
        )


def rank_here() -> int:
    """0 where one process is all."""
    return next((int(os.environ[name]) for name in RANKS if os.environ.get(name, "").isdecimal()), 0)


def shortened(message: str) -> str:
    """Paths from the folder of the command, as they can be pasted; the log's file has them whole."""
    return message.replace(f"{Path.cwd()}{os.sep}", "")
