"""What a job says in the terminal: lines, bars, noise, and how it is stopped."""

import io
import json
import logging
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from shadow.jobs.run import job
from shadow.plans.compiled import SaysOnce
from shadow.terminal import bars, stops
from shadow.terminal.lines import Lines
from shadow.terminal.noise import without_noise


@pytest.fixture
def said(capsys, monkeypatch):
    """said(message, level, rank): what the console shows of a line, less the time."""

    def of(message: str, level: int = logging.INFO, rank: str = "", **extra: object) -> str:
        monkeypatch.setenv("LOCAL_RANK", rank)
        record = logging.LogRecord("shadow.x", level, "x.py", 1, message, (), None)
        vars(record).update(extra)
        Lines().emit(record)
        return capsys.readouterr().out[9:]

    return of


def test_a_line_is_said_once_by_several_processes_and_the_others_are_named(said):
    assert said("collecting", rank="0") == "collecting\n"
    assert said("collecting", rank="1") == ""
    assert said("process 1 holds 5", rank="1", every_rank=True) == "[rank 1] process 1 holds 5\n"
    assert said("odd", logging.WARNING, rank="1") == "[rank 1] warning: odd\n"


def test_a_line_is_not_wrapped_or_read_as_markup_and_its_paths_are_short(said):
    long = "[bold]x[/bold] " + "word " * 40
    assert said(long) == f"{long}\n"
    assert said(f"-> {Path.cwd()}/artifacts/x") == "-> artifacts/x\n"


@pytest.fixture
def screen(monkeypatch) -> io.StringIO:
    screen = io.StringIO()
    monkeypatch.setattr(bars, "CONSOLE", Console(file=screen, force_terminal=True, color_system=None))
    return screen


def test_a_bar_counts_what_it_is_named_for_and_one_within_it_shows_nothing(screen):
    with bars.stage("collecting", 14, "shards", done=1) as advance:
        advance(2.5)
        bars._shown[0].refresh()
        assert list(bars.counted([1, 2], "removal", "sites")) == [1, 2]
    assert "collecting:  3 of 14 shards" in screen.getvalue()
    assert "removal" not in screen.getvalue()
    with pytest.raises(ValueError, match="odd"), bars.stage("fitting", 2, "epochs"):
        raise ValueError("odd")
    list(bars.counted("abc", "removal", "sites"))
    assert "removal: 0 of 3 sites" in screen.getvalue()  # the one that broke off is gone


def test_no_bar_is_written_to_a_file(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(bars, "CONSOLE", Console(file=file))
    list(bars.counted("abc", "removal", "sites"))
    assert file.getvalue() == ""


def test_noise_is_known_by_its_words_and_its_module():
    known = "Checkpoint directory /x exists and is not empty."
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with without_noise():
            warnings.warn_explicit(known, UserWarning, "f.py", 1, module="pytorch_lightning.callbacks.x")
            warnings.warn_explicit(known, UserWarning, "f.py", 2, module="mine")
            warnings.warn_explicit("new", UserWarning, "f.py", 3, module="pytorch_lightning.callbacks.x")
    assert [(str(one.message), one.lineno) for one in heard] == [(known, 2), ("new", 3)]


def test_lines_of_lm_eval_that_tell_nothing_are_dropped_and_others_are_heard(caplog):
    logger = logging.getLogger("lm_eval.models.huggingface")
    with without_noise():
        logger.warning("`pretrained` model kwarg is not of type `str`. Many other ...")
        logger.warning("Left truncation applied.")
    logger.warning("Passed an already-initialized model through `pretrained`, assuming ...")
    assert [one.getMessage()[:10] for one in caplog.records] == ["Left trunc", "Passed an "]


def stop(error: type[KeyboardInterrupt], in_lightning: bool) -> None:
    try:
        raise error
    except KeyboardInterrupt:
        if in_lightning:
            raise SystemExit(1)  # noqa: B904  as it does
        raise


@pytest.mark.parametrize(
    ("error", "in_lightning", "code"),
    [(KeyboardInterrupt, False, 130), (stops.Terminated, False, 143), (stops.Terminated, True, 143)],
)
def test_a_stopped_job_ends_in_one_line_and_its_record_says_so(
    compose, tmp_path, caplog, error, in_lightning, code
):
    cfg = compose("train", "model=tiny-llama", "logger=none")
    with caplog.at_level(logging.INFO), pytest.raises(SystemExit) as ended, job(cfg):
        stop(error, in_lightning)
    assert ended.value.code == code
    assert [one.getMessage() for one in caplog.records] == [stops.STOPPED]
    record = json.loads((tmp_path / "output" / "run.json").read_text())
    assert (record["status"], record["error"]) == ("failed", "it was stopped")


def test_an_end_that_nobody_asked_for_is_no_stop():
    assert stops.exit_code(SystemExit(3)) is None
    assert stops.exit_code(ValueError()) is None


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (stops.Terminated, 143)])
def test_outside_a_job_a_stop_is_one_line_and_its_signals_exit_code_too(capsys, error, code):
    with pytest.raises(SystemExit) as ended:
        stops.in_one_line(error, error(), None)
    assert ended.value.code == code
    assert capsys.readouterr().err.splitlines() == [stops.STOPPED]


def test_any_other_error_is_told_as_python_tells_it(capsys):
    stops.in_one_line(ValueError, ValueError("odd"), None)
    assert capsys.readouterr().err.splitlines() == ["ValueError: odd"]


def test_compiling_is_said_once_before_it_begins_and_others_compile_unheard(caplog):
    says = SaysOnce()
    for module in ("numba.core.x", "shadow.executors.cpu.decode", "shadow.plans.selection") * 2:
        function = SimpleNamespace(__module__=module)
        says.on_start(SimpleNamespace(data={"dispatcher": SimpleNamespace(py_func=function)}))
    words = [one.getMessage().split(" for ")[0] for one in caplog.records]
    assert words == ["compiling executor=gathered", "compiling the choice of units"]
