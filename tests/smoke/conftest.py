"""Running the scripts as a user does, with results under a folder of the test."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from forked import Script

SMALL = [
    "model=tiny-llama",
    "data.windows=16",
    "data.tokens=24",
    "traces.batch_size=4",
    "traces.shard_windows=8",
    "traces.tokens_per_window=6",
    "trainer.max_epochs=2",  # of any predictor: options that are not trained have no such key of their own
]
SMALL_MEASURE = [
    "measure.windows=4",
    "measure.tokens=24",
    "measure.questions=4",
    "measure.context_tokens=8",
    "measure.continuation_tokens=4",
]
BLOCKED = "http://127.0.0.1:9"  # nothing listens there: no network for whom this is the proxy


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return kept | {
        "SHADOW_ROOT": str(folder),
        "HF_HOME": str(folder / "huggingface"),
        "HTTPS_PROXY": BLOCKED,
        "HTTP_PROXY": BLOCKED,
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_DIR": str(folder),
        "PYTHONWARNINGS": "default",
    }


@pytest.fixture(scope="session")
def environment_of() -> Callable[[Path], dict[str, str]]:
    """environment_of(folder): of a process whose results go there, without a network."""
    return environment


class Done(NamedTuple):
    """How a script ended. stdout: all it said, warnings and errors too."""

    returncode: int
    stdout: str


@pytest.fixture(scope="session")
def start(root: Path) -> Callable[..., Script]:
    """start(folder, log, "train.py", *overrides): the script while it runs; it talks to the file `log`."""

    def begin(folder: Path, log: Path, *words: str, **more: str) -> Script:
        env = {name: value for name, value in (environment(folder) | more).items() if value != ""}
        return Script(words, root, env, log)

    return begin


@pytest.fixture(scope="session")
def run(start: Callable, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Done]:
    """run(folder, "train.py", *overrides) -> its exit code, and all it said."""
    log = tmp_path_factory.mktemp("said") / "output.txt"

    def wait(folder: Path, *words: str, **more: str) -> Done:
        return Done(start(folder, log, *words, **more).wait(), log.read_text())

    return wait


@pytest.fixture(scope="session")
def small() -> list[str]:
    """Overrides that make a job of seconds."""
    return SMALL


@pytest.fixture(scope="session")
def small_measure() -> list[str]:
    return SMALL_MEASURE
