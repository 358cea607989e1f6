"""kill -9 at a random moment, and the same command again: it ends in the bytes of a run that nobody killed.

Of each kind of work SHADOW_KILLS that really died of it, 25 unless told otherwise: `make nightly`, or this
file by pytest.
"""

import json
import os
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from forked import Script

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("SHADOW_KILLS", "25"))
OTHERWISE = (
    "seconds",
    "peak_memory_gb",
    "output_dir",
    "measured_in",
)  # of JSON, what differs from run to run
SMALL = [
    "model=tiny-llama",
    "data.windows=24",
    "data.tokens=24",
    "traces.batch_size=4",
    "traces.shard_windows=8",
    "traces.tokens_per_window=6",
    "callbacks.progress=null",
    "trainer.accelerator=cpu",
]
MEASURED = [*SMALL, "measure.windows=4", "measure.choices=false", "make_missing=true"]
WORK = {
    "collect": ["train.py", *SMALL, "stage=traces", "traces.criteria=[l2_norm,plainact]"],
    "fit": ["train.py", *SMALL, "predictor=unified", "predictor.epochs=6"],
    "thresholds": [
        "evaluate.py",
        *MEASURED,
        "predictor=unified",
        "sparsity=threshold",
        "sparsity.level=0.4",
        "predictor.epochs=2",
    ],
    "sweep": ["evaluate.py", "-m", *MEASURED, "predictor=static,cats,ridge", "sparsity.level=0,0.4"],
}


def start(folder: Path, command: Sequence[str]) -> Script:
    folder.mkdir(exist_ok=True)
    return Script([str(ROOT / command[0]), *command[1:]], folder, dict(os.environ), folder / "output")


def finish(folder: Path, command: Sequence[str]) -> float:
    """-> seconds."""
    begin = time.monotonic()
    assert start(folder, command).wait() == 0, (folder / "output").read_text()[-4000:]
    return time.monotonic() - begin


def content(folder: Path) -> dict[str, object]:
    """Of every file below artifacts but locks, its bytes; of JSON, all but OTHERWISE."""
    found: dict[str, object] = {}
    for file in sorted((folder / "artifacts").rglob("*")):
        name = str(file.relative_to(folder))
        if file.is_file() and "locks" not in file.parts:
            timed = file.suffix == ".json"
            found[name] = untimed(json.loads(file.read_bytes())) if timed else file.read_bytes()
    return found


def untimed(value: object) -> object:
    if isinstance(value, dict):
        return {name: untimed(part) for name, part in value.items() if name not in OTHERWISE}
    return [untimed(part) for part in value] if isinstance(value, list) else value


@pytest.mark.nightly
@pytest.mark.parametrize("work", WORK)
def test_a_killed_job_ends_in_the_same_bytes_when_it_is_run_again(tmp_path: Path, work: str) -> None:
    finish(tmp_path / "first", WORK[work])  # starts the server that forks, which takes a while to import
    seconds = finish(tmp_path / "whole", WORK[work])
    expected = content(tmp_path / "whole")
    assert expected == content(tmp_path / "first")
    killed = 0
    for n in range(4 * KILLS):
        folder = tmp_path / str(n)
        script = start(folder, WORK[work])
        script.process.join(random.uniform(0, seconds))
        killed += script.poll() is None
        script.kill()
        script.wait()
        finish(folder, WORK[work])
        found = content(folder)
        differs = [name for name in expected.keys() | found if expected.get(name) != found.get(name)]
        assert not differs, f"kill {n} of {work}: {differs}"
        shutil.rmtree(folder)
        print(f"{work}: {killed} killed of {n + 1} within {seconds:.1f} s, all ended in the same bytes")
        if killed == KILLS:
            return
    pytest.fail(f"of {4 * KILLS} only {killed} were killed before they ended")
