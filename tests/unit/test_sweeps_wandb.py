"""W&B's own sweeps start the scripts with overrides that compose; a Report finds what was logged."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import wandb
import yaml
from run_records import write_job, write_report
from shadow.sweeps import __main__
from shadow.sweeps.records.record import RecordError
from shadow.sweeps.reports.report import Written
from shadow.sweeps.wandb import leaderboard
from shadow.sweeps.wandb import report as wandb_report
from shadow.sweeps.wandb.upload import BYTES, history

from shadow.jobs import checks, method

FOLDER = Path(__file__).parents[2] / "sweeps" / "wandb"


def words_of(sweep: dict) -> list[list[str]]:
    """The command line of an agent for the first and for the last value of every parameter."""
    lines = []
    for which in (0, -1):
        chosen = {}
        for name, of in sweep["parameters"].items():
            ends = of.get("values") or ([of["value"]] if "value" in of else [of["min"], of["max"]])
            chosen[name] = ends[which]
        args = [f"{name}={value}" for name, value in chosen.items()]  # what ${args_no_hyphens} stands for
        told = {"${env}": [], "${interpreter}": [], "${program}": [], "${args_no_hyphens}": args}
        lines.append([word for part in sweep["command"] for word in told[part]])
    return lines


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_command_of_a_wandb_sweep_composes(file: Path, compose: Callable) -> None:
    sweep = yaml.safe_load(file.read_text())
    script = Path(sweep["program"]).stem
    first, last = [compose(script, *words) for words in words_of(sweep)]
    for cfg in (first, last):
        checks.check_predictor(cfg)
        method.policy_of(cfg)
        assert "wandb" in cfg.logger
    assert first != last


GROUP = "it's one"


@pytest.fixture
def swept(tmp_path: Path) -> Written:
    """Two curves with their dense model, one job that failed, all of them logged to W&B."""
    logger = {"wandb": {"project": "shadow", "entity": "someone", "group": GROUP, "offline": False}}
    for n, (scorer, level) in enumerate((s, x) for s in ("static", "unified") for x in (0, 0.3, 0.5)):
        write_job(tmp_path / str(n), level, scorer, settings={"logger": logger})
    write_job(tmp_path / "6", 0.7, error="boom")
    return write_report(tmp_path)


def spec_of(report: object) -> dict:
    """What save() sends."""
    return json.loads(report._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))


def test_a_report_draws_lines_that_an_upload_logs(swept: Written) -> None:
    logged = list(history(swept.charts))
    grid = next(
        block for block in spec_of(wandb_report.build(swept))["blocks"] if block["type"] == "panel-grid"
    )
    panels = grid["metadata"]["panelBankSectionConfig"]["panels"]
    plots = [panel["config"] for panel in panels if "Line Plot" in panel["viewType"]]
    tables = [panel["config"] for panel in panels if "Line Plot" not in panel["viewType"]]
    assert [name in json.dumps(tables) for name in ("leaderboard", "points")] == [True, True]
    assert [plot["yLogScale"] for plot in plots] == [False, True, False]
    assert [len(plot["metrics"]) for plot in plots] == [2, 2, 3]  # nats, and the least of them
    for plot in plots:
        assert plot["xAxis"] == BYTES
        for name in plot["metrics"]:  # from the dense model on, to the right
            x = [row[BYTES] for row in logged if name in row]
            assert x == sorted(x)
            assert (x[0], len(x)) == (0, 3)


def test_the_leaderboard_marks_what_loses_least_at_equal_bytes(tmp_path: Path) -> None:
    losses = {"static": {0.3: 0.5, 0.5: 0.6}, "teal": {0.3: 0.1, 0.5: 0.9}, "oracle": {0.3: 0.01, 0.5: 0.02}}
    write_job(tmp_path / "dense", 0, "static", {"perplexity": (100, 1)})
    for scorer, of in losses.items():
        for level, nats in of.items():
            figures = {"perplexity": (100 * math.exp(nats), 1.0)}
            write_job(tmp_path / f"{scorer}{level}", level, scorer, figures)
    written = write_report(tmp_path, "methods")
    rows = [(row[1], row[2], round(row[4], 6), row[-1]) for row in leaderboard.rows_of(written.charts)]
    assert rows == [
        ("oracle", 0.5, 0.02, 0),
        ("static", 0.5, 0.6, 1),
        ("teal", 0.5, 0.9, 0),
        ("oracle", 0.3, 0.01, 0),
        ("teal", 0.3, 0.1, 1),
        ("static", 0.3, 0.5, 0),
    ]


def test_the_run_sets_of_a_report_are_the_sweeps_own(swept: Written) -> None:
    report = wandb_report.build(swept)
    assert (report.project, report.entity) == ("shadow", "someone")
    sets = [
        run_set
        for block in spec_of(report)["blocks"]
        if block["type"] == "panel-grid"
        for run_set in block["metadata"]["runSets"]
    ]
    filters = [{f["key"]["name"]: f["value"] for f in one["filters"]["filters"]} for one in sets]
    assert filters == [
        {"jobType": "curve", "group": GROUP},
        {"jobType": "evaluate", "group": GROUP},
    ]
    assert "config:predictor.value.name" in sets[1]["runFeed"]["columnOrder"]


def test_a_report_has_settings_and_failed_jobs_as_text_and_no_image_of_a_file(swept: Written) -> None:
    (text,) = [
        block for block in wandb_report.build(swept).blocks if hasattr(block, "text") and "|" in block.text
    ]
    assert "measure.windows = 32" in text.text
    assert "## Failed jobs: 1" in text.text
    assert "boom" in text.text
    assert "![" in swept.report.read_text()
    assert "![" not in text.text


def test_the_command_saves_a_report_only_with_an_account(
    swept: Written, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import wandb_workspaces.reports.v2 as wr

    saved: list[wr.Report] = []
    monkeypatch.setattr(wr.Report, "save", lambda self: saved.append(self) or self)
    monkeypatch.setattr(wr.Report, "url", "https://wandb.ai/someone/shadow/reports/it")
    monkeypatch.setattr(sys, "argv", ["sweeps", str(swept.report.parent), "--wandb-report"])
    monkeypatch.setattr(wandb, "login", lambda prompt: False)
    with pytest.raises(SystemExit):
        __main__.main()
    assert "wandb login" in capsys.readouterr().err
    assert not saved
    monkeypatch.setattr(wandb, "login", lambda prompt: True)
    __main__.main()
    (report,) = saved
    assert spec_of(report)["blocks"]


def test_a_report_of_jobs_that_did_not_log_to_wandb_is_refused(tmp_path: Path) -> None:
    write_job(tmp_path / "0")
    with pytest.raises(RecordError, match="logger=wandb"):
        wandb_report.build(write_report(tmp_path))


def test_a_report_without_its_extra_names_what_installs_it(
    swept: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(RecordError, match=r"\.\[wandb-reports\]"):
        wandb_report.build(swept)
