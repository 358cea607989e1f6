"""A sweep draws its curve, though one of its jobs should fail."""

import csv
import json
import re

import pytest

pytestmark = pytest.mark.slow
GRID = ["sweep=accuracy_curve", "make_missing=true"]


def points(folder):
    """(the sweep's folder, its run.json files by job number)"""
    (sweep,) = folder.glob("logs/evaluate/multiruns/*")
    return sweep, {int(file.parent.name): json.loads(file.read_text()) for file in sweep.glob("*/run.json")}


@pytest.fixture(scope="module")
def curve(run, small, small_measure, tmp_path_factory):
    """Three scorers at two levels, everything that is missing made on the way."""
    folder = tmp_path_factory.mktemp("sweep")
    grid = ["sparsity.level=0.0,0.5", "predictor=static,unified,random"]
    return folder, run(folder, "evaluate.py", *GRID, *grid, *small, *small_measure)


def test_a_sweep_ends_well(curve):
    _, done = curve
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Traceback" not in done.stdout


def test_a_sweep_leaves_curve_figure_and_report(curve):
    sweep, records = points(curve[0])
    assert [record["status"] for record in records.values()] == ["done"] * 6
    assert (sweep / "report.md").read_text().startswith("#")
    figures = list(sweep.glob("*.png"))
    assert figures
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)
    with (sweep / "curve.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["scorer"] for row in rows if float(row["level"]) > 0} == {"static", "unified", "random"}


def test_the_points_of_a_sweep_say_what_they_are_and_what_they_achieved(curve):
    _, records = points(curve[0])
    for record in records.values():
        level = record["point"]["level"]
        for kind in ("head", "neuron"):
            assert record["achieved"][kind] == (0.375 if level else 0.0)
        assert record["metrics"]["perplexity"]["value"] > 1
        assert 0 <= record["metrics"]["choices/acc"]["value"] <= 1
        assert record["seed"] == 1234
        assert {"torch", "transformers", "lm-eval"} <= set(record["versions"])
        assert (len(record["content"]["text"]), record["content"]["tasks"]) == (16, {})
        assert "sha" in record["commit"]
        assert record["seconds"] > 0 or record["reused_from"]


def test_the_dense_model_is_measured_once_and_is_the_same_for_every_scorer(curve):
    _, records = points(curve[0])
    dense = [record for record in records.values() if record["point"]["level"] == 0]
    assert len(dense) == 3
    assert len({json.dumps(record["metrics"], sort_keys=True) for record in dense}) == 1
    assert sum(record["reused_from"] is None for record in dense) == 1


def test_a_sweep_collects_once_and_fits_once(curve):
    folder, done = curve
    assert len(list(folder.glob("artifacts/traces/*/manifest.json"))) == 1
    assert len(list(folder.glob("artifacts/predictors/*/config.json"))) == 1
    collected = re.findall(r"^[\d:]+ collecting ", done.stdout, re.MULTILINE)
    assert len(collected) == 2  # the means, and then what is measured from them


@pytest.fixture(scope="module")
def failing(run, small, small_measure, tmp_path_factory):
    """One level that there is not, between two that there are; logged to W&B, offline."""
    folder = tmp_path_factory.mktemp("failing")
    grid = ["sparsity.level=0.0,1.5,0.5", "predictor=random", "criterion=l2_norm", "logger=wandb"]
    return folder, run(folder, "evaluate.py", *GRID, *grid, *small, *small_measure)


def test_a_sweep_with_a_failed_job_ends_with_an_error_that_names_it(failing):
    _, done = failing
    assert done.returncode != 0
    assert "sparsity.level" in done.stdout
    assert "1.5" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_failed_job_leaves_the_curve_of_the_others(failing):
    sweep, records = points(failing[0])
    assert [records[index]["status"] for index in range(3)] == ["done", "failed", "done"]
    assert "sparsity.level" in records[1]["error"]
    with (sweep / "curve.csv").open() as stream:
        levels = {float(row["level"]) for row in csv.DictReader(stream)}
    assert levels == {0.0, 0.5}
    assert list(sweep.glob("*.png"))
    assert "1.5" in (sweep / "report.md").read_text()  # the report names the one that failed


def test_every_job_has_a_run_of_its_own_in_wandb_offline(failing):
    sweep, _ = points(failing[0])
    for index in range(3):
        runs = list((sweep / str(index)).glob("wandb/offline-run-*"))
        assert len(runs) == 1, index
