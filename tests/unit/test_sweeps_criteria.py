"""Run records to pruning criteria compared, on made-up records."""

import csv
import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from run_records import write_job as write_record

from sweeps.callback import CriteriaCallback
from sweeps.colours import COLOURS
from sweeps.criteria import Contest, find_contests
from sweeps.criteria_plot import MARKERS, draw, look
from sweeps.criteria_rebuild import COLUMNS, rebuild, summary
from sweeps.criteria_table import quality_rows, rows_of
from sweeps.key import spread
from sweeps.nats import NATS
from sweeps.points import rows_of as rows_of_points
from sweeps.records import RecordError, read

ROOT = Path(__file__).parents[2]
SWEEP = ROOT / "conf" / "sweep" / "criteria.yaml"
DENSE = 100.0  # perplexity


def write_job(
    folder: Path,
    criterion: str = "fisher",
    level: float = 0.3,
    scorer: str = "static",
    kinds: tuple[str, ...] = ("head", "neuron"),
    nats: float = 0.0,
    metrics: dict[str, tuple[float | None, float | None]] | None = None,
    error: str | None = None,
    overrides: tuple[str, ...] = (),
    **point: str | int,
) -> Path:
    """One run.json as a job of sweep=criteria writes it."""
    if metrics is None:
        metrics = {"perplexity": (DENSE * math.exp(nats), 3.0)}
    return write_record(
        folder,
        level,
        scorer,
        metrics,
        error,
        (f"sparsity.kinds=[{','.join(kinds)}]", f"contender=[{scorer},{criterion}]", *overrides),
        settings={"sparsity": {"level": level, "kinds": list(kinds)}},
        achieved={kind: level * 0.9 if kind in kinds else 0.0 for kind in ("head", "neuron")},
        criterion=criterion,
        **point,
    )


def write_grid(
    folder: Path, nats: dict[str, dict[float, float]], scorer: str = "static", **job: object
) -> None:
    """A job for each criterion and level: {criterion: {level: nats}}; level 0 is the dense model."""
    for criterion, levels in nats.items():
        for level, value in levels.items():
            write_job(folder / f"{scorer}-{criterion}-{level}", criterion, level, scorer, nats=value, **job)


def only_contest(folder: Path) -> Contest:
    (contest,) = find_contests(read([folder]).done)
    return contest


def only_table(folder: Path, bold: str = "") -> list[list[str]]:
    contest = only_contest(folder)
    (block,) = contest.blocks
    return rows_of(block, contest.metrics, bold)


def csv_rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


# The table


def test_cells_are_nats_over_dense_and_rows_go_by_the_middle_level(tmp_path: Path) -> None:
    write_job(tmp_path / "dense", level=0)
    write_grid(tmp_path, {"fisher": {0.1: 0.01, 0.3: 0.5, 0.5: 0.9}, "snip": {0.1: 0.02, 0.3: 0.25, 0.5: 4}})
    assert only_table(tmp_path) == [
        ["criterion", "nats at 0.1", "nats at 0.3", "nats at 0.5"],
        ["snip", "+0.020", "+0.250", "+4.000"],
        ["fisher", "+0.010", "+0.500", "+0.900"],
        ["heads skipped %", "9.0", "27.0", "45.0"],
        ["neurons skipped %", "9.0", "27.0", "45.0"],
    ]


def test_the_best_of_each_column_is_bold(tmp_path: Path) -> None:
    write_job(tmp_path / "dense", level=0)
    write_grid(tmp_path, {"fisher": {0.1: 0.01, 0.3: 0.5}, "snip": {0.1: -0.001, 0.3: 0.6}})
    assert only_table(tmp_path, "**")[1:3] == [
        ["snip", "**-0.001**", "+0.600"],
        ["fisher", "+0.010", "**+0.500**"],
    ]


def test_what_reads_the_same_as_the_best_is_bold_too_but_not_a_column_that_is_all_the_same(
    tmp_path: Path,
) -> None:
    write_job(tmp_path / "dense", level=0)
    write_grid(
        tmp_path,
        {
            "fisher": {0.1: 0.0, 0.3: 0.5},
            "snip": {0.1: 0.0001, 0.3: 0.5001},
            "random": {0.1: 0.0002, 0.3: 2.0},
        },
    )
    assert only_table(tmp_path, "**")[1:4] == [
        ["fisher", "+0.000", "**+0.500**"],
        ["snip", "+0.000", "**+0.500**"],
        ["random", "+0.000", "+2.000"],
    ]


def test_each_scorer_and_kinds_have_a_block_whatever_the_order_of_kinds(tmp_path: Path) -> None:
    write_job(tmp_path / "0", level=0, kinds=("head",))
    jobs = [("static", ("head",)), ("oracle", ("head",)), ("static", ("head", "neuron"))]
    for n, (scorer, kinds) in enumerate([*jobs, ("static", ("neuron", "head"))]):
        criterion = "snip" if n == 3 else "fisher"
        write_job(tmp_path / str(n + 1), criterion, scorer=scorer, kinds=kinds, nats=n)
    blocks = only_contest(tmp_path).blocks
    assert [(block.scorer, block.kinds) for block in blocks] == [
        ("static", ("head",)),
        ("static", ("head", "neuron")),
        ("oracle", ("head",)),
    ]
    assert [curve.label for curve in blocks[1].curves] == ["fisher", "snip"]


def test_the_sparsity_of_a_point_is_that_of_the_kinds_that_were_to_be_pruned(tmp_path: Path) -> None:
    write_job(tmp_path / "0", kinds=("head",))
    (block,) = only_contest(tmp_path).blocks
    assert block.sparsity(block.curves[0].marks[0]) == pytest.approx(0.27)


def test_accuracies_follow_nats_and_their_best_is_the_highest(tmp_path: Path) -> None:
    for n, (criterion, level, acc) in enumerate(
        [("fisher", 0, 0.8), ("fisher", 0.3, 0.6), ("snip", 0.3, 0.7)]
    ):
        tasks = {"piqa/acc": (acc, 0.03), "copa/acc": (acc - 0.2, 0.04)}
        write_job(tmp_path / str(n), criterion, level, metrics={"perplexity": (DENSE + n, 3.0)} | tasks)
    assert only_contest(tmp_path).metrics == [NATS, "mean/acc", "geometric_mean/acc", "piqa/acc", "copa/acc"]
    header, fisher, snip, *_ = only_table(tmp_path, "**")
    assert header[2:] == [
        "mean accuracy % at 0.3",
        "geometric mean % at 0.3",
        "piqa/acc % at 0.3",
        "copa/acc % at 0.3",
    ]
    assert fisher == ["fisher", "**+0.010**", "50.0 ± 2.5", "49.0 ± 2.7", "60.0 ± 3.0", "40.0 ± 4.0"]
    assert snip == ["snip", "+0.020", "**60.0 ± 2.5**", "**59.2 ± 2.7**", "**70.0 ± 3.0**", "**50.0 ± 4.0**"]
    report = rebuild([tmp_path], tmp_path).report.read_text()
    assert "| dense | 100.0 ± 3.0 | 70.0 ± 2.5 | 69.3 ± 2.6 | 80.0 ± 3.0 | 60.0 ± 4.0 |" in report


def test_without_perplexity_the_accuracy_ranks(tmp_path: Path) -> None:
    for criterion, acc in (("fisher", 0.5), ("snip", 0.7)):
        write_job(tmp_path / criterion, criterion, metrics={"piqa/acc": (acc, None)})
    assert [row[:2] for row in only_table(tmp_path, "**")[1:3]] == [["snip", "**70.0**"], ["fisher", "50.0"]]
    assert rebuild([tmp_path], tmp_path).figures


def test_without_a_dense_point_perplexities_are_compared_and_it_is_said(tmp_path: Path) -> None:
    write_grid(tmp_path, {"fisher": {0.3: 0.5}, "snip": {0.3: 0.1}})
    assert [row[:2] for row in only_table(tmp_path)[:3]] == [
        ["criterion", "perplexity at 0.3"],
        ["snip", "110.5 ± 3.0"],
        ["fisher", "164.9 ± 3.0"],
    ]
    rebuilt = rebuild([tmp_path], tmp_path)
    assert rebuilt.figures
    assert "- There is no dense perplexity to compare with: measure sparsity.level=0 too." in (
        rebuilt.report.read_text()
    )


def test_what_a_point_did_not_measure_is_a_dash_and_ranks_last(tmp_path: Path) -> None:
    write_job(tmp_path / "dense", level=0)
    write_grid(tmp_path, {"fisher": {0.1: 0.5}, "grasp": {0.3: 0.1}, "snip": {0.1: 0.9, 0.3: 2}})
    write_job(tmp_path / "late", "epenas", 0.1, metrics={"seconds": (3.0, None)})
    assert [row[:3] for row in only_table(tmp_path)[1:5]] == [
        ["fisher", "+0.500", "-"],
        ["snip", "+0.900", "+2.000"],
        ["grasp", "-", "+0.100"],
        ["epenas", "-", "-"],
    ]
    assert rebuild([tmp_path], tmp_path).figures


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_perplexity_that_is_not_finite_ranks_last_and_is_noted(tmp_path: Path, value: float) -> None:
    write_job(tmp_path / "dense", level=0)
    write_job(tmp_path / "0", "fisher", metrics={"perplexity": (value, None)})
    write_job(tmp_path / "1", "snip", nats=5)
    assert [row[:2] for row in only_table(tmp_path, "**")[1:3]] == [
        ["snip", "**+5.000**"],
        ["fisher", f"{value:+}"],
    ]
    assert only_contest(tmp_path).chart.notes == [
        "fisher (static, head+neuron) has no finite perplexity at level 0.3."
    ]


def test_seeds_are_compared_with_their_own_dense_model_and_averaged(tmp_path: Path) -> None:
    for seed, dense, ratio in ((1, 100.0, 1.0), (2, 200.0, 1.2)):
        told = (f"seed={seed}",)
        write_job(tmp_path / f"dense{seed}", level=0, seed=seed, metrics={"perplexity": (dense, 1.0)})
        over = {"perplexity": (dense * math.exp(ratio), 1.0)}
        write_job(tmp_path / str(seed), seed=seed, metrics=over, overrides=told)
    assert only_table(tmp_path)[1][1] == "+1.100 ± 0.141"
    assert "the standard deviation over the seeds" in rebuild([tmp_path], tmp_path).report.read_text()
    values = {
        row["seed"]: row["value"] for row in csv_rows(tmp_path / "criteria.csv") if row["level"] == "0.3"
    }
    assert values.keys() == {"1", "2"}


def test_a_point_measured_again_counts_once_and_the_last_one(tmp_path: Path) -> None:
    write_job(tmp_path / "0", level=0)
    write_job(tmp_path / "1", nats=1)
    write_job(tmp_path / "2", nats=2)
    assert only_table(tmp_path)[1][1] == "+2.000"


def test_a_point_is_the_same_however_its_overrides_spell_it(tmp_path: Path) -> None:
    write_job(tmp_path / "0", level=0)
    file = write_job(tmp_path / "1", nats=1)
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"overrides": ["predictor=static", "criterion=fisher", "seed=1234"]}))
    write_job(tmp_path / "2", nats=2)
    assert only_table(tmp_path)[1][1] == "+2.000"


def test_a_swept_setting_outside_the_point_makes_scorers_not_seeds(tmp_path: Path) -> None:
    for n in (1, 2):
        write_job(tmp_path / f"units{n}", overrides=(f"sparsity.min_units={n}",))
    for n, decided_at in enumerate(("token", "prompt")):
        write_job(tmp_path / str(n), "snip", scorer="oracle", decided_at=decided_at)
    assert [block.scorer for block in only_contest(tmp_path).blocks] == [
        "static sparsity.min_units=1, token",
        "static sparsity.min_units=2, token",
        "oracle, token",
        "oracle, prompt",
    ]


def test_plans_decided_at_the_prompt_are_compared_with_a_dense_model_that_leaves_it_out(
    tmp_path: Path,
) -> None:
    for decided_at, dense in (("token", 100.0), ("prompt", 50.0)):
        for level in (0, 0.3):
            metrics = {"perplexity": (dense * math.exp(level), None)}
            write_job(tmp_path / f"{decided_at}{level}", level=level, metrics=metrics, decided_at=decided_at)
    contest = only_contest(tmp_path)
    assert {rows_of(block, contest.metrics)[1][1] for block in contest.blocks} == {"+0.300"}


def test_shares_that_differ_between_criteria_are_a_range(tmp_path: Path) -> None:
    for n, criterion in enumerate(("fisher", "snip")):
        file = write_job(tmp_path / criterion, criterion)
        record = json.loads(file.read_text())
        file.write_text(json.dumps(record | {"achieved": {"head": 0.2 + 0.1 * n, "neuron": 0.3}}))
    assert [row[1] for row in only_table(tmp_path)[-2:]] == ["20.0 to 30.0", "30.0"]


# Quality of scores


def quality(**spearman: float | None) -> dict[str, tuple[float | None, float | None]]:
    """Metrics of measure=criterion_quality, from Spearman by criterion; the averaged one is 0.1 higher."""
    metrics: dict[str, tuple[float | None, float | None]] = {}
    for criterion, value in spearman.items():
        for kind in ("head", "neuron"):
            averaged = None if value is None else value + 0.1
            metrics |= {
                f"quality/{criterion}/{kind}/spearman": (value, None if value is None else 0.02),
                f"quality/{criterion}/{kind}/recall@50": (0.5, 0.01),
                f"quality_static/{criterion}/{kind}/spearman": (averaged, None),
                f"quality_static/{criterion}/{kind}/recall@50": (0.6, None),
            }
    return metrics


def test_the_quality_of_scores_is_a_table_with_what_is_no_number_last(tmp_path: Path) -> None:
    metrics = quality(random=None, fisher=0.4, snip=0.7) | {"quality/windows": (8.0, None)}
    write_job(tmp_path / "0", level=0, metrics=metrics)
    contest = only_contest(tmp_path)
    assert quality_rows(contest.judges, "quality", "**") == [
        ["criterion", "heads: Spearman", "heads: recall@50", "neurons: Spearman", "neurons: recall@50"],
        ["snip", "**0.700 ± 0.020**", "0.500 ± 0.010", "**0.700 ± 0.020**", "0.500 ± 0.010"],
        ["fisher", "0.400 ± 0.020", "0.500 ± 0.010", "0.400 ± 0.020", "0.500 ± 0.010"],
        ["random", "nan", "0.500 ± 0.010", "nan", "0.500 ± 0.010"],
    ]
    rebuilt = rebuild([tmp_path], tmp_path)
    assert "| snip | **0.800** | 0.600 | **0.800** | 0.600 |" in rebuilt.report.read_text()
    assert not rebuilt.figures
    assert "averaged over windows first" in summary([tmp_path])


def test_quality_beside_points_leaves_them_their_mean_accuracy(tmp_path: Path) -> None:
    write_job(tmp_path / "0", metrics={"piqa/acc": (0.5, None), "copa/acc": (0.7, None)})
    write_job(tmp_path / "1", "snip", level=0, metrics=quality(fisher=0.4))
    write_job(tmp_path / "2", "snip", level=0, metrics=quality(snip=0.3))
    contest = only_contest(tmp_path)
    assert contest.metrics[0] == "mean/acc"
    assert [row[0] for row in quality_rows(contest.judges, "quality_static")] == [
        "criterion",
        "fisher",
        "snip",
    ]


def test_quality_in_the_csv_stands_under_the_criterion_that_it_is_about(tmp_path: Path) -> None:
    write_job(tmp_path / "0", "l2_norm", level=0, metrics=quality(snip=0.3))
    rebuild([tmp_path], tmp_path)
    rows = {
        (row["criterion"], row["kinds"], row["metric"]): row["value"]
        for row in csv_rows(tmp_path / "criteria.csv")
    }
    assert len(rows) == 8
    assert rows["snip", "neuron", "quality_static/spearman"] == "0.4"


# Files


def test_failed_criteria_are_left_out_and_listed(tmp_path: Path) -> None:
    write_job(tmp_path / "0", level=0)
    write_job(tmp_path / "1", "fisher", nats=0.5)
    write_job(tmp_path / "2", "grasp", error="ValueError: not\nfinite")
    report = rebuild([tmp_path], tmp_path).report.read_text()
    assert "| grasp" not in report
    assert "contender=[static,grasp]`): ValueError: not finite" in report
    assert "contender=[static,grasp]): ValueError" in summary([tmp_path])


def test_the_report_names_model_commit_versions_time_and_shared_settings(tmp_path: Path) -> None:
    write_job(tmp_path / "0", level=0)
    write_job(tmp_path / "1", nats=0.5, kinds=("head",))
    report = rebuild([tmp_path], tmp_path).report.read_text()
    for text in (
        "tiny on builtin",
        "![criteria](criteria.png)",
        "### static, heads\n",
        "0123456789",
        "torch 2.13.0",
        "25 s in 2 jobs",
        "measure.windows = 32",
        "| kinds pruned | head |",
    ):
        assert text in report, text
    assert "sparsity.level = " not in report


def test_the_csv_has_a_row_for_each_point_and_metric_and_the_dense_model_once(tmp_path: Path) -> None:
    for n, kinds in enumerate((("head",), ("neuron",))):
        write_job(tmp_path / f"dense{n}", level=0, kinds=kinds)
        write_job(tmp_path / str(n), nats=0.5, kinds=kinds)
    rebuild([tmp_path], tmp_path)
    rows = csv_rows(tmp_path / "criteria.csv")
    assert tuple(rows[0]) == COLUMNS
    told = [
        (row["scorer"], row["kinds"], row["criterion"], row["metric"], float(row["value"])) for row in rows
    ]
    assert sorted(told) == [
        ("dense", "", "", NATS, 0.0),
        ("dense", "", "", "perplexity", 100.0),
        ("static", "head", "fisher", NATS, pytest.approx(0.5)),
        ("static", "head", "fisher", "perplexity", pytest.approx(164.872, abs=1e-3)),
        ("static", "neuron", "fisher", NATS, pytest.approx(0.5)),
        ("static", "neuron", "fisher", "perplexity", pytest.approx(164.872, abs=1e-3)),
    ]
    assert {row["achieved_neuron"] for row in rows if row["kinds"] == "neuron"} == {"0.27"}


def test_rebuilding_gives_the_same_bytes_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_job(tmp_path / "0", level=0)
    write_job(tmp_path / "1", nats=0.5)
    names = ("criteria.csv", "criteria.png", "criteria.md", "criteria.html")
    rebuild([tmp_path], tmp_path)
    before = [(tmp_path / name).read_bytes() for name in names]
    rebuild([tmp_path], tmp_path)
    assert [(tmp_path / name).read_bytes() for name in names] == before
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1", *names}


def test_each_model_has_its_figure(tmp_path: Path) -> None:
    write_job(tmp_path / "0", model="org/a")
    rebuild([tmp_path], tmp_path)
    assert (tmp_path / "criteria.png").is_file()
    write_job(tmp_path / "1", model="org/b")
    rebuild([tmp_path], tmp_path)
    assert sorted(file.name for file in tmp_path.glob("*.png")) == [
        "criteria-org-a-builtin.png",
        "criteria-org-b-builtin.png",
    ]


def test_points_that_go_to_wandb_differ_by_their_kinds(tmp_path: Path) -> None:
    for kinds in (("head",), ("neuron",)):
        write_job(tmp_path / kinds[0], kinds=kinds)
    points = rebuild([tmp_path], tmp_path).records.done
    assert [row[3] for row in rows_of_points(points)] == ["static head", "static neuron"]


def test_a_folder_without_records_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no run\.json of an evaluate job below"):
        rebuild([tmp_path], tmp_path)


# The figure


def test_a_panel_for_each_scorer_and_kinds_where_a_criterion_always_looks_the_same(tmp_path: Path) -> None:
    write_job(tmp_path / "dense", level=0)
    for scorer, kinds, fisher in (
        ("static", "head", 0.5),
        ("static", "neuron", 0.1),
        ("oracle", "head", 0.1),
    ):
        write_grid(tmp_path / kinds, {"fisher": {0.3: fisher}, "snip": {0.3: 0.3}}, scorer, kinds=(kinds,))
    contest = only_contest(tmp_path)
    figure = draw(contest)
    assert figure is not None
    panels = {ax.get_title(): ax for ax in figure.axes if ax.get_visible()}
    assert panels.keys() == {"static: heads", "static: neurons", "oracle: heads"}
    looks = set()
    for block in contest.blocks:
        ax = panels[f"{block.scorer}: {block.kinds[0]}s"]
        assert {text.get_text() for text in ax.texts} == {"fisher", "snip"}
        drawn = zip([curve.label for curve in reversed(block.curves)], ax.lines)  # the best is drawn last
        looks |= {(label, line.get_color(), line.get_marker()) for label, line in drawn}
    assert len(looks) == 2


def test_fourteen_criteria_look_different() -> None:
    looks = [look(number, str(number)) for number in range(13)] + [look(13, "random")]
    assert len({(one["color"], one["marker"], str(one["linestyle"])) for one in looks}) == 14
    assert len({one["marker"] for one in looks}) == 14
    assert len({(one["color"], str(one["linestyle"])) for one in looks}) == 14
    assert len(COLOURS) * 2 >= len(MARKERS)


def test_a_line_stands_where_its_point_is(tmp_path: Path) -> None:
    write_job(tmp_path / "dense", level=0)
    write_grid(tmp_path, {"fisher": {0.1: 0.002, 0.3: 8.0}}, kinds=("neuron",))
    figure = draw(only_contest(tmp_path))
    assert figure is not None
    (ax,) = figure.axes
    assert ax.lines[0].get_xydata().ravel().tolist() == pytest.approx([0, 0, 0.09, 0.002, 0.27, 8.0])
    assert ax.get_ylim()[1] > 8


def test_names_keep_their_order_and_a_gap_and_stay_in_the_panel() -> None:
    places = spread([0.0, 0.5, 0.5, 0.51, 1.0, 1.0], 0.1)
    assert places == pytest.approx([0.0, 0.4033, 0.5033, 0.6033, 0.9, 1.0], abs=1e-3)
    assert spread([0.2, 0.8], 0.1) == pytest.approx([0.2, 0.8])


@pytest.mark.parametrize(
    "values", [{0.3: math.inf}, {0: 100.0}, {0: 100.0, 0.3: math.nan}, {0: 0.0, 0.3: 1.0}]
)
def test_odd_perplexities_do_no_harm(tmp_path: Path, values: dict[float, float]) -> None:
    for level, value in values.items():
        write_job(tmp_path / str(level), level=level, metrics={"perplexity": (value, None)})
    assert rebuild([tmp_path], tmp_path).report.is_file()


# The callback, the command and the sweep


def sweep_config(folder: Path, *overrides: str) -> DictConfig:
    return OmegaConf.create(
        {
            "task_name": "evaluate",
            "contender": ["static", "l2_norm"],
            "logger": None,
            "hydra": {
                "mode": RunMode.MULTIRUN,
                "runtime": {"cwd": str(folder.parent)},
                "overrides": {"task": list(overrides)},
                "sweep": {"dir": folder.name},
            },
        }
    )


def test_the_callback_redraws_after_a_job_and_logs_the_table_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_job(tmp_path / "0", level=0)
    write_job(tmp_path / "1", nats=0.5)
    CriteriaCallback().on_job_end(sweep_config(tmp_path), JobReturn())
    assert {file.name for file in tmp_path.glob("criteria.*")} == {
        "criteria.csv",
        "criteria.png",
        "criteria.md",
        "criteria.html",
    }
    assert not (tmp_path / "curve.csv").exists()
    with caplog.at_level(logging.INFO):
        CriteriaCallback().on_multirun_end(sweep_config(tmp_path))
    assert "+0.500" in caplog.text
    assert str(tmp_path / "criteria.md") in caplog.text


def test_the_callback_logs_the_table_of_a_sweep_that_broke_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_job(tmp_path / "0")
    with caplog.at_level(logging.INFO):
        CriteriaCallback().log_unended(tmp_path, with_wandb=True)
    assert "fisher" in caplog.text
    assert f"python -m sweeps --criteria {tmp_path} --wandb" in caplog.text
    assert "without the last jobs" not in caplog.text


def test_of_a_sweep_that_broke_off_it_is_said_that_its_last_jobs_are_not_drawn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_job(tmp_path / "0")
    callback = CriteriaCallback()
    for _ in range(2):  # the second within the callback's patience
        callback.on_job_end(sweep_config(tmp_path), JobReturn())
    with caplog.at_level(logging.INFO):
        callback.log_unended(tmp_path, with_wandb=False)
    assert "criteria.md (without the last jobs); anew: python -m sweeps" in caplog.text


@pytest.mark.parametrize("override", ["criterion=fisher", "predictor=static,oracle"])
def test_overrides_that_the_contender_would_overrule_are_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(SystemExit, match=rf"overrules {override}: choose with contender="):
        CriteriaCallback().on_multirun_start(sweep_config(tmp_path, "sweep=criteria", override))


def run(*command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_compares_criteria_where_it_is_asked_to(tmp_path: Path) -> None:
    write_job(tmp_path / "a" / "0", level=0)
    write_job(tmp_path / "b" / "0", nats=0.5)
    done = run(
        "-m", "sweeps", "--criteria", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c")
    )
    assert done.returncode == 0, done.stderr
    assert "+0.500" in done.stdout
    assert {path.name for path in (tmp_path / "c").iterdir()} == {
        "criteria.csv",
        "criteria.png",
        "criteria.md",
        "criteria.html",
    }


def test_drawing_imports_neither_torch_nor_shadow() -> None:
    imports = "import sys, sweeps.criteria_plot, sweeps.criteria_rebuild"
    done = run("-c", f"{imports}; print({{'torch', 'shadow'}} & {{*sys.modules}})")
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


def swept(setting: str) -> list:
    """The values that sweep=criteria gives a setting."""
    values = yaml.safe_load(SWEEP.read_text())["hydra"]["sweeper"]["params"][setting]
    override = OverridesParser.create().parse_override(f"{setting}={values}")
    return [yaml.safe_load(text) for text in override.sweep_string_iterator()]


def test_the_sweep_pairs_what_makes_sense_once() -> None:
    pairs = [tuple(pair) for pair in swept("contender")]
    assert len(set(pairs)) == len(pairs) == 22
    without_oracle = {criterion for _, criterion in pairs} - {c for scorer, c in pairs if scorer == "oracle"}
    assert without_oracle == {"nwot", "jacov", "epenas", "random"}
    assert swept("sparsity.kinds") == [["head"], ["neuron"], ["head", "neuron"]]
    assert swept("sparsity.level")[0] == 0.0


def test_a_contender_is_predictor_and_criterion(compose: Callable[..., DictConfig]) -> None:
    cfg = compose("evaluate", "sweep=criteria", "contender=[oracle,fisher]")
    assert (cfg.predictor.name, cfg.criterion.name) == ("oracle", "fisher")
