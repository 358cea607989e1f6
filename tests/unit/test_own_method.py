"""A method from a file outside the package: by `_target_`, with its settings in the point's key."""

import sys

import pytest
import torch

from shadow.errors import UserError
from shadow.front import sparse
from shadow.jobs import checks, ingredients, loading, measures, method, point_records, stores
from shadow.scorers.recipe import TrainingFree

OWN = """
import torch
from shadow.scorers.recipe import TrainingFree
from shadow.signals import Signal

class Growing(TrainingFree):
    '''Units matter the more the larger their number is, times `scale`.'''
    kinds, points = frozenset({"neuron"}), frozenset({"layer_input"})
    def __init__(self, scale: float) -> None:
        self.scale = scale
    def signals(self, sites):
        return [Signal(site.layer, "layer_input", site.slot) for site in sites]
    def scores(self, signal, x, pool):
        return {(signal.layer, signal.slot): self.scale * torch.arange(64.0).expand(*x.shape[:2], 64)}

class Half(TrainingFree):
    '''Units that go say half of what they said.'''
    kinds, points = frozenset({"neuron"}), frozenset()
    def signals(self, sites):
        return []
    def scores(self, signal, x, pool):
        return {(layer, "neuron"): torch.arange(64.0) for layer in range(4)}
    def stand_in(self, site, x, keep):
        return torch.where(keep[..., None], x, x / 2)

class Nothing:
    pass
"""
JOB = ("model=tiny-llama", "predictor=own", "predictor.name=growing")


@pytest.fixture
def own(compose, tmp_path, monkeypatch):
    """own(*overrides): a job that is started in the folder where the method's file lies."""
    (tmp_path / "my_method.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_method", raising=False)
    return lambda *overrides: compose("evaluate", *JOB, *overrides)


def test_a_class_in_the_folder_of_the_job_is_a_method(own, batch):
    cfg = own("predictor._target_=my_method.Growing", "+predictor.scale=2.0")
    checks.check_evaluate(cfg)
    lm = loading.load_lm(cfg)
    scorer, policy = ingredients.get_scorer(cfg, lm), method.policy_of(cfg)
    assert isinstance(scorer, TrainingFree)
    assert policy.kinds == ["neuron"]  # all that it scores
    with sparse(lm.model, scorer, policy) as run:
        run.logits(batch)
    assert torch.equal(run.plan[3, "neuron"][0, 0], torch.arange(64) >= 32)


def test_a_stand_in_of_its_own_is_a_jobs_too_and_refused_before_work_where_it_cannot_be(own, batch):
    cfg = own("predictor._target_=my_method.Half")
    checks.check_evaluate(cfg)
    lm = loading.load_lm(cfg)
    scorer = ingredients.get_scorer(cfg, lm)
    assert stores.get_stand_in(cfg, lm, scorer) == scorer.stand_in
    found = []
    for stand_in in ("auto", "zero"):
        with sparse(lm.model, scorer, method.policy_of(cfg), stand_in=stand_in) as run:
            found.append(run.logits(batch))
    assert not torch.equal(*found)
    with pytest.raises(UserError, match=r"sparsity\.stand_in=zero or mean, or executor=masked, got method"):
        checks.check_evaluate(own("predictor._target_=my_method.Half", "executor=gathered"))
    checks.check_evaluate(
        own("predictor._target_=my_method.Half", "executor=gathered", "sparsity.stand_in=zero")
    )


def test_a_method_is_made_once_to_be_asked_and_anew_to_be_run(own):
    """A scorer may remember what it has seen."""
    cfg, other = (own("predictor._target_=my_method.Growing", f"+predictor.scale={n}") for n in (2.0, 3.0))
    asked = method.recipe_of(cfg)
    assert method.recipe_of(cfg) is asked
    assert method.recipe_of(other).scale == 3.0
    assert ingredients.get_scorer(cfg, loading.load_lm(cfg)) is not asked


def test_its_settings_are_in_the_key_of_a_point(own):
    def key(scale):
        cfg = own("predictor._target_=my_method.Growing", f"+predictor.scale={scale}")
        return point_records.settings_of(cfg, {"content": measures.content_of(cfg)})

    assert key(2.0) == key(2.0)
    assert key(2.0) != key(3.0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [],
            r"predictor\._target_ must name a class, as my_file\.Mine of a file my_file\.py in .*, got None",
        ),
        (["predictor._target_=no_method.Mine"], r"must name a class.*got 'no_method\.Mine'"),
        (["predictor._target_=my_method.Other"], r"must name a class.*got 'my_method\.Other'"),
        (["predictor._target_=my_method.Nothing"], r"is no recipe, for it has no traits.*TrainingFree"),
        (["predictor._target_=my_method.Growing"], r"takes scale: missing .*'scale'"),
        (
            ["predictor._target_=my_method.Growing", "+predictor.scale=1", "+predictor.rank=3"],
            r"takes scale: got an unexpected keyword argument 'rank'",
        ),
        (
            ["predictor._target_=my_method.Growing", "+predictor.scale=1", "sparsity.kinds=[head]"],
            r"sparsity\.kinds must be among \['neuron'\], which are all that predictor=growing scores",
        ),
        (
            ["predictor._target_=my_method.Growing", "+predictor.scale=1", "executor=gathered"],
            r"nets of this framework's own alone, and predictor=growing is none",
        ),
    ],
    ids=str,
)
def test_what_is_no_method_is_refused_in_one_sentence(own, overrides, message):
    with pytest.raises(UserError, match=message):
        checks.check_evaluate(own(*overrides))
