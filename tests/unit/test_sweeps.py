"""Run records to curves, CSV, figures and reports, on made-up records."""

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from run_records import csv_rows, write_job

from sweeps.callback import CurveCallback
from sweeps.curves import CEILING, Chart, find_charts, leaving
from sweeps.plot import draw, title
from sweeps.points import COLUMNS, tidy
from sweeps.rebuild import rebuild
from sweeps.records import RecordError, read
from sweeps.table import perplexity, rows_of, table

ROOT = Path(__file__).parents[2]


def only_chart(folder: Path) -> Chart:
    (chart,) = find_charts(tidy(read([folder]).done))
    return chart


def test_a_curve_is_ordered_by_level_whatever_the_order_of_jobs(tmp_path: Path) -> None:
    for n, level in enumerate([0.5, 0.1, 0.3]):
        write_job(tmp_path / str(n), level)
    (curve,) = only_chart(tmp_path).curves
    assert [mark.level for mark in curve.marks] == [0.1, 0.3, 0.5]
    assert [mark.sparsity for mark in curve.marks] == pytest.approx([0.085, 0.255, 0.425])


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


def test_a_record_without_a_field_is_named_with_the_field(tmp_path: Path) -> None:
    file = write_job(tmp_path / "0")
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "metrics"}))
    with pytest.raises(RecordError, match=r"0/run\.json is not a whole run record: it has no 'metrics'"):
        read([tmp_path])


def test_jobs_of_other_tasks_are_not_points(tmp_path: Path) -> None:
    file = write_job(tmp_path / "0")
    file.write_text(file.read_text().replace('"task": "evaluate"', '"task": "train"'))
    assert not any(read([tmp_path]))


def test_failed_jobs_are_named_with_their_cause_and_left_out(tmp_path: Path) -> None:
    write_job(tmp_path / "0", 0.1)
    write_job(tmp_path / "1", 0.3, error="ValueError: loss is not\nfinite")
    rebuilt = rebuild([tmp_path], tmp_path)
    assert "- 1/run.json (`predictor=unified sparsity.level=0.3`): ValueError: loss is not finite" in (
        rebuilt.report.read_text()
    )
    assert {row["level"] for row in csv_rows(tmp_path / "curve.csv")} == {"0.1"}


def test_a_job_that_left_no_record_is_named(tmp_path: Path) -> None:
    write_job(tmp_path / "0")
    (tmp_path / "1" / ".hydra").mkdir(parents=True)
    (tmp_path / "1" / ".hydra" / "overrides.yaml").touch()
    assert [job.name for job in read([tmp_path]).silent] == ["1"]
    assert "## Jobs without a record: 1" in rebuild([tmp_path], tmp_path).report.read_text()


def test_dense_comes_once_though_every_scorer_has_level_0(tmp_path: Path) -> None:
    for n, (scorer, level) in enumerate([("unified", 0), ("unified", 0.3), ("random", 0), ("random", 0.3)]):
        write_job(tmp_path / str(n), level, scorer)
    chart = only_chart(tmp_path)
    assert [row[0] for row in rows_of(chart, [])] == ["scorer", "dense", "unified", "random"]
    assert not chart.notes


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
    assert "the standard deviation over the seeds" in rebuild([tmp_path], tmp_path).report.read_text()
    assert len(csv_rows(tmp_path / "curve.csv")) == 3


def test_one_seed_keeps_the_error_of_the_measure(tmp_path: Path) -> None:
    write_job(tmp_path / "0", metrics={"perplexity": (100.0, 3.5)})
    assert only_chart(tmp_path).curves[0].marks[0].metrics["perplexity"] == (100.0, 3.5)
    assert "± is the measure's standard error." in rebuild([tmp_path], tmp_path).report.read_text()


def test_a_swept_setting_outside_the_point_makes_curves_not_seeds(tmp_path: Path) -> None:
    for n, width in enumerate((64, 128)):
        write_job(tmp_path / str(n), overrides=(f"predictor.hidden={width}", f"logger={n}"))
    labels = [curve.label for curve in only_chart(tmp_path).curves]
    assert labels == ["unified predictor.hidden=64", "unified predictor.hidden=128"]


def test_labels_tell_only_what_varies(tmp_path: Path) -> None:
    for n, decided_at in enumerate(("token", "prompt")):
        write_job(tmp_path / str(n), decided_at=decided_at)
    assert [curve.label for curve in only_chart(tmp_path).curves] == ["unified, token", "unified, prompt"]


@pytest.mark.parametrize(
    ("scope", "words"),
    [("layer", "ranked per layer"), ("global", "ranked globally"), ("threshold", "cut at thresholds")],
)
def test_a_title_tells_how_plans_are_made(tmp_path: Path, scope: str, words: str) -> None:
    write_job(tmp_path / "0", scope=scope)
    assert title(only_chart(tmp_path)).endswith(f", l2_norm, decided at each token, {words}")


def test_a_point_measured_again_counts_once_and_joins_its_metrics(tmp_path: Path) -> None:
    write_job(tmp_path / "0", metrics={"perplexity": (100.0, 1.0)}, overrides=("measure=perplexity",))
    write_job(tmp_path / "1", metrics={"perplexity": (100.5, 1.0)}, overrides=("measure=perplexity",))
    write_job(tmp_path / "2", metrics={"choices/acc": (0.5, 0.1)}, overrides=("measure=choices",))
    (record,) = tidy(read([tmp_path]).done)
    assert record.metrics == {"perplexity": (100.5, 1.0), "choices/acc": (0.5, 0.1)}


def test_mean_accuracy_is_over_the_tasks_that_every_point_has(tmp_path: Path) -> None:
    both = {"a/acc": (0.4, 0.03), "b/acc": (0.8, 0.04), "b/acc_norm": (0.9, 0.04)}
    write_job(tmp_path / "0", 0.1, metrics=both)
    write_job(tmp_path / "1", 0.3, metrics=both | {"c/acc": (0.0, 0.0)})
    for record in tidy(read([tmp_path]).done):
        assert record.metrics["mean/acc"] == pytest.approx((0.6, 0.025))
    assert only_chart(tmp_path).accuracies[0] == "mean/acc"


def test_one_task_has_no_mean_accuracy(tmp_path: Path) -> None:
    write_job(tmp_path / "0")
    assert only_chart(tmp_path).accuracies == ["choices/acc"]


def test_table_gives_nats_over_dense(tmp_path: Path) -> None:
    write_job(tmp_path / "0", 0.0)
    write_job(tmp_path / "1", 0.3)
    _, dense, sparse = rows_of(only_chart(tmp_path), ["choices/acc"])
    assert dense == ["dense", "0", "0.0", "0.0", "100.0 ± 3.0", "+0.000", "80.0 ± 5.0"]
    assert sparse == ["unified", "0.3", "27.0", "24.0", "135.0 ± 3.0", "+0.300", "65.0 ± 5.0"]
    lines = table(only_chart(tmp_path)).splitlines()
    assert len({len(line) for line in lines[1:]}) == 1, lines


def test_nats_are_over_the_dense_model_that_leaves_out_prompts_where_a_plan_does(tmp_path: Path) -> None:
    places = [("token", 0, 100.0), ("prompt", 0, 50.0), ("token", 0.5, 200.0), ("prompt", 0.5, 150.0)]
    for n, (decided_at, level, value) in enumerate(places):
        write_job(tmp_path / str(n), level, metrics={"perplexity": (value, 1.0)}, decided_at=decided_at)
    _, *rows = rows_of(only_chart(tmp_path), [])
    assert [row[-1] for row in rows] == ["+0.000", f"{math.log(2):+.3f}", f"{math.log(3):+.3f}"]
    (tmp_path / "1" / "run.json").unlink()
    _, *rows = rows_of(only_chart(tmp_path), [])
    assert [row[-1] for row in rows] == ["+0.000", f"{math.log(2):+.3f}", "-"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(135.14, "135.1"), (4321.98, "4322"), (78434.0, "78430"), (5116123.0, "5.116e+06"), (math.inf, "inf")],
)
def test_perplexities_are_short(value: float, text: str) -> None:
    assert perplexity(value) == text


def test_an_exploding_perplexity_leaves_the_plot_and_is_said_to(tmp_path: Path) -> None:
    for n, (scorer, level, value) in enumerate(
        [("unified", 0, 100.0), ("unified", 0.5, 300.0), ("random", 0.5, 2e5), ("random", 0.7, math.inf)]
    ):
        write_job(tmp_path / str(n), level, scorer, {"perplexity": (value, 3.0)})
    chart = only_chart(tmp_path)
    assert leaving(chart) == ["random leaves the perplexity plot at 2 levels from 0.5 (reaches inf)."]
    figure = draw(chart)
    assert figure is not None
    assert figure.axes[0].get_ylim()[1] == pytest.approx(100 * CEILING)
    assert leaving(chart)[0] in rebuild([tmp_path], tmp_path).report.read_text()


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
    figure = draw(only_chart(tmp_path))
    assert figure is not None
    assert len(figure.axes) == n_panels


@pytest.mark.parametrize(
    "levels", [{0: 100.0}, {0.3: math.inf}, {0: 100.0, 0.3: math.nan}, {0: 100.0, 0.3: 100.1}]
)
def test_odd_perplexities_draw_too(tmp_path: Path, levels: dict[float, float]) -> None:
    for level, value in levels.items():
        write_job(tmp_path / str(level), level, metrics={"perplexity": (value, None)})
    assert rebuild([tmp_path], tmp_path).figures


def test_latency_alone_has_a_report_but_no_figure(tmp_path: Path) -> None:
    write_job(tmp_path / "0", metrics={"decode/seconds": (0.1, None)})
    rebuilt = rebuild([tmp_path], tmp_path)
    assert not rebuilt.figures
    assert rebuilt.report.is_file()


def test_each_model_has_its_figure(tmp_path: Path) -> None:
    write_job(tmp_path / "0", model="org/a")
    rebuild([tmp_path], tmp_path)
    assert (tmp_path / "curve.png").is_file()
    write_job(tmp_path / "1", model="org/b")
    rebuild([tmp_path], tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.png")) == [
        "curve-org-a-builtin.png",
        "curve-org-b-builtin.png",
    ]


def test_rebuilding_gives_the_same_bytes_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    for n, level in enumerate((0, 0.3)):
        write_job(tmp_path / str(n), level)
    names = ("curve.csv", "paired.csv", "curve.png", "report.md", "report.html")
    rebuild([tmp_path], tmp_path)
    before = [(tmp_path / name).read_bytes() for name in names]
    rebuild([tmp_path], tmp_path)
    assert [(tmp_path / name).read_bytes() for name in names] == before
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1", *names}


def test_the_csv_has_a_row_for_each_point_and_metric(tmp_path: Path) -> None:
    write_job(tmp_path / "0", metrics={"perplexity": (100.25, None), "choices/acc": (0.5, 0.1)})
    rebuild([tmp_path], tmp_path)
    rows = csv_rows(tmp_path / "curve.csv")
    assert tuple(rows[0]) == COLUMNS
    assert [(row["metric"], row["value"], row["stderr"]) for row in rows] == [
        ("perplexity", "100.25", ""),
        ("choices/acc", "0.5", "0.1"),
    ]


def test_the_report_names_commit_settings_versions_and_files(tmp_path: Path) -> None:
    write_job(tmp_path / "sweep" / "0", 0.1)
    write_job(tmp_path / "sweep" / "1", 0.3)
    report = rebuild([tmp_path / "sweep"], tmp_path / "out").report.read_text()
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


def sweep_config(folder: Path, **changes: object) -> DictConfig:
    return OmegaConf.create(
        {
            "task_name": "evaluate",
            "logger": None,
            "hydra": {
                "mode": RunMode.MULTIRUN,
                "runtime": {"cwd": str(folder.parent)},
                "sweep": {"dir": folder.name},
            },
        }
        | changes
    )


def test_the_callback_redraws_after_a_failed_job(tmp_path: Path) -> None:
    callback = CurveCallback()
    write_job(tmp_path / "0", 0.1)
    callback.on_job_end(sweep_config(tmp_path), JobReturn())
    write_job(tmp_path / "1", 0.3, error="ValueError: boom")
    callback.on_job_end(sweep_config(tmp_path), JobReturn())
    assert "ValueError: boom" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "curve.png").is_file()


def test_the_callback_leaves_other_jobs_alone(tmp_path: Path) -> None:
    write_job(tmp_path / "0")
    hydra = {"mode": RunMode.RUN, "runtime": {"cwd": str(tmp_path)}, "sweep": {"dir": "."}}
    CurveCallback().on_job_end(sweep_config(tmp_path, task_name="train"), JobReturn())
    CurveCallback().on_job_end(sweep_config(tmp_path, hydra=hydra), JobReturn())
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


def test_the_callback_logs_the_table_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_job(tmp_path / "0")
    with caplog.at_level(logging.INFO):
        CurveCallback().on_multirun_end(sweep_config(tmp_path))
    assert "unified    0.3     27.0       24.0" in caplog.text
    assert str(tmp_path / "curve.png") in caplog.text


def test_the_callback_logs_the_traceback_of_a_failed_drawing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_job(tmp_path / "0").write_text("{")
    CurveCallback().on_job_end(sweep_config(tmp_path), JobReturn())
    assert "could not redraw the curve" in caplog.text
    assert "Traceback" in caplog.text


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_importing_the_callback_is_light() -> None:
    heavy = ("torch", "matplotlib", "numpy", "pandas", "wandb", "shadow")
    done = run("-c", f"import sys, sweeps.callback; print([m for m in {heavy} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_drawing_imports_neither_torch_nor_shadow() -> None:
    done = run(
        "-c", "import sys, sweeps.__main__, sweeps.plot; print({'torch', 'shadow'} & set(sys.modules))"
    )
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


def test_the_command_rebuilds_and_prints_the_table(tmp_path: Path) -> None:
    write_job(tmp_path / "a" / "0", 0.1)
    write_job(tmp_path / "b" / "0", 0.3)
    done = run("-m", "sweeps", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("unified") == 2, done.stdout
    assert {path.name for path in (tmp_path / "c").iterdir()} == {
        "curve.csv",
        "paired.csv",
        "curve.png",
        "report.md",
        "report.html",
    }


def test_the_command_says_that_there_is_nothing_to_draw(tmp_path: Path) -> None:
    done = run("-m", "sweeps", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == f"no run.json of an evaluate job below {tmp_path}\n"
    assert not list(tmp_path.iterdir())


APP = """
import json, pathlib, sys
import hydra
from hydra.core.hydra_config import HydraConfig

@hydra.main(version_base="1.3", config_path=".", config_name="app")
def main(cfg):
    folder = pathlib.Path(HydraConfig.get().runtime.output_dir)
    (folder / "run.json").write_text(pathlib.Path(cfg.records, str(cfg.n), "run.json").read_text())
    if cfg.n in cfg.bad:
        raise ValueError("boom")

main()
"""


def write_app(folder: Path) -> None:
    """A sweep of two jobs that leave records of their own settings, with W&B offline; the second may fail."""
    logger = {"wandb": {"project": "shadow", "group": "swept", "offline": True}}
    for n, level in enumerate((0.1, 0.3)):
        file = write_job(folder / "records" / str(n), level)
        content = json.loads(file.read_text())
        content["settings"]["logger"] = logger
        file.write_text(json.dumps(content))
    app = {"task_name": "evaluate", "n": 0, "bad": [], "records": str(folder / "records"), "logger": logger}
    hydra = {"callbacks": {"curve": {"_target_": "sweeps.callback.CurveCallback"}}, "sweep": {"dir": "swept"}}
    OmegaConf.save(OmegaConf.create(app | {"hydra": hydra}), folder / "app.yaml")
    (folder / "app.py").write_text(APP)


@pytest.mark.slow
def test_a_sweep_with_a_failed_job_ends_with_the_table(tmp_path: Path) -> None:
    write_app(tmp_path)
    done = run("app.py", "-m", "n=0,1", "bad=[1]", cwd=tmp_path)
    assert done.returncode == 1
    assert "ValueError: boom" in done.stderr
    assert done.stdout.count("neurons %") == 1, done.stdout
    assert f"python -m sweeps {tmp_path / 'swept'} --wandb" in done.stdout
    assert len(csv_rows(tmp_path / "swept" / "curve.csv")) == 4


@pytest.mark.slow
def test_a_sweep_that_logs_to_wandb_uploads_its_curve_once(tmp_path: Path) -> None:
    write_app(tmp_path)
    done = run("app.py", "-m", "n=0,1", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "could not redraw" not in done.stdout, done.stdout
    assert done.stdout.count("neurons %") == 1, done.stdout
    assert len(list((tmp_path / "swept" / "wandb").glob("offline-run-*"))) == 1
    assert "of group swept" in done.stdout
