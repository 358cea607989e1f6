"""What starts reports: Hydra's callback, and the command."""

import json
import logging
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from run_records import csv_rows, write_job, write_report
from shadow.sweeps.__main__ import main
from shadow.sweeps.callback import ReportCallback
from shadow.sweeps.wandb.upload import history
from wandb.proto import wandb_internal_pb2

ROOT = Path(__file__).parents[2]


def sweep_config(folder: Path, *overrides: str, **changes: object) -> DictConfig:
    return OmegaConf.create(
        {
            "task_name": "evaluate",
            "logger": None,
            "hydra": {
                "mode": RunMode.MULTIRUN,
                "runtime": {"cwd": str(folder.parent)},
                "overrides": {"task": list(overrides)},
                "sweep": {"dir": folder.name},
            },
        }
        | changes
    )


def test_the_callback_redraws_after_a_failed_job(tmp_path: Path) -> None:
    callback = ReportCallback()
    write_job(tmp_path / "0", 0.1)
    callback.on_job_end(sweep_config(tmp_path), JobReturn())
    write_job(tmp_path / "1", 0.3, error="ValueError: boom")
    callback.on_job_end(sweep_config(tmp_path), JobReturn())
    assert "ValueError: boom" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "curve.png").is_file()


def test_the_callback_leaves_other_jobs_alone(tmp_path: Path) -> None:
    write_job(tmp_path / "0")
    hydra = {"mode": RunMode.RUN, "runtime": {"cwd": str(tmp_path)}, "sweep": {"dir": "."}}
    ReportCallback().on_job_end(sweep_config(tmp_path, task_name="train"), JobReturn())
    ReportCallback().on_job_end(sweep_config(tmp_path, hydra=hydra), JobReturn())
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


def test_the_callback_keeps_the_files_of_its_report_and_logs_its_tables_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_job(tmp_path / "0")
    with caplog.at_level(logging.INFO):
        ReportCallback("grid").on_multirun_end(sweep_config(tmp_path))
    files = {"grid.csv", "grid.md", "grid.html"}  # without a dense model there are no nats to draw
    assert {file.name for file in tmp_path.iterdir()} == {"0", *files}
    assert "Weight bytes not read, %, decided at token, nominal level 0.3" in caplog.text
    assert str(tmp_path / "grid.html") in caplog.text


def test_the_callback_logs_the_traceback_of_a_failed_drawing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_job(tmp_path / "0").write_text("{")
    ReportCallback().on_job_end(sweep_config(tmp_path), JobReturn())
    assert "could not redraw the curve" in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("patience", [0, 1000])
def test_of_a_sweep_that_broke_off_it_is_said_what_is_not_drawn_and_how_to_draw_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, patience: int
) -> None:
    write_job(tmp_path / "0", settings={"measure": {}, "sparsity": {"kinds": ["head"]}})
    callback = ReportCallback("criteria", patience=patience)
    for _ in range(2):  # the second may come within the callback's patience
        callback.on_job_end(sweep_config(tmp_path), JobReturn())
    with caplog.at_level(logging.INFO):
        callback.log_unended(tmp_path, with_wandb=True)
    assert "l2_norm" in caplog.text
    lacks = " (without the last jobs)" if patience else ""
    assert f"criteria.md{lacks}; anew: shadow report --criteria {tmp_path}" in caplog.text
    assert f"shadow report --criteria {tmp_path} --wandb" in caplog.text


@pytest.mark.parametrize(
    ("sweep", "overruled"),
    [("criteria", ["criterion=fisher", "predictor=static,oracle"]), ("predictors", ["predictor=static"])],
)
def test_overrides_that_the_contender_would_overrule_are_refused(
    tmp_path: Path, sweep: str, overruled: list[str]
) -> None:
    cfg = OmegaConf.load(ROOT / "conf" / "sweep" / f"{sweep}.yaml")
    callback = instantiate(cfg.hydra.callbacks.curve, _target_="shadow.sweeps.callback.ReportCallback")
    for override in overruled:
        with pytest.raises(SystemExit, match=rf"overrules {override}: choose with contender="):
            callback.on_multirun_start(sweep_config(tmp_path, f"sweep={sweep}", override))
    callback.on_multirun_start(sweep_config(tmp_path, "predictor.epochs=1", task_name="train"))


def test_every_sweep_has_a_report() -> None:
    default = OmegaConf.load(ROOT / "conf" / "hydra" / "default.yaml").callbacks.curve
    for file in (ROOT / "conf" / "sweep").glob("*.yaml"):
        own = OmegaConf.select(OmegaConf.load(file), "hydra.callbacks.curve") or {}
        assert isinstance(instantiate(OmegaConf.merge(default, own)), ReportCallback), file


def test_a_report_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be one of curve, methods, criteria, .* got heat"):
        ReportCallback("heat")


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


def test_importing_the_callback_is_light_and_no_report_needs_torch_or_the_library() -> None:
    code = """
import sys, shadow
always = {*sys.modules}
import shadow.sweeps.callback
def other(name): return name == "torch" or name.startswith("shadow.") and not name.startswith("shadow.sweeps")
print([m for m in ("torch", "matplotlib", "numpy", "pandas", "wandb") if m in sys.modules])
import shadow.sweeps.__main__, shadow.sweeps.figures.png
from shadow.sweeps.reports import REPORTS, find_report
print([find_report(name).name for name in REPORTS], {*filter(other, sys.modules)} - always)
"""
    done = run("-c", code)
    assert done.stdout.splitlines()[0] == "[]", done.stdout + done.stderr
    assert done.stdout.splitlines()[1].endswith("set()"), done.stdout + done.stderr


@pytest.mark.parametrize("words", [[], ["--grid"]])
def test_the_command_writes_the_files_of_a_report_and_prints_its_tables(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_job(tmp_path / "a" / "0", 0)
    write_job(tmp_path / "b" / "0", 0.3)
    folders = [str(tmp_path / name) for name in "ab"]
    monkeypatch.setattr(sys, "argv", ["sweeps", *words, *folders, "--out", str(tmp_path / "c")])
    main()
    told = capsys.readouterr().out
    assert "+0.300" in told
    assert "sparse tokens: all, scored tokens: all" in told
    curve = {"curve.csv", "paired.csv", "curve.png", "report.md", "report.html"}
    grid = {"grid.csv", "grid.png", "grid.md", "grid.html"}
    assert {path.name for path in (tmp_path / "c").iterdir()} == (grid if words else curve)


def test_the_command_refuses_a_reference_that_no_point_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_job(tmp_path / "0", 0.3)
    monkeypatch.setattr(sys, "argv", ["sweeps", str(tmp_path), "--against", "nope"])
    with pytest.raises(SystemExit):
        main()
    told = "--against must be a scorer of these points, one of dense, static, unified, got nope\n"
    assert capsys.readouterr().err == told
    assert not list(tmp_path.glob("*.md"))


def test_the_command_says_that_there_is_nothing_to_draw(tmp_path: Path) -> None:
    done = run("-m", "sweeps", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == f"no run.json of an evaluate job below {tmp_path}\n"
    assert not list(tmp_path.iterdir())


APP = """
import json, pathlib, shutil, sys
import hydra
from hydra.core.hydra_config import HydraConfig

@hydra.main(version_base="1.3", config_path=".", config_name="app")
def main(cfg):
    folder = pathlib.Path(HydraConfig.get().runtime.output_dir)
    shutil.copytree(pathlib.Path(cfg.records, str(cfg.n)), folder, dirs_exist_ok=True)
    if cfg.n in cfg.bad:
        raise ValueError("boom")

main()
"""


def write_app(folder: Path, levels: tuple[float, float] = (0.1, 0.3)) -> None:
    """A sweep of two jobs that leave records of their own settings, with W&B offline; the second may fail."""
    logger = {"wandb": {"project": "shadow", "group": "swept", "offline": True}}
    for n, level in enumerate(levels):
        file = write_job(folder / "records" / str(n), level)
        content = json.loads(file.read_text())
        content["settings"]["logger"] = logger
        file.write_text(json.dumps(content))
    app = {"task_name": "evaluate", "n": 0, "bad": [], "records": str(folder / "records"), "logger": logger}
    hydra = {
        "callbacks": {"curve": {"_target_": "shadow.sweeps.callback.ReportCallback"}},
        "sweep": {"dir": "swept"},
    }
    OmegaConf.save(OmegaConf.create(app | {"hydra": hydra}), folder / "app.yaml")
    (folder / "app.py").write_text(APP)


def records_in(log: Path) -> Iterator[wandb_internal_pb2.Record]:
    """What `wandb sync` would send of a run: LevelDB's log format, in blocks of 32768 bytes."""
    data, at, parts = log.read_bytes(), 7, b""  # behind a header of 7
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


@pytest.mark.slow
def test_a_sweep_with_a_failed_job_ends_with_the_table(tmp_path: Path) -> None:
    write_app(tmp_path)
    done = run("app.py", "-m", "n=0,1", "bad=[1]", cwd=tmp_path)
    assert done.returncode == 1
    assert "ValueError: boom" in done.stderr
    assert done.stdout.count("neurons %") == 1, done.stdout
    assert f"shadow report {tmp_path / 'swept'} --wandb" in done.stdout
    assert len(csv_rows(tmp_path / "swept" / "curve.csv")) == 4


@pytest.mark.slow
def test_a_sweep_that_logs_to_wandb_uploads_its_curve_once(tmp_path: Path) -> None:
    """To its group, with the leaderboard, and nothing of what is sent names this machine's folders."""
    write_app(tmp_path, (0, 0.3))
    done = run("app.py", "-m", "n=0,1", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "could not redraw" not in done.stdout, done.stdout
    assert done.stdout.count("neurons %") == 1, done.stdout
    (log,) = (tmp_path / "swept" / "wandb").glob("offline-run-*/run-*.wandb")
    assert "of group swept" in done.stdout
    sent = list(records_in(log))
    (run_record,) = [one.run for one in sent if one.WhichOneof("record_type") == "run"]
    assert (run_record.project, run_record.run_group, run_record.job_type) == ("shadow", "swept", "curve")
    logged = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in one.history.item}
        for one in sent
        if one.WhichOneof("record_type") == "history"
    ]
    figures = [{k: v for k, v in row.items() if not k.startswith("_")} for row in logged]
    expected = list(history(write_report(tmp_path / "swept").charts))
    assert figures[: len(expected)] == expected
    rest = {key: value for row in figures[len(expected) :] for key, value in row.items()}
    names = ("points", "leaderboard", "curve", "page")  # none in another's place
    types = {name: rest[f"{name}/_type"] for name in names}
    assert types == {
        **dict.fromkeys(("points", "leaderboard"), "table-file"),
        **{"curve": "image-file", "page": "html-file"},
    }
    assert str(tmp_path) not in json.dumps([run_record.run_group, run_record.project, rest])
