"""What the scripts load, before they do anything."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "pytorch_lightning", "transformers", "lm_eval", "datasets", "wandb", "matplotlib", "pandas"}


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
@pytest.mark.parametrize("question", [["--cfg", "job"], ["--help"]], ids=" ".join)
def test_looking_at_a_config_imports_nothing_heavy(root, script, question):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", script, *question], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "task_name: " in done.stdout or "Options, the chosen one of each group first" in done.stdout
    imported = {
        line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time:" in line
    }
    assert "hydra" in imported
    assert not imported & HEAVY


def test_the_front_door_loads_neither_lightning_nor_hydra(root):
    lines = [
        "import sys",
        "from shadow import sparse",
        "print(*{name.partition('.')[0] for name in sys.modules})",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=root, capture_output=True, text=True)
    assert "transformers" in done.stdout.split()
    assert not {"pytorch_lightning", "lightning_fabric", "hydra", "lm_eval", "numba"} & set(
        done.stdout.split()
    )


def test_evaluate_means_hugging_faces_package():
    """Which lm-eval's metrics need, and which the script beside them would hide."""
    import evaluate

    assert callable(evaluate.load)


def test_evaluate_means_hugging_faces_package_inside_evaluate_py(root):
    import evaluate

    lines = [
        "import importlib.util, runpy, sys",
        f"sys.path[0] = {str(root)!r}",  # as Python does for a script
        "sys.argv = ['evaluate.py', '--cfg', 'job', '--package', 'paths']",
        "runpy.run_path('evaluate.py', run_name='__main__')",
        "print(importlib.util.find_spec('evaluate').origin)",
        "import shadow.conf, train",  # and the project's own are still found
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == evaluate.__file__
