"""What the Python API says of itself, and of what it is wrongly given."""

import importlib.metadata
from pathlib import Path

import pytest
import torch

import shadow
from shadow.errors import UserError
from shadow.models.kinds import find_sites
from shadow.scorers.fixed import Fixed
from shadow.scorers.predicted import Predicted


def zeros(lm, wrong: int = 0) -> Fixed:
    """One score a unit, or so many more."""
    return Fixed({site.key: torch.zeros(site.units + wrong) for site in find_sites(lm.model)})


def test_the_package_knows_its_version():
    assert shadow.__version__ == importlib.metadata.version("shadow-llm")
    with pytest.raises(AttributeError, match="no attribute 'verzion'"):
        shadow.verzion  # noqa: B018


def test_a_predictor_says_what_it_scores(tiny_llama, make_net):
    said = repr(Predicted(make_net(tiny_llama, [1]), "scores"))
    assert said.startswith("Predicted(0.00")
    assert "M parameters; scores 4 heads and 64 neurons in each of layers 1 to 3 from taps [1]" in said
    assert said.endswith("thresholds for levels none)")


@pytest.mark.parametrize("name", ["someone/predictor", Path("folder")], ids=str)
def test_a_name_is_no_scorer_and_the_call_that_loads_it_is_said(tiny_llama, name):
    cure = rf"got the name '{name}': give shadow\.load_predictor\('{name}'\)"
    with pytest.raises(UserError, match=cure), shadow.sparse(tiny_llama.model, name, level=0.5):
        pass


def test_what_has_no_scores_is_no_scorer(tiny_llama):
    with pytest.raises(UserError, match="int has no kinds"), shadow.sparse(tiny_llama.model, 3, level=0.5):
        pass


def test_a_kind_that_there_is_not_is_refused(tiny_llama, batch):
    with shadow.sparse(tiny_llama.model, zeros(tiny_llama), level=0.5) as run:
        run.logits(batch)
        assert run.achieved("neuron") > 0
        with pytest.raises(UserError, match=r"must be one of \['head', 'neuron', .* got 'neurons'"):
            run.achieved("neurons")


def test_scores_that_are_not_one_a_unit_are_refused(tiny_llama):
    wrong = r"the scores of site \(1, 'head'\) must be one for each of its \d+ units, .* got \["
    model, scorer = tiny_llama.model, zeros(tiny_llama, wrong=1)
    with pytest.raises(UserError, match=wrong), shadow.sparse(model, scorer, level=0.5):
        pass
