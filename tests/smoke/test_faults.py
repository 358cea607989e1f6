"""Faults of whole processes: a sweep that is stopped, two at once, a disk that is really full."""

import json
import os
import re
import shlex
import signal
import subprocess
import time

import pytest
from run_records import csv_rows

from shadow.terminal.stops import STOPPED

pytestmark = pytest.mark.slow
SWEEP = ["-m", "predictor=static", "sparsity.level=0.2,0.4,0.6", "make_missing=true", "criterion=l2_norm"]


def points(folder):
    return {file: file.stat().st_mtime_ns for file in folder.glob("artifacts/points/*.json")}


def records(folder):
    found = sorted(folder.glob("logs/evaluate/multiruns/*/*/run.json"))
    return [json.loads(file.read_text()) for file in found]


def levels_of(sweep):
    """Of each scorer on its curve."""
    levels = {}
    for row in csv_rows(sweep / "curve.csv"):
        levels.setdefault(row["scorer"], set()).add(row["level"])
    return levels


def test_a_sweep_ends_at_ctrl_c_in_one_line_and_then_measures_no_point_twice(
    run, start, small, small_measure, tmp_path
):
    job = ["evaluate.py", *SWEEP, *small, *small_measure, "measure.choices=false"]
    process = start(tmp_path, tmp_path / "output.txt", *job)
    while not [file for file in points(tmp_path) if "samples" not in file.name]:
        assert process.poll() is None, (tmp_path / "output.txt").read_text()[-3000:]
        time.sleep(0.002)
    os.kill(process.process.pid, signal.SIGINT)
    assert process.wait() == 128 + signal.SIGINT
    said = (tmp_path / "output.txt").read_text()
    assert said.count(STOPPED) == 1, said[-3000:]
    assert "Traceback" not in said, said[-3000:]
    before = points(tmp_path)
    done = run(tmp_path, *job)
    assert done.returncode == 0, done.stdout[-3000:]
    after = points(tmp_path)
    assert {file: after[file] for file in before} == before
    last = records(tmp_path)[-3:]
    assert [record["status"] for record in last] == ["done"] * 3
    reused = [record["reused_from"] is not None for record in last]
    assert reused[0]
    sweep = sorted(tmp_path.glob("logs/evaluate/multiruns/*"))[-1]
    assert levels_of(sweep) == {"static": {"0.2", "0.4", "0.6"}}
    assert sum(reused) == len([file for file in before if "samples" not in file.name])


def test_a_sweep_goes_on_once_the_cause_of_its_failed_jobs_is_cured(run, small, small_measure, tmp_path):
    """A predictor is missing: the report says so, its command is obeyed, the same sweep has every point."""
    grid = ["-m", "predictor=random,unified", "sparsity.level=0.2,0.4", "criterion=l2_norm"]
    job = ["evaluate.py", *grid, *small, *small_measure, "measure.choices=false"]
    done = run(tmp_path, *job)
    assert done.returncode == 1
    first = sorted(tmp_path.glob("logs/evaluate/multiruns/*"))[-1]
    report = (first / "report.md").read_text()
    (command,) = set(re.findall(r"`python (train\.py .*?)`", report))
    assert "## Failed jobs: 2" in report
    assert levels_of(first) == {"random": {"0.2", "0.4"}}
    before = points(tmp_path)

    done = run(tmp_path, *shlex.split(command))
    assert done.returncode == 0, done.stdout[-3000:]
    done = run(tmp_path, *job)
    assert done.returncode == 0, done.stdout[-3000:]
    second = sorted(tmp_path.glob("logs/evaluate/multiruns/*"))[-1]
    assert second != first
    assert "Failed jobs" not in (second / "report.md").read_text()
    assert levels_of(second) == {"random": {"0.2", "0.4"}, "unified": {"0.2", "0.4"}}
    assert [bool(record["reused_from"]) for record in records(tmp_path)[-4:]] == [True, True, False, False]
    assert {file: stamp for file, stamp in points(tmp_path).items() if file in before} == before


def test_two_jobs_that_need_the_same_artifacts_make_them_once(start, small, tmp_path):
    logs = [tmp_path / "one.txt", tmp_path / "two.txt"]
    processes = [
        start(tmp_path, log, "train.py", *small, "criterion=l2_norm", "predictor=unified") for log in logs
    ]
    assert [process.wait() for process in processes] == [0, 0], [log.read_text() for log in logs]
    said = [log.read_text() for log in logs]
    assert sum("fitting unified" in text for text in said) == 1
    assert sum("collecting features" in text for text in said) == 1
    assert not list(tmp_path.rglob("*.part"))


def test_a_disk_that_is_really_full_is_one_sentence_and_the_rerun_goes_on(run, small, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small disk here")
    try:
        job = ["train.py", *small, "criterion=l2_norm", "predictor=unified"]
        done = run(disk, *job)
        assert done.returncode == 1
        assert "could not be written (No space left on device): make room there" in done.stdout
        assert "Traceback" not in done.stdout
        kept = {file.name for file in disk.glob("artifacts/traces/*/*.safetensors")}
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        done = run(disk, *job)
        assert done.returncode == 0, done.stdout[-3000:]
        assert kept <= {file.name for file in disk.glob("artifacts/traces/*/*.safetensors")}
        assert not list(disk.rglob("*.part"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_folders_and_settings_that_cannot_be_are_one_sentence(run, tmp_path):
    (tmp_path / "file").write_text("")
    closed = run(tmp_path / "file", "train.py", "model=tiny-llama")
    unknown_key = run(tmp_path, "train.py", "model=tiny-llama", "sparsity.levle=0.5")
    unknown_task = run(tmp_path, "evaluate.py", "model=tiny-llama", "measure=tasks", "measure.tasks=[copaa]")
    (tmp_path / "text.txt").write_text("words " * 100)
    text = [f"data.{part}={tmp_path / 'text.txt'}" for part in ("train", "eval")]
    seen = run(tmp_path, "evaluate.py", "model=tiny-llama", "make_missing=true", "data=text", *text)
    for done, words in (
        (closed, "hydra.run.dir must be a folder that can be written"),
        (unknown_key, "there is no setting sparsity.levle: did you mean sparsity.level=0.5?"),
        (unknown_task, "unknown lm-eval task 'copaa'"),
        (seen, "data.eval must have no document of data.train"),
    ):
        assert done.returncode == 1
        assert words in done.stdout
        assert "Traceback" not in done.stdout
    assert unknown_task.stdout.count("\n") == 1, unknown_task.stdout  # its sentence alone
    assert not (tmp_path / "artifacts").exists()
