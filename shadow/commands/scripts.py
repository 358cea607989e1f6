"""The scripts as commands: a wheel has them in shadow/scripts, a checkout beside the package."""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).parent.parent


def train(words: Sequence[str]) -> None:
    run("train.py", words)


def evaluate(words: Sequence[str]) -> None:
    run("evaluate.py", words)


def run(name: str, words: Sequence[str]) -> None:
    """As if Python had been started with this script and these words."""
    file = str(script(name))
    sys.argv = [file, *words]
    runpy.run_path(file, run_name="__main__")


def script(name: str) -> Path:
    return next(file for file in (PACKAGE / "scripts" / name, PACKAGE.parent / name) if file.is_file())


def spoken(task: str) -> str:
    """How a user starts this task, as this process was started."""
    installed = Path(sys.argv[0]).parent == PACKAGE / "scripts" or sys.argv[0].startswith("shadow ")
    return f"shadow {task}" if installed else f"python {task}.py"
