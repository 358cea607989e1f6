"""The method that docs/own_method.md shows, run as it stands there."""

import re
import sys
from pathlib import Path

import pytest

from shadow.front import sparse
from shadow.jobs import checks, ingredients, loading, measures, method, point_records, policies, stores

PAGE = Path(__file__).parents[2] / "docs" / "own_method.md"


def code() -> str:
    (first, *_) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return first


@pytest.fixture
def documented(compose, tmp_path, monkeypatch):
    """documented(*overrides): a job in a folder where the page's file lies."""
    (tmp_path / "my_method.py").write_text(code(), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_method", raising=False)
    own = ("predictor=own", "predictor.name=mine", "predictor._target_=my_method.Mine")
    return lambda *overrides: compose("evaluate", "model=tiny-llama", *own, *overrides)


def test_it_has_at_most_25_lines():
    assert len(code().splitlines()) <= 25


@pytest.mark.parametrize("scope", ["layer", "threshold"])
def test_it_runs_as_a_job_does(documented, artifacts, batch, scope):
    cfg = documented("+predictor.scale=2.0", f"sparsity.scope={scope}", "make_missing=true")
    checks.check_evaluate(cfg)
    lm = loading.load_lm(cfg)
    scorer = ingredients.get_scorer(cfg, lm)
    stand_in = stores.get_stand_in(cfg, lm, scorer)
    policy = policies.get_policy(cfg, lm, scorer, stand_in)
    with sparse(lm.model, scorer, policy, stand_in=stand_in, executor=method.executor_of(cfg)) as run:
        run.logits(batch)
    assert run.achieved("channel") > 0.2
    assert run.bytes()["skipped"] > 0.1


def test_another_value_of_its_key_is_another_point(documented):
    def key(scale: float) -> dict:
        cfg = documented(f"+predictor.scale={scale}")
        return point_records.settings_of(cfg, {"content": measures.content_of(cfg)})

    assert key(2.0) == key(2.0)
    assert key(2.0) != key(3.0)
