"""Killed while collecting, and while training: the same command ends with the files of an unbroken run."""

import csv
import random
import re
import time

import pytest

pytestmark = pytest.mark.slow

JOB = [
    "model=tiny-llama",
    "criterion=l2_norm",
    "data.windows=80",
    "data.tokens=32",
    "traces.batch_size=4",
    "traces.shard_windows=4",
    "traces.tokens_per_window=8",
    "traces.criteria=[plainact_weight,fisher,nwot,jacov]",  # and l2_norm, which the predictor learns
    "predictor=unified",
    "predictor.epochs=8",
    "predictor.batch_size=128",
    "predictor.rank=8",
]
SHARDS, PARTS = 20, ("features", "plainact_weight", "fisher", "nwot", "jacov", "l2_norm")


def contents(folder):
    """Every file under artifacts/traces and artifacts/predictors."""
    return {
        str(file.relative_to(folder / "artifacts")): file.read_bytes()
        for kind in ("traces", "predictors")
        for file in (folder / "artifacts" / kind).rglob("*")
        if file.is_file()
    }


def kill_when(process, happens, log):
    """kill -9 as soon as it happens; the process must not have ended by itself."""
    try:
        while not happens():
            assert process.poll() is None, f"it ended before it could be killed:\n{log.read_text()[-3000:]}"
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def unbroken(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    done = run(folder, "train.py", *JOB)
    assert done.returncode == 0, done.stdout[-3000:]
    return contents(folder)


def test_an_unbroken_run_leaves_traces_and_a_predictor(unbroken):
    names = [name.rpartition("/")[2] for name in unbroken]
    for name in ("manifest.json", "predictor.safetensors", "README.md", "config.json"):
        assert names.count(name) == 1
    for part in PARTS:
        assert sum(name.startswith(f"{part}-0") for name in names) == SHARDS
    assert sum(name.startswith("means-0") for name in names) == 1  # of the first shard alone
    assert len(names) == SHARDS * len(PARTS) + 6  # these, and the four above with metrics.csv


@pytest.mark.nightly
@pytest.mark.parametrize("seed", [0])
def test_killed_again_and_again_the_same_command_ends_with_the_same_files(
    unbroken, run, start, tmp_path, seed
):
    """Three times while it collects, after 1, 2 more and 4 more shards or amid the files of the next, and
    once while it trains.
    """
    log, draw = tmp_path / "output.txt", random.Random(seed)

    def found(pattern):
        return list(tmp_path.glob(f"artifacts/{pattern}"))

    def shards():  # but that of the means, which are of the first windows alone
        return [file.name for file in found("traces/*/*.safetensors") if not file.name.startswith("means")]

    def whole_shards():
        numbers = [name.split("-")[1] for name in shards()]
        return sum(numbers.count(number) == len(PARTS) for number in set(numbers))

    there = 0
    for more in (1, 2, 4):
        files = len(shards()) + more * len(PARTS) + draw.randrange(len(PARTS))
        process = start(tmp_path, log, "train.py", *JOB)
        kill_when(process, lambda files=files: len(shards()) >= files, log)
        assert f"{there} of {SHARDS} shards of 4 are there" in log.read_text()  # it went on where it stopped
        assert there + more <= whole_shards() < SHARDS
        assert not found("traces/*/manifest.json")
        there = whole_shards()

    process = start(tmp_path, log, "train.py", *JOB)
    kill_when(process, lambda: found("predictors/*/last.ckpt"), log)
    assert f"{there} of {SHARDS} shards of 4 are there" in log.read_text()
    assert found("traces/*/manifest.json")
    assert found("predictors/*/last.ckpt")
    assert not found("predictors/*/config.json")

    done = run(tmp_path, "train.py", *JOB)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "collecting" not in done.stdout
    last = max(tmp_path.glob("logs/train/runs/*"), key=lambda folder: folder.name)
    (metrics,) = last.glob("csv/*/metrics.csv")
    with metrics.open() as stream:
        epochs = [int(row["epoch"]) for row in csv.DictReader(stream) if row["epoch"]]
    assert min(epochs) > 0  # so did training
    assert not re.search(r"Traceback", done.stdout)

    again = contents(tmp_path)
    assert again.keys() == unbroken.keys()
    assert [name for name in unbroken if again[name] != unbroken[name]] == []
