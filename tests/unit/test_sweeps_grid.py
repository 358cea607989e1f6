"""Run records to a grid of criterion x predictor x decided-at, on made-up records."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig
from run_records import csv_rows, only_section, table_of, write_job, write_report
from shadow.sweeps.figures.png import draw
from shadow.sweeps.records.reading import read
from shadow.sweeps.reports.grid.grid import COLUMNS, Grid, find_grids

DENSE = [3.0, 4.0, 5.0, 6.0]  # the log perplexity of each window
SECOND_HALF = [2.5, 3.0, 4.5, 5.0]  # where the prompt is left out


def write_point(
    folder: Path, scorer: str, criterion: str, decided_at: str, nats: float, level: float = 0.5
) -> None:
    windows = SECOND_HALF if decided_at == "prompt" else DENSE
    write_job(
        folder / f"{scorer}-{criterion}-{decided_at}-{level}",
        level,
        scorer,
        samples={"perplexity": [x + nats for x in windows]},
        criterion=criterion,
        decided_at=decided_at,
    )


def write_some(folder: Path) -> None:
    for place in ("sequence", "prompt", "token"):
        write_point(folder, "static", "l2_norm", place, 0.0, level=0)
    write_point(folder, "static", "l2_norm", "token", 1.5)
    write_point(folder, "static", "fisher", "token", 1.75)
    write_point(folder, "unified", "l2_norm", "token", 0.5)
    write_point(folder, "static", "l2_norm", "prompt", 1.25)
    write_point(folder, "unified", "fisher", "sequence", 0.25)


def only_grid(folder: Path) -> Grid:
    (grid,) = find_grids(read([folder]).done)
    return grid


def test_each_place_where_plans_are_decided_has_a_panel_of_the_same_rows_and_columns(tmp_path: Path) -> None:
    write_some(tmp_path)
    grid = only_grid(tmp_path)
    assert [panel.place.decided_at for panel in grid.panels] == ["token", "prompt", "sequence"]
    section = only_section(tmp_path, "grid")
    token = "decided at token, scored all, nominal level 0.5"
    assert table_of(section, f"Nats over dense, {token}") == [
        ["criterion", "static", "unified"],
        ["fisher", "+1.750 ± 0.000", "-"],
        ["l2_norm", "+1.500 ± 0.000", "**+0.500 ± 0.000**"],
    ]
    assert table_of(section, f"Weight bytes not read, %, {token}")[1:] == [
        ["fisher", "37.5", "-"],
        ["l2_norm", "37.5", "37.5"],
    ]
    prompt = "Nats over dense, decided at prompt, scored behind the prompt, nominal level 0.5"
    assert table_of(section, prompt)[1:] == [["fisher", "-", "-"], ["l2_norm", "**+1.250 ± 0.000**", "-"]]


def test_what_is_decided_at_the_prompt_is_compared_with_the_dense_model_that_leaves_it_out(
    tmp_path: Path,
) -> None:
    write_some(tmp_path)
    (over,) = only_grid(tmp_path).panels[1].cells.values()
    assert over.mean == pytest.approx(1.25)
    file = tmp_path / "static-l2_norm-prompt-0" / "run.json"
    file.unlink()
    grid = only_grid(tmp_path)
    assert grid.panels[1].cells == {}
    assert grid.chart.notes[-1] == (
        "Measured on other windows than the dense model, and left out: static at 0.5, seed 1234."
    )


def test_the_files_have_every_cell_and_the_best_of_a_panel_is_bold(tmp_path: Path) -> None:
    write_some(tmp_path)
    rebuilt = write_report(tmp_path, "grid")
    rows = csv_rows(tmp_path / "grid.csv")
    assert tuple(rows[0]) == COLUMNS
    assert {
        (row["criterion"], row["scorer"], row["decided_at"], round(float(row["value"]), 6)) for row in rows
    } == {
        ("l2_norm", "static", "token", 1.5),
        ("fisher", "static", "token", 1.75),
        ("l2_norm", "unified", "token", 0.5),
        ("l2_norm", "static", "prompt", 1.25),
        ("fisher", "unified", "sequence", 0.25),
    }
    report = rebuilt.report.read_text()
    assert "| l2_norm | +1.500 ± 0.000 | **+0.500 ± 0.000** |" in report
    assert "![grid](grid.png)" in report
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_cells_that_cannot_be_are_grey_and_have_no_figure(tmp_path: Path) -> None:
    write_some(tmp_path)
    write_job(
        tmp_path / "broken",
        0.5,
        "unified",
        {"perplexity": (math.inf, None)},
        criterion="fisher",
        decided_at="token",
    )
    figure = draw(only_section(tmp_path, "grid").figure)
    assert figure is not None
    token, prompt = figure.axes[:2]
    assert {text.get_text() for text in token.texts} == {"1.50", "1.75", "0.50", "inf"}
    assert [text.get_text() for text in prompt.texts] == ["1.25"]
    assert int(prompt.images[0].get_array().mask.sum()) == 3


def test_ranks_of_tokens_and_of_windows_have_scales_of_their_own_and_stand_once(tmp_path: Path) -> None:
    for place in ("token", "prompt"):
        for level in (0, 0.3, 0.5):
            for scorer, pooling, rank in (("unified", "scores", 0.5), ("unified_paper", "last", 0.8)):
                fit = {"taps": 1, "rank": 8, "parameters": 9, "share_of_model": 0.1}
                write_job(
                    tmp_path / f"{scorer}-{place}-{level}",
                    level,
                    scorer,
                    samples={"perplexity": [4 + level] * 2},
                    decided_at=place,
                    predictor=fit | {"metrics": {"val/spearman": rank}},
                    settings={"predictor": {"pooling": pooling}},
                )
    found = only_grid(tmp_path)
    ranks = [(panel.unit, panel.title, list(panel.cells)) for panel in found.panels if panel.low_is_bad]
    anywhere = "wherever plans are decided"
    assert ranks == [
        ("Spearman over tokens", anywhere, [("l2_norm", "unified")]),
        ("Spearman over windows", anywhere, [("l2_norm", "unified_paper")]),
    ]
    assert len([panel for panel in found.panels if not panel.low_is_bad]) == 4
    section = only_section(tmp_path, "grid")
    assert section.answer.startswith("Least nats over dense, decided at token, ")


def test_without_a_dense_point_there_is_a_report_yet(tmp_path: Path) -> None:
    write_point(tmp_path, "static", "l2_norm", "token", 1.5)
    rebuilt = write_report(tmp_path, "grid")
    assert not rebuilt.figures
    assert "There is no dense perplexity to compare with" in rebuilt.report.read_text()


def test_the_sweep_collects_every_criterion_in_one_pass(compose: Callable[..., DictConfig]) -> None:
    cfg = compose("evaluate", "sweep=grid")
    assert list(cfg.traces.criteria) == ["l2_deviation", "l2_norm", "plainact", "fisher", "snip"]
    assert cfg.make_missing is True
