"""Differences on the same examples, on made-up records."""

import math
import statistics
from pathlib import Path

import pytest
from run_records import csv_rows, only_chart, write_job, write_report
from shadow.sweeps.differences.nats import NATS, with_nats
from shadow.sweeps.records.merging import one_per_point
from shadow.sweeps.records.reading import read
from shadow.sweeps.reports.paired_table import COLUMNS, Row, find_rows

DENSE = [3.0, 4.0, 5.0, 6.0]  # the log perplexity of each window
STATIC = [4.0, 5.5, 6.0, 8.5]
UNIFIED = [3.5, 4.5, 5.5, 7.0]


def row(folder: Path, scorer: str, over: str, metric: str = "nats", against: str = "static") -> Row:
    rows = find_rows(only_chart(folder), against)
    (found,) = [one for one in rows if (one.scorer, one.against, one.metric) == (scorer, over, metric)]
    return found


def write_three(folder: Path, **job: object) -> None:
    for scorer, level, windows in (("random", 0, DENSE), ("static", 0.3, STATIC), ("unified", 0.3, UNIFIED)):
        write_job(folder / scorer, level, scorer, samples={"perplexity": windows}, **job)


def error(differences: list[float]) -> float:
    return statistics.stdev(differences) / math.sqrt(len(differences))


def test_a_difference_in_perplexity_is_in_nats_with_the_error_of_the_windows_differences(
    tmp_path: Path,
) -> None:
    write_three(tmp_path)
    static = row(tmp_path, "unified", "static").difference
    assert static.values == pytest.approx([-0.875])
    assert static.stderr == pytest.approx(error([-0.5, -1.0, -0.5, -1.5]))
    dense = row(tmp_path, "unified", "dense").difference
    assert dense.values == pytest.approx([0.625])
    assert dense.stderr == pytest.approx(error([0.5, 0.5, 0.5, 1.0]))


def test_another_reference_can_be_named(tmp_path: Path) -> None:
    write_three(tmp_path)
    assert row(tmp_path, "static", "unified", against="unified").difference.mean == pytest.approx(0.875)
    assert {one.against for one in find_rows(only_chart(tmp_path), "dense")} == {"dense"}


def test_the_mean_over_tasks_combines_the_errors_of_their_differences(tmp_path: Path) -> None:
    ours = {"a/acc": [1.0, 1.0, 0.0, 1.0], "b/acc": [1.0, 0.0]}
    theirs = {"a/acc": [0.0, 1.0, 0.0, 1.0], "b/acc": [0.0, 1.0]}
    write_job(tmp_path / "0", scorer="unified", samples=ours)
    write_job(tmp_path / "1", scorer="static", samples=theirs)
    found = row(tmp_path, "unified", "static", "mean/acc").difference
    assert found.values == pytest.approx([(0.25 + 0.0) / 2])
    assert found.stderr == pytest.approx(math.hypot(error([1.0, 0.0, 0.0, 0.0]), error([1.0, -1.0])) / 2)


def test_seeds_are_paired_apart_then_averaged_and_their_spread_is_told(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        for scorer, windows in (("static", STATIC), ("unified", UNIFIED)):
            shifted = [x + (0.1 * seed if scorer == "unified" else 0.0) for x in windows]
            write_job(tmp_path / f"{scorer}{seed}", scorer=scorer, samples={"perplexity": shifted}, seed=seed)
    found = row(tmp_path, "unified", "static").difference
    assert found.values == pytest.approx([-0.775, -0.675, -0.575])
    # of the windows, averaged over seeds: as with one seed
    assert found.stderr == pytest.approx(error([-0.5, -1.0, -0.5, -1.5]))
    report = write_report(tmp_path).report.read_text()
    assert "-0.675 ± 0.239 (-0.775 to -0.575)" in report
    assert "the lowest and the highest of the seeds" in report


def test_a_seed_is_never_paired_with_another(tmp_path: Path) -> None:
    write_job(tmp_path / "0", scorer="unified", samples={"perplexity": UNIFIED}, seed=1)
    write_job(tmp_path / "1", scorer="static", samples={"perplexity": STATIC}, seed=2)
    assert not find_rows(only_chart(tmp_path), "static")


def test_the_dense_model_of_another_seed_serves_as_calibration_does_not_touch_it(tmp_path: Path) -> None:
    write_job(tmp_path / "0", 0, samples={"perplexity": DENSE}, seed=1)
    write_job(tmp_path / "1", samples={"perplexity": UNIFIED}, seed=2)
    assert row(tmp_path, "unified", "dense").difference.mean == pytest.approx(0.625)


def test_perplexities_of_other_windows_are_not_compared_but_accuracies_are(tmp_path: Path) -> None:
    """Decided at the prompt, the loss leaves it out; the questions are the same."""
    for scorer, decided_at in (("unified", "token"), ("static", "prompt")):
        samples = {"perplexity": UNIFIED, "choices/acc": [0.0, 1.0]}
        write_job(tmp_path / scorer, scorer=scorer, samples=samples, decided_at=decided_at)
    assert [one.metric for one in find_rows(only_chart(tmp_path), "static")] == ["choices/acc"]


def test_every_perplexity_has_its_nats_that_of_a_task_by_its_documents(tmp_path: Path) -> None:
    """wikitext's of lm-eval beside that of the windows: samples of a rate are logs too."""
    name = "wikitext/word_perplexity"
    for scorer, level, windows, documents in (
        ("static", 0, DENSE, [3.0, 4.0]),
        ("unified", 0.3, UNIFIED, [3.5, 4.3]),
    ):
        write_job(tmp_path / scorer, level, scorer, samples={"perplexity": windows, name: documents})
    found = row(tmp_path, "unified", "dense", f"{name}, nats").difference
    assert found.values == pytest.approx([0.4])
    assert found.stderr == pytest.approx(error([0.5, 0.3]))
    assert row(tmp_path, "unified", "dense").difference.mean == pytest.approx(0.625)


@pytest.mark.parametrize(
    ("metric", "measure", "compared"),
    [
        ("perplexity", {"windows": 4}, False),
        ("perplexity", {"questions": 4, "batch_size": 2, "choices": False}, True),
        ("perplexity", {"text": "other.jsonl"}, False),
        ("perplexity", {"text": None, "column": "page"}, True),
        ("choices/acc", {"text": "other.jsonl"}, False),
        ("choices/acc", {"questions": 4}, False),
        ("choices/acc", {"windows": 4}, True),
        ("rte/acc", {"limit": 4}, False),
        ("rte/acc", {"windows": 4, "questions": 4, "text": "other.jsonl"}, True),
    ],
)
def test_only_what_draws_the_examples_of_a_metric_parts_points(
    tmp_path: Path, metric: str, measure: dict, compared: bool
) -> None:
    write_job(tmp_path / "0", scorer="static", samples={metric: [0.0, 1.0]}, settings={"measure": {}})
    write_job(tmp_path / "1", samples={metric: [1.0, 1.0]}, settings={"measure": measure})
    assert bool(find_rows(only_chart(tmp_path), "static")) == compared


A = {"text": "a", "tasks": {"rte": "a", "piqa": "a"}}


@pytest.mark.parametrize(
    ("metric", "measured", "compared"),
    [
        ("perplexity", {"text": "a", "tasks": {}}, True),
        ("perplexity", {"text": "b", "tasks": A["tasks"]}, False),
        ("choices/acc", {"text": "b", "tasks": {}}, False),
        ("rte/acc", {"text": None, "tasks": {"rte": "a"}}, True),
        ("rte/acc", {"text": "a", "tasks": {"rte": "b", "piqa": "a"}}, False),
        ("choices/acc", {"text": "a", "tasks": {}}, True),
    ],
)
def test_files_of_one_name_and_of_different_content_part_points(
    tmp_path: Path, metric: str, measured: dict, compared: bool
) -> None:
    write_job(tmp_path / "0", scorer="static", samples={metric: [0.0, 1.0]}, measured=A)
    write_job(tmp_path / "1", samples={metric: [1.0, 1.0]}, measured=measured)
    assert bool(find_rows(only_chart(tmp_path), "static")) == compared


def test_each_metric_of_a_point_of_two_sweeps_is_of_its_own_content(tmp_path: Path) -> None:
    def write(folder: str, scorer: str, metric: str, measured: dict) -> None:
        write_job(tmp_path / folder, scorer=scorer, samples={metric: [1.0, 2.0]}, measured=measured)

    of_tasks = {"text": None, "tasks": {"rte": "a"}}
    write("0", "static", "perplexity", A)
    write("1", "static", "choices/acc", A)
    write("2", "static", "rte/acc", of_tasks)
    write("3", "unified", "perplexity", A)
    write("4", "unified", "choices/acc", A | {"text": "b"})
    write("5", "unified", "rte/acc", of_tasks)
    found = {one.metric for one in find_rows(only_chart(tmp_path), "static") if one.scorer == "unified"}
    assert {"nats", "rte/acc"} <= found
    assert "choices/acc" not in found


def test_the_reference_is_the_one_that_is_most_alike_and_is_named(tmp_path: Path) -> None:
    for n, (criterion, shift) in enumerate((("fisher", 9.0), ("l2_norm", 0.0))):
        samples = {"perplexity": [x + shift for x in STATIC]}
        write_job(tmp_path / str(n), scorer="static", samples=samples, criterion=criterion)
    write_job(tmp_path / "2", scorer="unified", samples={"perplexity": UNIFIED})
    assert row(tmp_path, "unified, l2_norm", "static, l2_norm").difference.mean == pytest.approx(-0.875)


def test_records_without_samples_have_a_difference_without_an_error(tmp_path: Path) -> None:
    write_three(tmp_path)
    (tmp_path / "static" / "samples.json").write_text("{}")
    found = row(tmp_path, "unified", "static").difference
    assert (found.values, found.stderr) == (pytest.approx([-0.875]), None)


def test_a_loss_that_is_no_number_leaves_no_error(tmp_path: Path) -> None:
    write_three(tmp_path)
    write_job(tmp_path / "unified", scorer="unified", samples={"perplexity": [math.nan, *UNIFIED[1:]]})
    found = row(tmp_path, "unified", "static").difference
    assert math.isnan(found.mean)
    assert found.stderr is None


def test_a_point_measured_again_has_the_samples_of_its_last_value(tmp_path: Path) -> None:
    write_job(tmp_path / "0", samples={"perplexity": UNIFIED, "choices/acc": [0.0, 1.0]})
    write_job(tmp_path / "1", metrics={"perplexity": (50.0, 1.0)})
    (record,) = one_per_point(read([tmp_path]).done)
    assert record.samples == {"choices/acc": [0.0, 1.0]}


def test_nats_over_dense_have_the_paired_error_and_the_dense_model_that_was_measured_alike(
    tmp_path: Path,
) -> None:
    for decided_at, shift in (("token", 0.0), ("prompt", 0.5), ("sequence", 0.0)):
        for level, windows in ((0, DENSE), (0.3, UNIFIED)):
            if (decided_at, level) != ("sequence", 0):
                samples = {"perplexity": [x + (shift if level == 0 else 0.0) for x in windows]}
                write_job(tmp_path / f"{decided_at}{level}", level, samples=samples, decided_at=decided_at)
    found = {
        record.point.decided_at: record.metrics[NATS]
        for record in with_nats(one_per_point(read([tmp_path]).done), "perplexity")
        if record.point.level > 0
    }
    assert found["token"] == pytest.approx((0.625, error([0.5, 0.5, 0.5, 1.0])))
    assert found["prompt"].value == pytest.approx(0.125)
    assert found["sequence"] == found["token"]


def test_the_csv_has_every_metric_and_the_report_a_short_table(tmp_path: Path) -> None:
    for scorer, level, windows in (("static", 0, DENSE), ("static", 0.3, STATIC), ("unified", 0.3, UNIFIED)):
        samples = {"perplexity": windows, "a/acc": [1.0, level > 0], "b/acc": [0.0, 1.0]}
        added = 0.03 if scorer == "unified" else 0.0  # what its predictor reads
        write_job(tmp_path / f"{scorer}{level}", level, scorer, samples=samples, added=added)
    report = write_report(tmp_path).report.read_text()
    rows = csv_rows(tmp_path / "paired.csv")
    assert tuple(rows[0]) == COLUMNS
    shares = {
        (one["scorer"], one["against"]): (one["bytes_skipped"], one["against_bytes_skipped"]) for one in rows
    }
    assert [float(x) for x in shares["unified", "static"]] == pytest.approx([0.195, 0.225])
    assert float(shares["unified", "dense"][1]) == 0.0
    assert {one["metric"] for one in rows} == {"nats", "mean/acc", "a/acc", "b/acc"}
    assert [(one["scorer"], one["against"]) for one in rows if one["metric"] == "nats"] == [
        ("static", "dense"),
        ("unified", "static"),
        ("unified", "dense"),
    ]
    assert (
        "| scorer | nominal level | bytes % | bytes % of static | nats over static | nats over dense "
        "| mean accuracy, points, over static | mean accuracy, points, over dense |" in report
    )
    assert "### Differences on the same examples, at equal nominal level" in report
    row = "-0.875 ± 0.239 | +0.625 ± 0.125 | +0.0 ± 0.0 | +25.0 ± 25.0 |"
    assert f"| unified | 0.3 | 19.5 | 22.5 | {row}" in report
    assert "| static | 0.3 | 22.5 | - | - | +1.500 ± 0.354 | - | +25.0 ± 25.0 |" in report
