"""Run records to curves, CSV, figures and reports, on made-up records."""

import json
import math
from pathlib import Path

import pytest
from run_records import csv_rows, only_chart, only_section, table_of, write_job, write_report
from shadow.sweeps.curves.chart import CEILING, above_ceiling
from shadow.sweeps.figures.png import draw
from shadow.sweeps.records.merging import one_per_point
from shadow.sweeps.records.points_csv import COLUMNS
from shadow.sweeps.records.reading import read
from shadow.sweeps.records.record import RecordError
from shadow.sweeps.reports import REPORTS, find_report
from shadow.sweeps.reports.cells import perplexity
from shadow.sweeps.reports.curve import title
from shadow.sweeps.reports.write import summary


def test_a_curve_is_ordered_by_level_whatever_the_order_of_jobs(tmp_path: Path) -> None:
    for n, level in enumerate([0.5, 0.1, 0.3]):
        write_job(tmp_path / str(n), level)
    (curve,) = only_chart(tmp_path).curves
    assert [mark.level for mark in curve.marks] == [0.1, 0.3, 0.5]
    # of heads 0.3 of all bytes, of neurons 0.6
    assert [mark.bytes.skipped for mark in curve.marks] == pytest.approx([0.075, 0.225, 0.375])


def test_records_come_in_the_order_of_job_numbers(tmp_path: Path) -> None:
    for n in (10, 2, 1):
        write_job(tmp_path / str(n), n / 100)
    assert [record.file.parent.name for record in read([tmp_path]).done] == ["1", "2", "10"]


def test_overlapping_folders_count_a_job_once(tmp_path: Path) -> None:
    write_job(tmp_path / "sweep" / "0")
    assert len(read([tmp_path, tmp_path / "sweep"]).done) == 1


def test_half_a_record_is_named(tmp_path: Path) -> None:
    file = write_job(tmp_path / "0")
    file.write_text(file.read_text()[:100])
    with pytest.raises(RecordError, match=r"cannot read .*0/run\.json"):
        read([tmp_path])


@pytest.mark.parametrize(
    ("lacks", "words"),
    [
        ("metrics", "is not a whole run record: it has no 'metrics'"),
        ("bytes", "was written by another version and has no bytes: run its job again"),
        ("tokens", "was written by another version and has no tokens: run its job again"),
    ],
)
def test_a_record_without_a_field_is_named_with_the_field(tmp_path: Path, lacks: str, words: str) -> None:
    file = write_job(tmp_path / "0")
    content = json.loads(file.read_text())
    content.pop(lacks, None)
    content["point"].pop(lacks, None)
    file.write_text(json.dumps(content))
    with pytest.raises(RecordError) as error:
        read([tmp_path])
    assert str(error.value) == f"{file} {words}"


def test_a_record_whose_samples_are_lost_is_named(tmp_path: Path) -> None:
    write_job(tmp_path / "0").with_name("samples.json").unlink()
    with pytest.raises(RecordError, match=r"0/samples\.json: .* run its job again"):
        read([tmp_path])


def test_jobs_of_other_tasks_are_not_points(tmp_path: Path) -> None:
    file = write_job(tmp_path / "0")
    file.write_text(file.read_text().replace('"task": "evaluate"', '"task": "train"'))
    assert not any(read([tmp_path]))


def test_failed_jobs_are_named_with_their_cause_and_left_out(tmp_path: Path) -> None:
    write_job(tmp_path / "0", 0.1)
    write_job(tmp_path / "1", 0.3, error="ValueError: loss is not\nfinite")
    rebuilt = write_report(tmp_path)
    assert "- 1/run.json (`predictor=unified sparsity.level=0.3`): ValueError: loss is not finite" in (
        rebuilt.report.read_text()
    )
    assert {row["level"] for row in csv_rows(tmp_path / "curve.csv")} == {"0.1"}


def test_a_job_that_left_no_record_is_named(tmp_path: Path) -> None:
    write_job(tmp_path / "0")
    (tmp_path / "1" / ".hydra").mkdir(parents=True)
    (tmp_path / "1" / ".hydra" / "overrides.yaml").touch()
    assert [job.name for job in read([tmp_path]).silent] == ["1"]
    assert "## Jobs without a record: 1" in write_report(tmp_path).report.read_text()


def test_dense_comes_once_though_every_scorer_has_level_0(tmp_path: Path) -> None:
    for n, (scorer, level) in enumerate([("unified", 0), ("unified", 0.3), ("random", 0), ("random", 0.3)]):
        write_job(tmp_path / str(n), level, scorer)
    section = only_section(tmp_path)
    assert [row[0] for row in table_of(section, "Points")] == ["scorer", "dense", "unified", "random"]
    assert section.legend.startswith("3 points. ")
    assert not section.chart.notes


def test_dense_models_that_differ_are_noted(tmp_path: Path) -> None:
    write_job(tmp_path / "0", 0, "unified", {"perplexity": (100.0, None), "decode/seconds": (0.1, None)})
    write_job(tmp_path / "1", 0, "random", {"perplexity": (101.0, None), "decode/seconds": (0.2, None)})
    (note,) = only_chart(tmp_path).notes
    assert note.startswith("Level 0 is not one model: perplexity is 100 for unified and 101 for random")


def test_seeds_are_averaged_and_their_spread_is_the_error(tmp_path: Path) -> None:
    for seed, value in ((1, 100.0), (2, 110.0), (3, 120.0)):
        write_job(
            tmp_path / str(seed), metrics={"perplexity": (value, 1.0)}, seed=seed, overrides=(f"seed={seed}",)
        )
    ((mark,),) = [curve.marks for curve in only_chart(tmp_path).curves]
    assert mark.metrics["perplexity"] == (110.0, 10.0)
    assert mark.seeds == (1, 2, 3)
    assert "the standard deviation over the seeds" in write_report(tmp_path).report.read_text()
    assert len(csv_rows(tmp_path / "curve.csv")) == 3


def test_one_seed_keeps_the_error_of_the_measure(tmp_path: Path) -> None:
    write_job(tmp_path / "0", metrics={"perplexity": (100.0, 3.5)})
    assert only_chart(tmp_path).curves[0].marks[0].metrics["perplexity"] == (100.0, 3.5)
    assert "± is the measure's standard error." in write_report(tmp_path).report.read_text()


def test_a_swept_setting_outside_the_point_makes_curves_not_seeds(tmp_path: Path) -> None:
    for n, width in enumerate((64, 128)):
        write_job(tmp_path / str(n), overrides=(f"predictor.hidden={width}", f"logger={n}"))
    labels = [curve.label for curve in only_chart(tmp_path).curves]
    assert labels == ["unified hidden=64", "unified hidden=128"]


def test_two_sweeps_name_scorers_by_what_differs_in_short(tmp_path: Path) -> None:
    """Not by what says where, which option was the default, or which tasks were measured."""
    tasks = {"piqa/acc": (0.5, 0.1)}
    said = ("make_missing=True", "measure.tasks=[piqa]", "measure.limit=100")
    write_job(tmp_path / "0", metrics=tasks, overrides=said, settings={"predictor": {"name": "unified"}})
    write_job(tmp_path / "1", settings={"predictor": {"name": "unified"}})
    (curve,) = only_chart(tmp_path).curves
    assert curve.label == "unified"
    assert set(curve.marks[0].metrics) == {"perplexity", "choices/acc", "piqa/acc", "mean/acc"} | {
        "geometric_mean/acc"
    }
    for n, rule in enumerate(("threshold", "block")):
        override = f"contender=[teal,{rule}]"
        write_job(tmp_path / f"teal{n}", scorer="teal", overrides=(override,), scope="threshold")
    labels = [curve.label for curve in only_chart(tmp_path).curves]
    assert sorted(labels) == ["teal block, threshold", "teal, threshold", "unified, layer"]


def test_points_that_are_scored_at_different_positions_are_drawn_in_nats_over_their_own_dense(
    tmp_path: Path,
) -> None:
    """Behind the prompt perplexity is lower, and a pruned model would pass for better than dense."""
    for decided_at, dense in (("token", 5.0), ("prompt", 4.0)):
        for level in (0, 0.5):
            samples = {"perplexity": [dense + level] * 2}
            write_job(tmp_path / f"{decided_at}{level}", level, samples=samples, decided_at=decided_at)
    (panel,) = only_section(tmp_path).figure.panels
    assert panel.title == "nats over dense"
    assert [spot.y for line in panel.lines for spot in line.spots] == pytest.approx([0.5, 0.5])


def test_the_least_at_equal_bytes_is_of_what_can_be_used(tmp_path: Path) -> None:
    write_job(tmp_path / "dense", 0)
    points = [
        ("teal", 0.3, 0.1),
        ("teal", 0.6, 0.9),
        ("cats", 0.4, 0.2),
        ("cats", 0.2, 0.5),
        ("oracle", 0.7, 0),
    ]
    for n, (scorer, share, nats) in enumerate(points):
        metrics = {"perplexity": (100 * math.exp(nats), 1.0)}
        write_job(tmp_path / str(n), share, scorer, metrics, achieved={"channel": share})
    (panel,) = only_section(tmp_path, "methods").figure.panels
    least = panel.lines[-1]
    assert least.name == "least at equal bytes"
    assert [(spot.x, round(spot.y, 6)) for spot in least.spots] == [
        (0.6, 0.9),
        (0.4, 0.2),
        (0.3, 0.1),
        (0.0, 0.1),
    ]


def test_tables_tell_what_was_measured_beside_quality(tmp_path: Path) -> None:
    for level, speed in ((0, 101.04), (0.5, 150.06)):
        metrics = {
            "perplexity": (100.0, 1.0),
            "kl": (level, 0.01),
            "latency/tokens_per_second": (speed, None),
        }
        write_job(tmp_path / f"{level}", level, "teal", metrics)
    section = only_section(tmp_path, "methods")
    header, *rows = table_of(section, "Points")
    columns = [header.index(name) for name in ("KL from dense", "tokens/s")]
    assert [[row[at] for at in columns] for row in rows] == [
        ["0.000 ± 0.010", "101.0"],
        ["0.500 ± 0.010", "150.1"],
    ]
    assert "Tokens/s: of the same executor" in section.legend


def test_labels_have_only_what_varies_and_which_tokens_are_sparse_and_scored_are_columns(
    tmp_path: Path,
) -> None:
    for n, tokens in enumerate(("all", "all but the first 4")):
        write_job(tmp_path / str(n), tokens=tokens)
    section = only_section(tmp_path)
    assert [curve.label for curve in section.chart.curves] == ["unified, all", "unified, all but the first 4"]
    assert [row[:2] for row in table_of(section, "Points")] == [
        ["scorer", "tokens"],
        ["unified, all", "all"],
        ["unified, all but the first 4", "all but the first 4"],
    ]
    assert ["scored tokens", "all"] in table_of(section, "What was run")
    assert "scored tokens: all\n" in summary(find_report("curve"), [tmp_path], "static")
    assert {row["tokens"] for row in csv_rows(write_report(tmp_path).report.with_name("curve.csv"))} == {
        "all",
        "all but the first 4",
    }


def test_methods_of_different_kinds_stand_on_the_axis_of_bytes(tmp_path: Path) -> None:
    for n, (scorer, achieved, added) in enumerate(
        [
            ("static", {"head": 0.5, "neuron": 0.5}, 0.0),
            ("few_taps", {"head": 0.5, "neuron": 0.5}, 0.07),
            ("cats", {"neuron": 0.5}, 0.0),
            ("teal", {"channel": 0.4}, 0.0),
            ("svd", {"neuron": 0.1}, 0.08),  # costs more than it saves
        ]
    ):
        write_job(tmp_path / f"dense{n}", 0, scorer, achieved=dict.fromkeys(achieved, 0.0), added=added)
        write_job(tmp_path / str(n), 0.5, scorer, achieved=achieved, added=added)
    section = only_section(tmp_path)
    spots = {line.name: line.spots[0].x for line in section.figure.panels[0].lines}
    assert spots == pytest.approx({"static": 0.45, "few_taps": 0.38, "cats": 0.3, "teal": 0.4, "svd": -0.02})
    assert {line.start[0] for line in section.figure.panels[0].lines if line.start} == {0.0}
    header, dense, static, *_, teal, _ = [row[:7] for row in table_of(section, "Points")]
    shares = ["bytes %", "of layers %", "heads %", "neurons %", "channels %"]
    assert header == ["scorer", "nominal level", *shares]
    assert dense == ["dense", "0", "0.0", "0.0", "0.0", "0.0", "0.0"]
    assert static == ["static", "0.5", "45.0", "50.0", "50.0", "50.0", "-"]
    assert teal == ["teal", "0.5", "40.0", "44.4", "-", "-", "40.0"]
    figure = draw(section.figure)
    assert figure is not None
    low, high = figure.axes[0].get_xlim()
    assert low < -0.02
    assert high > 0.45


def test_a_title_has_how_plans_are_made(tmp_path: Path) -> None:
    scopes = {"layer": "ranked per layer", "global": "ranked globally", "threshold": "cut at thresholds"}
    for scope, words in scopes.items():
        write_job(tmp_path / scope / "0", scope=scope)
        ending = f", l2_norm, decided at each token, {words}, sparse tokens: all, scored: all"
        assert title(only_chart(tmp_path / scope)).endswith(ending)


def test_a_point_measured_again_counts_once_and_joins_its_metrics(tmp_path: Path) -> None:
    write_job(tmp_path / "0", metrics={"perplexity": (100.0, 1.0)}, overrides=("measure=perplexity",))
    write_job(tmp_path / "1", metrics={"perplexity": (100.5, 1.0)}, overrides=("measure=perplexity",))
    write_job(tmp_path / "2", metrics={"choices/acc": (0.5, 0.1)}, overrides=("measure=choices",))
    (record,) = one_per_point(read([tmp_path]).done)
    assert record.metrics == {"perplexity": (100.5, 1.0), "choices/acc": (0.5, 0.1)}


def test_mean_accuracy_is_over_the_tasks_that_every_point_has(tmp_path: Path) -> None:
    both = {"a/acc": (0.4, 0.03), "b/acc": (0.8, 0.04), "b/acc_norm": (0.9, 0.04)}
    write_job(tmp_path / "0", 0.1, metrics=both)
    write_job(tmp_path / "1", 0.3, metrics=both | {"c/acc": (0.0, 0.0)})
    for record in one_per_point(read([tmp_path]).done):
        assert record.metrics["mean/acc"] == pytest.approx((0.6, 0.025))
    assert only_chart(tmp_path).accuracies[0] == "mean/acc"


def test_one_task_has_no_mean_accuracy(tmp_path: Path) -> None:
    write_job(tmp_path / "0")
    assert only_chart(tmp_path).accuracies == ["choices/acc"]


def test_table_gives_nats_over_dense(tmp_path: Path) -> None:
    write_job(tmp_path / "0", 0.0)
    write_job(tmp_path / "1", 0.3)
    _, dense, sparse = table_of(only_section(tmp_path), "Points")
    assert dense == ["dense", "0", "0.0", "0.0", "0.0", "0.0", "100.0 ± 3.0", "+0.000", "80.0 ± 5.0"]
    assert sparse == ["unified", "0.3", "22.5", "25.0", "27.0", "24.0", "135.0 ± 3.0", "+0.300", "65.0 ± 5.0"]
    lines = summary(find_report("curve"), [tmp_path], "static").splitlines()
    assert len({len(line) for line in lines if line.startswith(("scorer", "dense", "unified"))}) == 1, lines


def test_nats_are_over_the_dense_model_that_leaves_out_prompts_where_a_plan_does(tmp_path: Path) -> None:
    places = [("token", 0, 100.0), ("prompt", 0, 50.0), ("token", 0.5, 200.0), ("prompt", 0.5, 150.0)]
    for n, (decided_at, level, value) in enumerate(places):
        write_job(tmp_path / str(n), level, metrics={"perplexity": (value, 1.0)}, decided_at=decided_at)
    _, *rows = table_of(only_section(tmp_path), "Points")
    assert [row[-1] for row in rows] == ["+0.000", f"{math.log(2):+.3f}", f"{math.log(3):+.3f}"]
    (tmp_path / "1" / "run.json").unlink()
    _, *rows = table_of(only_section(tmp_path), "Points")
    assert [row[-1] for row in rows] == ["+0.000", f"{math.log(2):+.3f}", "-"]


def test_perplexities_are_short() -> None:
    values = (135.14, 4321.98, 78434.0, 5116123.0, math.inf)
    assert [perplexity(value) for value in values] == ["135.1", "4322", "78430", "5.116e+06", "inf"]


def test_an_exploding_perplexity_leaves_the_plot_and_is_said_to(tmp_path: Path) -> None:
    for n, (scorer, level, value) in enumerate(
        [("unified", 0, 100.0), ("unified", 0.5, 300.0), ("random", 0.5, 2e5), ("random", 0.7, math.inf)]
    ):
        write_job(tmp_path / str(n), level, scorer, {"perplexity": (value, 3.0)})
    chart = only_chart(tmp_path)
    assert above_ceiling(chart) == ["random leaves the perplexity plot at 2 levels from 0.5 (reaches inf)."]
    figure = draw(only_section(tmp_path).figure)
    assert figure is not None
    assert figure.axes[0].get_ylim()[1] == pytest.approx(100 * CEILING)
    assert above_ceiling(chart)[0] in write_report(tmp_path).report.read_text()


@pytest.mark.parametrize(
    ("metrics", "n_panels"),
    [
        ({"word_perplexity": (50.0, None)}, 1),
        ({"piqa/acc": (0.5, None)}, 1),
        ({"piqa/acc": (0.5, 0.1), "perplexity": (50.0, None)}, 2),
    ],
)
def test_only_what_was_measured_has_a_panel(tmp_path: Path, metrics: dict, n_panels: int) -> None:
    write_job(tmp_path / "0", metrics=metrics)
    figure = draw(only_section(tmp_path).figure)
    assert figure is not None
    assert len(figure.axes) == n_panels


@pytest.mark.parametrize(
    "levels", [{0: 100.0}, {0.3: math.inf}, {0: 100.0, 0.3: math.nan}, {0: 100.0, 0.3: 100.1}]
)
def test_odd_perplexities_draw_too(tmp_path: Path, levels: dict[float, float]) -> None:
    for level, value in levels.items():
        write_job(tmp_path / str(level), level, metrics={"perplexity": (value, None)})
    assert write_report(tmp_path).figures


def test_latency_alone_has_a_report_but_no_figure(tmp_path: Path) -> None:
    write_job(tmp_path / "0", metrics={"decode/seconds": (0.1, None)})
    rebuilt = write_report(tmp_path)
    assert not rebuilt.figures
    assert rebuilt.report.is_file()


def test_each_model_has_its_figure(tmp_path: Path) -> None:
    write_job(tmp_path / "0", model="org/a")
    write_report(tmp_path)
    assert (tmp_path / "curve.png").is_file()
    write_job(tmp_path / "1", model="org/b")
    write_report(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.png")) == [
        "curve-org-a-builtin.png",
        "curve-org-b-builtin.png",
    ]


@pytest.mark.parametrize("name", REPORTS)
def test_every_report_writes_its_files_and_no_other(tmp_path: Path, name: str) -> None:
    keys = ("times_dense", "times_dense_low", "times_dense_high", "token_ms", "roofline")
    speed = {f"latency/{key}": {"value": 2.0, "stderr": None} for key in keys}
    for n, (scorer, level) in enumerate([("static", 0), ("static", 0.3), ("unified", 0.3)]):
        samples = {"perplexity": [3.0 + level, 4.0], "piqa/acc": [1.0, 0.0], "copa/acc": [1.0, level]}
        file = write_job(
            tmp_path / "jobs" / str(n),
            level,
            scorer,
            samples=samples | {"rank_variance/fisher/0": [0.5, 0.25]},
            settings={"measure": {}, "sparsity": {"kinds": ["head"]}},
        )
        content = json.loads(file.read_text())
        content["metrics"] |= speed
        file.write_text(json.dumps(content))
    report, out = find_report(name), tmp_path / "out"
    names = {*report.csv, f"{report.stem}.png", f"{report.name}.md", f"{report.name}.html"}
    write_report(tmp_path / "jobs", name, out)
    assert {file.name for file in out.iterdir()} == names
    assert report.name == REPORTS[name].stem
    assert all(csv_rows(out / file) for file in report.csv)


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    for n, level in enumerate((0, 0.3)):
        write_job(tmp_path / "jobs" / str(n), level)
    first, again = (write_report(tmp_path / "jobs", out=tmp_path / name).report.parent for name in "ab")
    assert {file.name: file.read_bytes() for file in first.iterdir()} == {
        file.name: file.read_bytes() for file in again.iterdir()
    }


def test_the_csv_has_a_row_for_each_point_and_metric(tmp_path: Path) -> None:
    write_job(tmp_path / "0", metrics={"perplexity": (100.25, None), "choices/acc": (0.5, 0.1)})
    write_report(tmp_path)
    rows = csv_rows(tmp_path / "curve.csv")
    assert tuple(rows[0]) == COLUMNS
    assert [(row["metric"], row["value"], row["stderr"]) for row in rows] == [
        ("perplexity", "100.25", ""),
        ("choices/acc", "0.5", "0.1"),
    ]


def test_the_report_names_commit_settings_versions_and_files(tmp_path: Path) -> None:
    write_job(tmp_path / "sweep" / "0", 0.1)
    write_job(tmp_path / "sweep" / "1", 0.3)
    report = write_report(tmp_path / "sweep", out=tmp_path / "out").report.read_text()
    for text in (
        "0123456789 (dirty)",
        "measure.windows = 32",
        "torch 2.13.0",
        "25 s in 2 jobs",
        "(curve.png)",
    ):
        assert text in report, text
    assert "| ../sweep/1/run.json |" in report
    assert "sparsity.level = " not in report  # not shared by all points
