"""Where it is installed: what cannot be written, names of strangers, folders that an environment names."""

import errno
import logging
import tomllib
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hydra.core.hydra_config import HydraConfig
from numba.core import caching
from omegaconf import OmegaConf

import shadow
from shadow.commands.scripts import script
from shadow.errors import UserError
from shadow.jobs import command_line
from shadow.jobs.command_line import prepare
from shadow.jobs.folders import FoldersCallback
from shadow.jobs.missing import train_command
from shadow.plans import compiled

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def triple(x):
    return x * 3


@pytest.mark.parametrize("writable", [True, False])
def test_compiled_code_that_cannot_be_kept_runs_all_the_same(tmp_path, monkeypatch, caplog, writable):
    def refuse(self):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))
    if not writable:
        monkeypatch.setattr(caching._CacheLocator, "ensure_cache_path", refuse)
    compiled.say_unkept.cache_clear()
    with caplog.at_level(logging.WARNING):
        functions = [compiled.compiled()(triple) for _ in range(2)]
    assert [function(np.float32(2)) for function in functions] == [6, 6]
    assert bool(list(tmp_path.rglob("*.nbc"))) == writable
    assert len(caplog.messages) == (not writable)
    assert writable or "NUMBA_CACHE_DIR" in caplog.text


def test_every_package_is_installed_and_none_under_a_name_of_others():
    """A wheel holds what is listed: a folder that is left out is missed by users alone."""
    places = PROJECT["tool"]["setuptools"]["package-dir"]
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    assert {name.partition(".")[0] for name in listed} == {"shadow"}
    for top, name in (("shadow", "shadow"), ("sweeps", "shadow.sweeps")):
        assert places.get(name, name) == top
        folders = {file.parent.relative_to(ROOT / top) for file in (ROOT / top).rglob("*.py")}
        assert {".".join([name, *folder.parts]) for folder in folders} <= listed


def test_every_command_that_is_installed_can_be_called():
    for target in PROJECT["project"]["scripts"].values():
        module, _, function = target.partition(":")
        assert callable(getattr(import_module(module), function)), target
    assert [script(name).parent for name in ("train.py", "evaluate.py")] == [ROOT] * 2


def test_a_job_that_was_installed_names_the_installed_command(monkeypatch):
    asked = SimpleNamespace(task=["model=opt-mini", "measure.windows=4"], hydra=[])
    hydra = SimpleNamespace(overrides=asked)
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    monkeypatch.setattr("sys.argv", [str(Path(shadow.__file__).with_name("scripts") / "evaluate.py")])
    assert train_command() == "shadow train model=opt-mini"


@pytest.fixture(autouse=True)
def own_signals(monkeypatch):
    """The tests' process keeps its own."""
    monkeypatch.setattr(command_line, "expect", lambda: None)
    monkeypatch.setenv("TQDM_DISABLE", "1")


@pytest.mark.parametrize(
    ("given", "becomes"), [("~/runs", "/home/me/runs"), ("~", "/home/me"), ("a/~", "a/~")]
)
def test_the_root_is_what_a_shell_would_make_of_it(monkeypatch, given, becomes):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SHADOW_ROOT", given)
    prepare("train", [])
    assert OmegaConf.load(ROOT / "conf" / "paths" / "default.yaml").root_dir == becomes


@pytest.mark.parametrize("given", ["", "  "])
def test_a_root_that_is_empty_is_refused(monkeypatch, given):
    monkeypatch.setenv("SHADOW_ROOT", given)
    with pytest.raises(SystemExit, match=r"SHADOW_ROOT must name a folder, got '.*': unset it"):
        prepare("train", [])


@pytest.mark.parametrize("begin", ["on_run_start", "on_multirun_start"])
def test_a_folder_of_its_own_for_each_run_is_refused(begin):
    config = OmegaConf.create({"hydra": {"job": {"chdir": True}}})
    with pytest.raises(SystemExit, match=r"hydra\.job\.chdir must be false, got true"):
        getattr(FoldersCallback(), begin)(config)


def test_a_model_has_the_name_of_its_option_and_a_typo_the_nearest_one():
    model, tokenizer = shadow.load_model("opt-mini")
    assert len(tokenizer) == model.config.vocab_size
    assert not any(weights.requires_grad for weights in model.parameters())
    with pytest.raises(UserError, match=r"got 'opt-mni': did you mean 'opt-mini'\?"):
        shadow.load_model("opt-mni")


def test_a_model_of_a_folder_is_loaded_in_the_dtype_that_is_asked_for():
    model, _ = shadow.load_model(str(ROOT / "models" / "opt-mini"), dtype="bfloat16")
    assert str(model.dtype) == "torch.bfloat16"


def test_the_predictor_of_opt_mini_is_installed_with_its_thresholds():
    listed = PROJECT["tool"]["setuptools"]["package-data"]["shadow.opt_mini"]
    folder = ROOT / "models" / "opt-mini"
    shipped = {file for pattern in listed for file in folder.glob(pattern) if file.parent.name == "predictor"}
    assert shipped == set((folder / "predictor").iterdir())
    assert sorted(shadow.load_predictor("opt-mini").policies) == [("token", 0.3), ("token", 0.5)]
