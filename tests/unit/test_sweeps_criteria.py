"""Run records to pruning criteria compared, on made-up records."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from run_records import csv_rows, only_section, table_of, write_report
from run_records import write_job as write_record
from shadow.sweeps.differences.nats import NATS
from shadow.sweeps.figures.looks import looks_of
from shadow.sweeps.figures.png import draw
from shadow.sweeps.records.points_csv import rows_of as rows_of_points
from shadow.sweeps.records.reading import read
from shadow.sweeps.reports import find_report
from shadow.sweeps.reports.criteria.blocks import Comparison, find_comparisons
from shadow.sweeps.reports.criteria.rows import COLUMNS
from shadow.sweeps.reports.criteria.tables import quality_tables
from shadow.sweeps.reports.write import summary

SWEEP = Path(__file__).parents[2] / "conf" / "sweep" / "criteria.yaml"
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


def only_comparison(folder: Path) -> Comparison:
    (comparison,) = find_comparisons(read([folder]).done)
    return comparison


def only_table(folder: Path) -> list[list[str]]:
    """Of the one block; the best cells are bold."""
    (block,) = only_comparison(folder).blocks
    return table_of(only_section(folder, "criteria"), block.name)


# The table


def test_cells_are_nats_over_dense_and_rows_go_by_the_middle_level(tmp_path: Path) -> None:
    write_job(tmp_path / "dense", level=0)
    write_grid(tmp_path, {"fisher": {0.1: 0.01, 0.3: 0.5, 0.5: 0.9}, "snip": {0.1: 0.02, 0.3: 0.25, 0.5: 4}})
    assert only_table(tmp_path) == [
        ["criterion", "nats at 0.1", "nats at 0.3", "nats at 0.5"],
        ["snip", "+0.020", "**+0.250**", "+4.000"],
        ["fisher", "**+0.010**", "+0.500", "**+0.900**"],
        ["bytes not read %", "8.1", "24.3", "40.5"],
        ["heads skipped %", "9.0", "27.0", "45.0"],
        ["neurons skipped %", "9.0", "27.0", "45.0"],
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
    assert only_table(tmp_path)[1:4] == [
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
    blocks = only_comparison(tmp_path).blocks
    assert [(block.scorer, block.kinds) for block in blocks] == [
        ("static", ("head",)),
        ("static", ("head", "neuron")),
        ("oracle", ("head",)),
    ]
    assert [curve.label for curve in blocks[1].curves] == ["fisher", "snip"]


def test_all_panels_have_the_axis_of_bytes_whatever_their_kinds(tmp_path: Path) -> None:
    for kind in ("head", "neuron"):
        write_job(tmp_path / kind, kinds=(kind,))
    panels = only_section(tmp_path, "criteria").figure.panels
    assert {panel.x.title for panel in panels} == {"weight bytes not read per decoded token"}
    assert [panel.lines[0].spots[0].x for panel in panels] == pytest.approx([0.3 * 0.27, 0.6 * 0.27])


def test_accuracies_follow_nats_and_their_best_is_the_highest(tmp_path: Path) -> None:
    for n, (criterion, level, acc) in enumerate(
        [("fisher", 0, 0.8), ("fisher", 0.3, 0.6), ("snip", 0.3, 0.7)]
    ):
        tasks = {"piqa/acc": (acc, 0.03), "copa/acc": (acc - 0.2, 0.04)}
        write_job(tmp_path / str(n), criterion, level, metrics={"perplexity": (DENSE + n, 3.0)} | tasks)
    assert only_comparison(tmp_path).metrics == [
        NATS,
        "mean/acc",
        "geometric_mean/acc",
        "piqa/acc",
        "copa/acc",
    ]
    assert only_table(tmp_path)[:3] == [
        ["criterion", "nats at 0.3", "mean accuracy % at 0.3", "geometric mean % at 0.3"],
        ["fisher", "**+0.010**", "50.0 ± 2.5", "49.0 ± 2.7"],
        ["snip", "+0.020", "**60.0 ± 2.5**", "**59.2 ± 2.7**"],
    ]
    by_task = table_of(only_section(tmp_path, "criteria"), "static, heads and neurons, task by task")
    assert by_task[:3] == [
        ["criterion", "piqa/acc % at 0.3", "copa/acc % at 0.3"],
        ["fisher", "60.0 ± 3.0", "40.0 ± 4.0"],
        ["snip", "**70.0 ± 3.0**", "**50.0 ± 4.0**"],
    ]
    report = write_report(tmp_path, "criteria").report.read_text()
    assert "| dense | 100.0 ± 3.0 | 70.0 ± 2.5 | 69.3 ± 2.6 | 80.0 ± 3.0 | 60.0 ± 4.0 |" in report


def test_without_perplexity_the_accuracy_ranks(tmp_path: Path) -> None:
    for criterion, acc in (("fisher", 0.5), ("snip", 0.7)):
        write_job(tmp_path / criterion, criterion, metrics={"piqa/acc": (acc, None)})
    assert [row[:2] for row in only_table(tmp_path)[1:3]] == [["snip", "**70.0**"], ["fisher", "50.0"]]
    assert write_report(tmp_path, "criteria").figures


def test_without_a_dense_point_perplexities_are_compared_and_it_is_said(tmp_path: Path) -> None:
    write_grid(tmp_path, {"fisher": {0.3: 0.5}, "snip": {0.3: 0.1}})
    assert [row[:2] for row in only_table(tmp_path)[:3]] == [
        ["criterion", "perplexity at 0.3"],
        ["snip", "**110.5 ± 3.0**"],
        ["fisher", "164.9 ± 3.0"],
    ]
    rebuilt = write_report(tmp_path, "criteria")
    assert rebuilt.figures
    assert "- There is no dense perplexity to compare with: measure sparsity.level=0 too." in (
        rebuilt.report.read_text()
    )


def test_what_a_point_did_not_measure_is_a_dash_and_ranks_last(tmp_path: Path) -> None:
    write_job(tmp_path / "dense", level=0)
    write_grid(tmp_path, {"fisher": {0.1: 0.5}, "grasp": {0.3: 0.1}, "snip": {0.1: 0.9, 0.3: 2}})
    write_job(tmp_path / "late", "epenas", 0.1, metrics={"seconds": (3.0, None)})
    assert [row[:3] for row in only_table(tmp_path)[1:5]] == [
        ["fisher", "**+0.500**", "-"],
        ["snip", "+0.900", "+2.000"],
        ["grasp", "-", "**+0.100**"],
        ["epenas", "-", "-"],
    ]
    assert write_report(tmp_path, "criteria").figures


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_perplexity_that_is_not_finite_ranks_last_and_is_noted(tmp_path: Path, value: float) -> None:
    write_job(tmp_path / "dense", level=0)
    write_job(tmp_path / "0", "fisher", metrics={"perplexity": (value, None)})
    write_job(tmp_path / "1", "snip", nats=5)
    assert [row[:2] for row in only_table(tmp_path)[1:3]] == [
        ["snip", "**+5.000**"],
        ["fisher", f"{value:+}"],
    ]
    assert only_comparison(tmp_path).chart.notes == [
        "fisher (static, head+neuron) has no finite perplexity at level 0.3."
    ]


def test_seeds_are_compared_with_their_own_dense_model_and_averaged(tmp_path: Path) -> None:
    for seed, dense, ratio in ((1, 100.0, 1.0), (2, 200.0, 1.2)):
        told = (f"seed={seed}",)
        write_job(tmp_path / f"dense{seed}", level=0, seed=seed, metrics={"perplexity": (dense, 1.0)})
        over = {"perplexity": (dense * math.exp(ratio), 1.0)}
        write_job(tmp_path / str(seed), seed=seed, metrics=over, overrides=told)
    assert only_table(tmp_path)[1][1] == "+1.100 ± 0.141"
    assert "the standard deviation over the seeds" in write_report(tmp_path, "criteria").report.read_text()
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
    assert [block.scorer for block in only_comparison(tmp_path).blocks] == [
        "static min_units=1, token, all",
        "static min_units=2, token, all",
        "oracle, token, all",
        "oracle, prompt, behind the prompt",
    ]


def test_plans_decided_at_the_prompt_are_compared_with_a_dense_model_that_leaves_it_out(
    tmp_path: Path,
) -> None:
    for decided_at, dense in (("token", 100.0), ("prompt", 50.0)):
        for level in (0, 0.3):
            metrics = {"perplexity": (dense * math.exp(level), None)}
            write_job(tmp_path / f"{decided_at}{level}", level=level, metrics=metrics, decided_at=decided_at)
    comparison = only_comparison(tmp_path)
    values = {block.scorer: block.curves[0].marks[0].metrics[NATS].value for block in comparison.blocks}
    assert values == pytest.approx({"static, prompt, behind the prompt": 0.3, "static, token, all": 0.3})


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
    section = only_section(tmp_path, "criteria")
    assert table_of(section, "Scores against the truth, window by window") == [
        ["criterion", "heads: Spearman", "heads: recall@50", "neurons: Spearman", "neurons: recall@50"],
        ["snip", "**0.700 ± 0.020**", "0.500 ± 0.010", "**0.700 ± 0.020**", "0.500 ± 0.010"],
        ["fisher", "0.400 ± 0.020", "0.500 ± 0.010", "0.400 ± 0.020", "0.500 ± 0.010"],
        ["random", "nan", "0.500 ± 0.010", "nan", "0.500 ± 0.010"],
    ]
    rebuilt = write_report(tmp_path, "criteria")
    assert "| snip | **0.800** | 0.600 | **0.800** | 0.600 |" in rebuilt.report.read_text()
    assert not rebuilt.figures
    assert "averaged over windows first" in summary(find_report("criteria"), [tmp_path], "static")


def test_quality_beside_points_leaves_them_their_mean_accuracy(tmp_path: Path) -> None:
    write_job(tmp_path / "0", metrics={"piqa/acc": (0.5, None), "copa/acc": (0.7, None)})
    write_job(tmp_path / "1", "snip", level=0, metrics=quality(fisher=0.4))
    write_job(tmp_path / "2", "snip", level=0, metrics=quality(snip=0.3))
    comparison = only_comparison(tmp_path)
    assert comparison.metrics[0] == "mean/acc"
    (table,) = quality_tables(comparison.judges, "quality_static", "")
    assert [row[0] for row in table.rows] == [
        "criterion",
        "fisher",
        "snip",
    ]


def test_quality_in_the_csv_stands_under_the_criterion_that_it_is_about(tmp_path: Path) -> None:
    write_job(tmp_path / "0", "l2_norm", level=0, metrics=quality(snip=0.3))
    write_report(tmp_path, "criteria")
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
    report = write_report(tmp_path, "criteria").report.read_text()
    assert "| grasp" not in report
    assert "contender=[static,grasp]`): ValueError: not finite" in report
    assert "contender=[static,grasp]): ValueError" in summary(find_report("criteria"), [tmp_path], "static")


def test_the_report_names_model_commit_versions_time_and_shared_settings(tmp_path: Path) -> None:
    write_job(tmp_path / "0", level=0)
    write_job(tmp_path / "1", nats=0.5, kinds=("head",))
    report = write_report(tmp_path, "criteria").report.read_text()
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
    write_report(tmp_path, "criteria")
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


def test_points_that_go_to_wandb_differ_by_their_kinds(tmp_path: Path) -> None:
    for kinds in (("head",), ("neuron",)):
        write_job(tmp_path / kinds[0], kinds=kinds)
    points = write_report(tmp_path, "criteria").points
    assert [row[3] for row in rows_of_points(points)] == ["static head", "static neuron"]


# The figure


def test_a_panel_for_each_scorer_and_kinds_where_a_criterion_always_looks_the_same(tmp_path: Path) -> None:
    write_job(tmp_path / "dense", level=0)
    for scorer, kinds, fisher in (
        ("static", "head", 0.5),
        ("static", "neuron", 0.1),
        ("oracle", "head", 0.1),
    ):
        write_grid(tmp_path / kinds, {"fisher": {0.3: fisher}, "snip": {0.3: 0.3}}, scorer, kinds=(kinds,))
    figure = draw(only_section(tmp_path, "criteria").figure)
    assert figure is not None
    panels = {ax.get_title(): ax for ax in figure.axes if ax.get_visible()}
    assert panels.keys() == {"static, heads", "static, neurons", "oracle, heads"}
    looks = {
        (bars.get_label(), bars.lines[0].get_color(), bars.lines[0].get_marker())
        for ax in panels.values()
        for bars in ax.containers
    }
    assert {name for name, _, _ in looks} == {"fisher", "snip"}
    assert len(looks) == 2
    (legend,) = figure.legends
    assert sorted(text.get_text() for text in legend.get_texts()) == ["fisher", "snip"]


def test_every_criterion_has_its_own_look() -> None:
    names = [file.stem for file in Path("conf/criterion").iterdir()]
    looks = looks_of(names)
    assert len({(one.colour, one.marker) for one in looks.values()}) == len(names) > 14
    common = ("l2_deviation", "l2_norm", "plainact", "fisher", "snip", "grad_norm", "random")
    assert len({looks[name].colour for name in common}) == len(common)


def test_a_line_begins_at_the_dense_model_and_stands_where_its_point_is(tmp_path: Path) -> None:
    write_job(tmp_path / "dense", level=0)
    write_grid(tmp_path, {"fisher": {0.1: 0.002, 0.3: 8.0}}, kinds=("neuron",))
    figure = draw(only_section(tmp_path, "criteria").figure)
    assert figure is not None
    (ax,) = figure.axes
    start, line, *_ = ax.lines
    assert start.get_xydata().ravel().tolist() == pytest.approx([0, 0, 0.054, 0.002])
    assert line.get_xydata().ravel().tolist() == pytest.approx([0.054, 0.002, 0.162, 8.0])
    assert ax.get_ylim()[1] > 8


@pytest.mark.parametrize(
    "values", [{0.3: math.inf}, {0: 100.0}, {0: 100.0, 0.3: math.nan}, {0: 0.0, 0.3: 1.0}]
)
def test_odd_perplexities_do_no_harm(tmp_path: Path, values: dict[float, float]) -> None:
    for level, value in values.items():
        write_job(tmp_path / str(level), level=level, metrics={"perplexity": (value, None)})
    assert write_report(tmp_path, "criteria").report.is_file()


# The sweep


def swept(setting: str) -> list:
    """The values that sweep=criteria gives a setting."""
    values = yaml.safe_load(SWEEP.read_text())["hydra"]["sweeper"]["params"][setting]
    override = OverridesParser.create().parse_override(f"{setting}={values}")
    return [yaml.safe_load(text) for text in override.sweep_string_iterator()]


def test_the_sweep_pairs_what_makes_sense_once() -> None:
    pairs = [tuple(pair) for pair in swept("contender")]
    assert len(set(pairs)) == len(pairs) == 26
    without_oracle = {criterion for _, criterion in pairs} - {c for scorer, c in pairs if scorer == "oracle"}
    assert without_oracle == {"nwot", "jacov", "epenas", "random"}
    assert swept("sparsity.kinds") == [["head"], ["neuron"], ["head", "neuron"]]
    assert swept("sparsity.level")[0] == 0.0


def test_a_contender_is_predictor_and_criterion(compose: Callable[..., DictConfig]) -> None:
    cfg = compose("evaluate", "sweep=criteria", "contender=[oracle,fisher]")
    assert (cfg.predictor.name, cfg.criterion.name) == ("oracle", "fisher")
