"""The same promises on SmolLM2, a language model that has learnt something."""

from pathlib import Path

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM

from shadow.data.batches import collate
from shadow.data.tasks import load_tasks, task_specs
from shadow.data.texts import builtin_topics, questions, text_windows
from shadow.front import sparse
from shadow.measures.evaluation import choice_accuracy, perplexity
from shadow.measures.sparse_hf import SparseHFLM
from shadow.models.kinds import find_sites
from shadow.models.load import load
from shadow.models.sites import count_units
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.fixed import Fixed, random_scores
from shadow.scorers.oracle import Oracle

pytestmark = pytest.mark.slow
TOPICS = builtin_topics("eval", 0.3, 0)


@pytest.fixture(scope="module")
def real(smollm2):
    return load(smollm2, None, "float32", None)


@pytest.fixture(scope="module")
def windows(real):
    return text_windows(TOPICS, real.tokenizer, 4, 48, 0.5, 0, "measure.windows")


def test_it_is_dequantised_once_and_the_second_load_gives_the_same_weights(real, smollm2):
    cache = Path(smollm2.keywords["cache"])
    before = {file: file.stat().st_mtime_ns for file in cache.iterdir()}
    second = load(smollm2, None, "float32", None)
    assert {file: file.stat().st_mtime_ns for file in cache.iterdir()} == before
    assert 130e6 < real.model.num_parameters() < 140e6
    weights = second.model.state_dict()
    for name, values in real.model.state_dict().items():
        assert values.dtype == torch.float32
        assert torch.equal(values, weights[name]), name


def test_it_continues_a_sentence_as_a_language_model_does(real):
    """Weights read in the wrong order would still load."""
    ids = real.tokenizer("The capital of France is", return_tensors="pt").input_ids
    found = real.model.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert "Paris" in real.tokenizer.decode(found[0])


def test_it_has_grouped_query_attention(real):
    assert count_units(find_sites(real.model)) == {"head": 9, "neuron": 1536}
    assert real.model.config.num_key_value_heads == 3


@pytest.mark.parametrize("name", ["fixed", "oracle"])
def test_level_0_is_the_dense_model_bit_for_bit(real, windows, dense, hooks_on, name):
    batch = collate([window._replace(ids=window.ids[: 30 + 2 * i]) for i, window in enumerate(windows)])
    scorer = Fixed(random_scores(find_sites(real.model), 0)) if name == "fixed" else Oracle("plainact")
    with sparse(real.model, scorer, SparsityPolicy(0.0)) as run:
        assert torch.equal(run.logits(batch), dense(real, batch))
    assert hooks_on(real.model) == 0


def test_dropping_what_matters_least_costs_less_than_dropping_anything(real, windows):
    """Levels as in the paper's curves: the oracle of its own tokens, and units drawn at random."""
    found = {}
    for name, scorer in {
        "oracle": Oracle("l2_norm"),
        "random": Fixed(random_scores(find_sites(real.model), 0)),
    }.items():
        with sparse(real.model, scorer, SparsityPolicy(0.5)) as run:
            found[name] = perplexity(run, real, windows, 8)["perplexity"].value
    with sparse(real.model, Fixed({}), SparsityPolicy(0.0)) as run:
        found["dense"] = perplexity(run, real, windows, 8)["perplexity"].value
    assert found["dense"] < found["oracle"] < found["random"] / 3


@pytest.mark.parametrize("criterion", ["plainact", pytest.param("l2_norm", marks=pytest.mark.nightly)])
def test_batch_size_1_and_8_give_the_same_accuracy_and_sparsity(real, criterion):
    asked = questions(TOPICS, real.tokenizer, 3, 3, 24, 8, 0)
    results = []
    for batch_size in (1, 8):
        with sparse(real.model, Oracle(criterion), SparsityPolicy(0.3), "prompt") as run:
            results.append((choice_accuracy(run, asked, batch_size), run.planner.kept, run.planner.total))
    assert results[0] == results[1]


@pytest.mark.usefixtures("tasks")
@pytest.mark.parametrize("task", ["piqa", pytest.param("rte", marks=pytest.mark.nightly)])
def test_dense_answers_to_real_questions_are_those_of_lm_evals_own_model(
    real, shared_data, task_manager, task
):
    samples = []
    own = HFLM(pretrained=real.model, tokenizer=real.tokenizer, batch_size=4)
    with sparse(real.model, Fixed({}), SparsityPolicy(0.0)) as run:
        for model in (own, SparseHFLM(run, real, 4)):
            found = simple_evaluate(
                model=model,
                tasks=list(load_tasks(task_manager, task_specs([task], str(shared_data))).values()),
                task_manager=task_manager,
                limit=4,
                num_fewshot=0,
                bootstrap_iters=0,
                log_samples=True,
            )
            samples.append([sample["resps"] for sample in found["samples"][task]])
    assert len(samples[0]) == 4
    assert samples[0] == samples[1]
