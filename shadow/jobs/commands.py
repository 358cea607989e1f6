"""The scripts as installed commands: a wheel has them in shadow/scripts, a checkout beside the package."""

import runpy
from pathlib import Path

PACKAGE = Path(__file__).parent.parent


def train() -> None:
    runpy.run_path(str(script("train.py")), run_name="__main__")


def evaluate() -> None:
    runpy.run_path(str(script("evaluate.py")), run_name="__main__")


def script(name: str) -> Path:
    return next(file for file in (PACKAGE / "scripts" / name, PACKAGE.parent / name) if file.is_file())
