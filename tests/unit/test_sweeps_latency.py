"""Run records to accuracy against speed, on made-up records."""

from pathlib import Path

from run_records import csv_rows, only_section, write_job, write_report
from shadow.sweeps.reports.latency import ALL, DENSE


def write_timed(folder: Path, level: float, times: float, perplexity: float, scorer: str = "unified") -> None:
    speed = {"times_dense": times, "times_dense_low": times - 0.1, "times_dense_high": times + 0.2}
    figures = speed | {"token_ms": 60 / times, "roofline": times / 2}
    metrics = {"perplexity": (perplexity, 1.0), "choices/acc": (0.5, 0.05)}
    number = len(list(folder.glob("*/run.json")))
    write_job(
        folder / str(number),
        level,
        scorer,
        metrics=metrics | {f"latency/{name}": (value, None) for name, value in figures.items()},
    )


def write_some(folder: Path) -> None:
    write_timed(folder, 0.0, 2.5, 100)
    write_timed(folder, 0.5, 3.5, 150)
    write_timed(folder, 0.5, 3.6, 300, "static")


def test_every_timed_point_is_told_beside_its_quality(tmp_path):
    write_some(tmp_path)
    rebuilt = write_report(tmp_path, "latency")
    spots = [(row["line"], row["x"], row["y"]) for row in csv_rows(tmp_path / "latency.csv")]
    assert spots[:4] == [
        (DENSE, "1.0", "100"),
        (ALL, "2.5", "100"),
        ("unified", "3.5", "150"),
        ("static", "3.6", "300"),
    ]
    shares, speed = "37.5 | 41.7 | 45.0 | 40.0", "17.1 | 3.50 (3.40 to 3.70) | 1.75 |"
    row = f"| unified | 0.5 | {shares} | 150.00 ± 1.00 | 0.500 ± 0.050 | {speed}"
    assert row in (tmp_path / "latency.md").read_text()
    assert [file.name for file in rebuilt.figures.values()] == ["latency.png"]


def test_a_panel_has_a_line_for_each_scorer_beside_dense(tmp_path):
    write_some(tmp_path)
    (perplexity, accuracy) = only_section(tmp_path, "latency").figure.panels
    assert [panel.title for panel in (perplexity, accuracy)] == ["perplexity", "accuracy on choices"]
    assert [line.name for line in perplexity.lines] == [DENSE, ALL, "unified", "static"]


def test_points_that_were_not_timed_are_left_out(tmp_path):
    write_timed(tmp_path, 0.0, 2.5, 100)
    write_job(tmp_path / "untimed", 0.5)
    (perplexity, accuracy) = only_section(tmp_path, "latency").figure.panels
    assert [line.name for line in perplexity.lines] == [line.name for line in accuracy.lines] == [DENSE, ALL]
    write_job(tmp_path / "other" / "0", 0.5)
    assert only_section(tmp_path / "other", "latency").figure.empty
