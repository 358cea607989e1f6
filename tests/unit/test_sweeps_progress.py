"""What a sweep says of itself: how many jobs, how far, how long, and the best trial's predictor."""

import json
import logging

import pytest
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from run_records import write_job
from shadow.sweeps import best_trial
from shadow.sweeps.duration import duration
from shadow.sweeps.progress import Progress, begin
from shadow.sweeps.progress_callback import ProgressCallback

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


@pytest.fixture
def hydra():
    with initialize_config_module("shadow.conf", version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


def config_of(folder, *words: str, params: dict | None = None, **sweeper: object) -> DictConfig:
    return OmegaConf.create(
        {
            "task_name": "evaluate",
            "reuse_points": True,
            "paths": {"log_dir": str(folder / "logs"), "artifact_dir": str(folder / "artifacts")},
            "model": {"name": "tiny"},
            "measure": {"windows": 4},
            "hydra": {
                "mode": RunMode.MULTIRUN,
                "sweeper": {"_target_": BASIC, "params": params or {}} | sweeper,
                "overrides": {"task": list(words)},
                "sweep": {"dir": str(folder / "logs" / "evaluate" / "multiruns" / "now")},
                "runtime": {"cwd": str(folder), "output_dir": ""},
            },
        }
    )


def keep_record(folder, overrides: list[str], **told: object) -> None:
    file = write_job(folder)
    content = json.loads(file.read_text()) | {"overrides": overrides, "kept_in": f"{folder.name}.json"} | told
    content["settings"] = {"model": {"name": "tiny"}, "measure": {"windows": 4}}
    file.write_text(json.dumps(content))


def test_a_sweep_begins_with_its_jobs_those_measured_before_and_how_long_the_others_take(hydra, tmp_path):
    """Whatever decides no point may differ; a point that is gone is measured again."""
    words = ["predictor=static,random", "sparsity.level=0.3,0.5", "logger=none"]
    config = config_of(tmp_path, *words, params={"model": "opt-mini"})
    assert begin(config).at_the_beginning() == "4 jobs"
    logs = tmp_path / "logs" / "evaluate" / "runs"
    job = ["sparsity.level=0.3", "model=opt-mini"]
    keep_record(logs / "there", ["predictor=static", *job, "tags=[a]"], seconds=60.0)
    keep_record(logs / "gone", ["predictor=random", *job], seconds=80.0)
    keep_record(logs / "reused", ["predictor=random", *job], seconds=1.0, reused_from="there")
    (logs / "half").mkdir()
    (logs / "half" / "run.json").write_text("{")
    points = tmp_path / "artifacts" / "points"
    points.mkdir(parents=True)
    (points / "there.json").touch()
    found = begin(config)
    assert found.at_the_beginning() == "4 jobs, 1 measured before, about 4 minutes"
    assert found.varied == {"predictor", "sparsity.level"}
    config.reuse_points = False
    assert begin(config).at_the_beginning() == "4 jobs, about 5 minutes"


def test_a_search_has_as_many_jobs_as_trials(tmp_path):
    found = begin(config_of(tmp_path, params={"predictor.lr": "x"}, _target_="optuna.Sweeper", n_trials=20))
    assert (found.at_the_beginning(), found.varied) == ("20 jobs", {"predictor.lr"})


def test_what_is_left_is_told_by_the_jobs_that_measured_something(monkeypatch):
    monkeypatch.setattr("shadow.sweeps.progress.time.monotonic", lambda: 160.0)
    progress = Progress(jobs=10, known=3, began=100.0)
    assert progress.left(ended=2, fresh=0) == ""  # two that were known
    assert progress.left(ended=4, fresh=2) == "about 2 minutes left"  # 30 s each, and one more is known
    assert progress.left(ended=10, fresh=7) == ""
    assert [duration(seconds) for seconds in (0, 0.2, 89, 5340, 5400)] == [
        "0 s",
        "1 s",
        "89 s",
        "89 minutes",
        "1.5 hours",
    ]


def test_each_job_has_a_line_with_what_varies_and_its_figures(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    config = config_of(tmp_path, "predictor=static", "sparsity.level=0.3", "model=tiny")
    folder = tmp_path / "logs" / "evaluate" / "multiruns" / "now"
    callback = ProgressCallback()
    callback.progress = Progress(2, varied=frozenset({"predictor"}))
    for n, error in enumerate((None, "sparsity.level must be\n less")):
        write_job(folder / str(n), error=error)
        config.hydra.runtime.output_dir = str(folder / str(n))
        callback.on_job_end(config, JobReturn())
    first, second = (one.getMessage() for one in caplog.records)
    assert first.startswith("1 of 2 jobs: predictor=static: perplexity 135, choices/acc 0.65; about 1 s left")
    assert second == "2 of 2 jobs: predictor=static: sparsity.level must be less"


def test_the_best_trial_names_its_predictor_or_says_that_another_search_made_it(tmp_path):
    found = {"name": "optuna", "best_params": {"predictor.rank": 72}, "best_value": 0.75}
    OmegaConf.save(OmegaConf.create(found), tmp_path / best_trial.RESULTS)
    records = [
        {"metrics": {"val/mass@50": {"value": value}}, "predictor": {"folder": f"artifacts/{value}"}}
        for value in (0.5, 0.75)
    ]
    first, second = best_trial.in_words(tmp_path, records)
    assert first == "best of 2 trials: predictor.rank=72: val/mass@50 0.750"
    assert second == "its predictor: artifacts/0.75"
    assert "earlier search" in best_trial.in_words(tmp_path, records[:1])[1]
