"""Gemma-3-270M from its four packages: a language model only for whom each sequence begins with BOS."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import instantiate

from shadow.data.batches import collate
from shadow.data.texts import builtin_topics, text_windows
from shadow.front import sparse
from shadow.measures.evaluation import perplexity
from shadow.models.kinds import find_sites
from shadow.models.load import load
from shadow.models.sites import count_units
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.fixed import Fixed, random_scores

pytestmark = pytest.mark.slow
CONF = Path(__file__).parents[2] / "conf" / "model" / "gemma-3-270m.yaml"
TOPICS = builtin_topics("eval", 0.3, 0)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    source = yaml.safe_load(CONF.read_text())["source"]
    packages = [source["package"], *(part.partition("/")[0] for part in source["parts"])]
    if any(find_spec(package) is None for package in packages):
        pytest.skip("the packages with Gemma's weights are not installed: make setup MODEL=gemma-3-270m")
    cache = tmp_path_factory.mktemp("cache") / "gemma-3-270m"
    lm = load(instantiate(source | {"cache": str(cache)}), None, "float32", None)
    assert not list(cache.glob("*.gguf"))  # its weights lie there once
    return lm


def windows_of(lm):
    return text_windows(TOPICS, lm.tokenizer, 2, 32, 0.5, 0, "measure.windows")


def measured(lm, level=0.0):
    scorer = Fixed(random_scores(find_sites(lm.model), 0))
    with sparse(lm.model, scorer, SparsityPolicy(level)) as run:
        return perplexity(run, lm, windows_of(lm), 4)["perplexity"].value


def test_every_layer_has_its_units(gemma):
    assert count_units(find_sites(gemma.model)) == {"head": 4, "neuron": 2048}
    assert len(find_sites(gemma.model)) == 2 * 18


def test_level_0_is_the_dense_model_bit_for_bit(gemma, dense):
    batch = collate(
        [window._replace(ids=window.ids[: 24 + 2 * i]) for i, window in enumerate(windows_of(gemma))]
    )
    with sparse(gemma.model, Fixed(random_scores(find_sites(gemma.model), 0)), SparsityPolicy(0.0)) as run:
        assert torch.equal(run.logits(batch), dense(gemma, batch))


def test_without_bos_it_reads_several_times_worse_and_sparse_worse_than_dense(gemma):
    dense, pruned = measured(gemma), measured(gemma, 0.3)
    gemma.tokenizer.add_bos_token = False
    try:
        without = measured(gemma)
    finally:
        gemma.tokenizer.add_bos_token = True
    assert dense * 3 < without
    assert dense * 1.2 < pruned
