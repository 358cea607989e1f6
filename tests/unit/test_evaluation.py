"""Perplexity and the choice task against direct computations."""

import math
import statistics

import pytest
import torch
import torch.nn.functional as F
from pairwise import pairwise

from shadow.data.batches import Example, collate
from shadow.data.texts import Question, builtin_topics, questions
from shadow.front import sparse
from shadow.measures.divergence import Divergence, divergence
from shadow.measures.evaluation import choice_accuracy, perplexity
from shadow.models.kinds import find_sites
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.fixed import Fixed, random_scores
from shadow.scorers.oracle import Oracle
from shadow.scorers.predicted import Predicted

DENSE, HALF = SparsityPolicy(0.0), SparsityPolicy(0.5)


@pytest.fixture
def text_windows(lm):
    """Ten windows of text, of different length, with prompts of different length."""
    text = builtin_topics("eval", 0.3, 0)[0]
    ids = lm.tokenizer(text)["input_ids"]
    return [Example(ids[40 * i : 40 * i + 20 + i], 3 * i) for i in range(10)]


@torch.no_grad()
def losses_of(lm, window):
    """Of one window alone: the loss at each token after the prompt (and after the first)."""
    ids = torch.tensor(window.ids)
    logits = lm.model(input_ids=ids[None]).logits[0]
    start = max(window.prompt, 1)
    return F.cross_entropy(logits[start - 1 : -1], ids[start:], reduction="none")


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_perplexity_is_the_exponential_of_the_mean_loss(lm, text_windows, batch_size):
    with sparse(lm.model, Fixed({}), DENSE) as run:
        found = perplexity(run, lm, text_windows, batch_size)
    losses = [losses_of(lm, window) for window in text_windows]
    tokens = sum(len(loss) for loss in losses)
    words = sum(len(lm.tokenizer.decode(w.ids[max(w.prompt, 1) :]).split()) for w in text_windows)
    total = float(sum(loss.sum() for loss in losses))
    # float32 logits of other batch shapes
    assert found["perplexity"].value == pytest.approx(math.exp(total / tokens), rel=1e-5)
    assert found["word_perplexity"].value == pytest.approx(math.exp(total / words), rel=1e-4)
    # of a ratio of sums: a window counts by its loss less what its length lets expect
    beyond = [float(loss.sum()) - total / tokens * len(loss) for loss in losses]
    error = math.sqrt(sum(x * x for x in beyond) / 9 * 10) / tokens
    assert found["perplexity"].stderr == pytest.approx(error * math.exp(total / tokens), rel=1e-3)
    assert math.exp(statistics.fmean(found["perplexity"].samples)) == pytest.approx(found["perplexity"].value)


def test_divergence_is_kl_over_the_scored_tokens_and_how_often_the_likeliest_agrees(lm, text_windows):
    scorer = Fixed(random_scores(find_sites(lm.model), 0))
    with sparse(lm.model, scorer, DENSE) as run:
        none = divergence(run, text_windows, 4)
    assert (none["kl"].value, none["top1"].value) == (0.0, 1.0)
    with sparse(lm.model, scorer, HALF) as run:
        found, beside = divergence(run, text_windows, 4), Divergence(run)
        perplexity(run, lm, text_windows, 4, beside.add)  # in one pass
        assert beside.metrics() == found
        sparsely = [run.logits(collate([window]))[0] for window in text_windows]
    far, same = [], []
    for window, row in zip(text_windows, sparsely, strict=True):
        dense = lm.model(input_ids=torch.tensor([window.ids])).logits[0]
        scored = slice(max(window.prompt, 1) - 1, -1)
        wanted, got = (one[scored].log_softmax(-1) for one in (dense, row))
        far += (wanted.exp() * (wanted - got)).sum(-1).tolist()
        same += (wanted.argmax(-1) == got.argmax(-1)).tolist()
    assert found["kl"].value == pytest.approx(statistics.fmean(far), rel=1e-4)
    assert found["top1"].value == pytest.approx(statistics.fmean(same))
    assert 0 < found["top1"].value < 1


def test_perplexity_without_a_prompt_counts_every_token_but_the_first(lm, text_windows):
    whole = [window._replace(prompt=0) for window in text_windows]
    with sparse(lm.model, Fixed({}), DENSE) as run:
        assert perplexity(run, lm, whole, 4) == perplexity(run, lm, [w._replace(prompt=1) for w in whole], 4)


def test_the_standard_error_shrinks_with_the_root_of_the_number_of_windows(lm, text_windows):
    same_length = [window._replace(ids=window.ids[:20], prompt=5) for window in text_windows]
    with sparse(lm.model, Fixed({}), DENSE) as run:
        once, four_times = (perplexity(run, lm, same_length * n, 8)["perplexity"] for n in (1, 4))
    assert four_times.value == pytest.approx(once.value, rel=1e-5)
    # stdev divides by n - 1
    assert four_times.stderr == pytest.approx(once.stderr / 2 * math.sqrt(9 / 10 * 40 / 39), rel=1e-4)


def test_one_window_has_no_standard_error(lm, text_windows):
    with sparse(lm.model, Fixed({}), DENSE) as run:
        assert perplexity(run, lm, text_windows[:1], 1)["perplexity"].stderr is None


def test_a_loss_beyond_floats_does_not_break_perplexity(make_lm, text_windows):
    lm = make_lm("llama")
    lm.model.lm_head.weight.data.mul_(1e5)
    with sparse(lm.model, Fixed({}), DENSE) as run:
        assert math.isfinite(perplexity(run, lm, text_windows, 8)["perplexity"].value)


# Choices


@pytest.fixture
def asked(lm):
    return questions(builtin_topics("eval", 0.3, 0), lm.tokenizer, 25, 4, 16, 5, 0)


def test_the_choice_is_the_continuation_with_the_least_loss(lm, asked):
    right = []
    for question in asked:
        losses = [float(losses_of(lm, Example(question.context + o, 16)).sum()) for o in question.options]
        right.append(losses.index(min(losses)) == question.gold)
    with sparse(lm.model, Fixed({}), DENSE) as run:
        (found,) = choice_accuracy(run, asked, 8).values()
    assert found.samples == right
    assert found.value == sum(right) / 25
    assert found.stderr == pytest.approx(math.sqrt(found.value * (1 - found.value) / 24))


@pairwise(
    "name, decided_at",
    ["fixed", "unified", "layerwise", "l2_norm", "fisher"],
    ["token", "prompt", "sequence"],
)
def test_batch_size_1_and_8_give_the_same_accuracy_and_sparsity(lm, make_net, asked, name, decided_at):
    if name in ("unified", "layerwise"):
        scorer = Predicted(make_net(lm, [1] if name == "unified" else [1, 2, 3]), "scores")
    else:
        scorer = Fixed(random_scores(find_sites(lm.model), 0)) if name == "fixed" else Oracle(name)
    results = []
    for batch_size in (1, 8):
        with sparse(lm.model, scorer, HALF, decided_at) as run:
            results.append((choice_accuracy(run, asked[:4], batch_size), run.planner.kept, run.planner.total))
    assert results[0] == results[1]


def test_the_options_of_a_question_share_one_plan_when_it_is_decided_at_the_prompt(lm, make_net):
    """The context is the same, so nothing but the options may differ."""
    draw = torch.Generator().manual_seed(0)
    context, *options = (torch.randint(1, 257, (9,), generator=draw).tolist() for _ in range(5))
    with sparse(lm.model, Predicted(make_net(lm, [1]), "scores"), HALF, "prompt") as run:
        choice_accuracy(run, [Question(context, options, 0)], 4)
        for keep in run.plan.values():
            assert torch.equal(keep, keep[:1].expand_as(keep))


def test_equal_questions_are_answered_alike_wherever_they_stand(lm, make_net, asked):
    scorer = Predicted(make_net(lm, [1]), "scores")
    with sparse(lm.model, scorer, HALF) as run:
        one = choice_accuracy(run, asked[:1], 3)["choices/acc"].value
        assert choice_accuracy(run, asked[:1] * 7, 3)["choices/acc"].value == one
