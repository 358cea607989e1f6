"""Running the scripts as a user does: in a process of their own, with results under a folder of the test."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

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


@pytest.fixture(scope="session")
def command() -> Callable[..., list[str]]:
    """command("train.py", *overrides): what to run, with this very Python."""

    def words(script: str, *overrides: str) -> list[str]:
        return [sys.executable, script, *overrides]

    return words


@pytest.fixture(scope="session")
def run(root: Path, command: Callable) -> Callable[..., subprocess.CompletedProcess]:
    """run(folder, "train.py", *overrides) -> its exit code, and all it said, as .stdout."""

    def start(folder: Path, script: str, *overrides: str, **more: str) -> subprocess.CompletedProcess:
        env = {name: value for name, value in (environment(folder) | more).items() if value != ""}
        return subprocess.run(
            command(script, *overrides),
            cwd=root,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
        )

    return start


@pytest.fixture(scope="session")
def start(root: Path, command: Callable) -> Callable[..., subprocess.Popen]:
    """start(folder, log, "train.py", *overrides): the process while it runs; it talks to the file `log`."""

    def begin(folder: Path, log: Path, script: str, *overrides: str) -> subprocess.Popen:
        with log.open("w") as stream:
            return subprocess.Popen(
                command(script, *overrides),
                cwd=root,
                env=environment(folder),
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

    return begin


@pytest.fixture(scope="session")
def small() -> list[str]:
    """Overrides that make a job of seconds."""
    return SMALL


@pytest.fixture(scope="session")
def small_measure() -> list[str]:
    return SMALL_MEASURE
