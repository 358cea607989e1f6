"""What is missing is answered with the command that makes it, or in one sentence."""

import re
import shlex
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def test_a_missing_predictor_is_answered_with_the_command_that_makes_it(run, small, small_measure, tmp_path):
    job = [*small, *small_measure, "predictor=unified", "seed=5", "measure.choices=false", "tags=[a, b]"]
    refused = run(tmp_path, "evaluate.py", *job)
    assert refused.returncode != 0
    assert "Traceback" not in refused.stdout
    (command,) = set(re.findall(r"`(python train\.py .*?)`", refused.stdout))
    assert not (tmp_path / "artifacts").exists()

    python, script, *overrides = shlex.split(command)
    assert (python, script) == ("python", "train.py")
    trained = run(tmp_path, script, *overrides)
    assert trained.returncode == 0, trained.stdout[-3000:]

    measured = run(tmp_path, "evaluate.py", *job)
    assert measured.returncode == 0, measured.stdout[-3000:]
    assert "perplexity" in measured.stdout


def test_what_a_method_without_a_net_learns_is_made_by_train_too(run, small, small_measure, tmp_path):
    learnt = ["predictor=teal", "sparsity=learnt", "sparsity.learnt.windows=8", "sparsity.learnt.epochs=1"]
    job = [*small, *small_measure, *learnt, "measure.choices=false"]
    refused = run(tmp_path, "evaluate.py", *job)
    (command,) = set(re.findall(r"`(python train\.py .*?)`", refused.stdout))
    trained = run(tmp_path, *shlex.split(command)[1:])
    assert trained.returncode == 0, trained.stdout[-3000:]
    assert f"measure it: {command.replace('train.py', 'evaluate.py')}" in trained.stdout
    assert not (tmp_path / "artifacts" / "traces").exists()  # nothing needs any
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "artifacts" / "stand_ins").rglob("*.*")}
    measured = run(tmp_path, "evaluate.py", *job)
    assert measured.returncode == 0, measured.stdout[-3000:]
    assert made == {file: file.stat().st_mtime_ns for file in made}
    assert any(file.suffix == ".safetensors" for file in made)


def test_a_model_that_cannot_be_had_is_one_sentence(root, environment_of, tmp_path):
    """In a process that has not been told, when it imported the hub's client, that there is no network."""
    env = {name: value for name, value in environment_of(tmp_path).items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "train.py", "model=opt-13b"], cwd=root, env=env, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if "facebook/opt-13b" in line]
    assert "could not load" in sentence
    assert "model.path=" in sentence
    assert not (tmp_path / "artifacts").exists()  # before other work


def test_tasks_that_cannot_be_had_are_one_sentence(run, tmp_path, small):
    done = run(tmp_path, "train.py", "model=tiny-llama", "data=tasks", "data.tasks=[copa]")
    assert done.returncode != 0
    assert "Traceback" not in done.stdout
    assert "data.root=" in done.stdout


def test_a_setting_that_only_the_data_can_refuse_is_one_sentence_too(run, tmp_path):
    done = run(
        tmp_path,
        "evaluate.py",
        "model=tiny-llama",
        "predictor=static",
        "sparsity.level=0",
        "measure.windows=999999",
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stdout
    assert "measure.windows must be" in done.stdout
