"""Run records to accuracy against speed, on made-up records."""

from pathlib import Path

from run_records import csv_rows, write_job

from sweeps.latency import ALL, DENSE, find_studies, rebuild, summary
from sweeps.records import read


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
    rebuilt = rebuild([tmp_path], tmp_path)
    spots = [(row["line"], row["x"], row["y"]) for row in csv_rows(tmp_path / "latency.csv")]
    assert spots[:4] == [
        (DENSE, "1.0", "100"),
        (ALL, "2.5", "100"),
        ("unified", "3.5", "150"),
        ("static", "3.6", "300"),
    ]
    row = (
        "| unified | 0.5 | 45.0 | 40.0 | 150.00 ± 1.00 | 0.500 ± 0.050 | 17.1 | 3.50 (3.40 to 3.70) | 1.75 |"
    )
    assert row in (tmp_path / "latency.md").read_text()
    assert [file.name for file in rebuilt.figures.values()] == ["latency.png"]
    assert "3.50 (3.40 to 3.70)" in summary([tmp_path])


def test_a_panel_has_a_line_for_each_scorer_beside_dense(tmp_path):
    write_some(tmp_path)
    (study,) = find_studies(read([tmp_path]).done)
    assert [panel.title for panel in study.panels] == ["perplexity", "accuracy on choices"]
    assert [line.name for line in study.panels[0].lines] == [DENSE, ALL, "unified", "static"]


def test_points_that_were_not_timed_are_left_out(tmp_path):
    write_timed(tmp_path, 0.0, 2.5, 100)
    write_job(tmp_path / "untimed", 0.5)
    (study,) = find_studies(read([tmp_path]).done)
    assert [line.name for line in study.panels[0].lines] == [DENSE, ALL]
    write_job(tmp_path / "other" / "0", 0.5)
    (study,) = find_studies(read([tmp_path / "other"]).done)
    assert study.panels[0].lines == []
