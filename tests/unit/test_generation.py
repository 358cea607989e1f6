"""`model.generate` inside `sparse`: the plan of the prompt holds while tokens are added one by one."""

import pytest
import torch

from shadow.data.batches import Example, collate
from shadow.front import sparse
from shadow.models.kinds import find_sites
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.fixed import Fixed, random_scores
from shadow.scorers.predicted import Predicted

POLICY = SparsityPolicy(0.5)
NEW = 6


def generate(lm, ids, mask=None):
    return lm.model.generate(
        ids,
        attention_mask=torch.ones_like(ids) if mask is None else mask,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
    )


def step_by_step(lm, run, ids, decided_at):
    """Greedy tokens without a cache: every step runs the whole text, whose prompt stays the first `ids`."""
    text = list(ids)
    for _ in range(NEW):
        logits = run.logits(collate([Example(text, len(ids) if decided_at == "prompt" else len(text))]))
        logits[..., 0] = -torch.inf  # min_new_tokens keeps the end of text away
        text.append(int(logits[0, len(text) - 1].argmax()))
    return text


@pytest.mark.parametrize("pooling", ["scores", "mean", "last"])
@pytest.mark.parametrize("taps", [[1], [1, 2, 3]])
def test_generating_keeps_the_plan_of_the_prompt(lm, make_net, examples, pooling, taps):
    prompt = examples([9])[0].ids
    scorer = Predicted(make_net(lm, taps), pooling)
    with sparse(lm.model, scorer, POLICY, "prompt") as run:
        run.logits(collate([Example(prompt, 9)]))
        expected = dict(run.plan)
    with sparse(lm.model, scorer, POLICY, "prompt") as run:
        generate(lm, torch.tensor([prompt]))
        assert run.plan.keys() == expected.keys()
        for unit in expected:
            assert torch.equal(run.plan[unit], expected[unit])
    assert run.achieved("neuron") == 0.375


@pytest.mark.parametrize("decided_at", ["token", "prompt"])
@pytest.mark.parametrize("taps", [[1], [1, 2, 3]])
def test_generating_with_a_cache_gives_the_tokens_of_whole_passes(lm64, make_net, examples, decided_at, taps):
    prompt = examples([9])[0].ids
    scorer = Predicted(make_net(lm64, taps), "scores")
    with sparse(lm64.model, scorer, POLICY, decided_at) as run:
        expected = step_by_step(lm64, run, prompt, decided_at)
    with sparse(lm64.model, scorer, POLICY, decided_at):
        assert generate(lm64, torch.tensor([prompt]))[0].tolist() == expected


def test_generating_with_fixed_scores_gives_the_tokens_of_whole_passes(lm64, examples):
    prompt = examples([9])[0].ids
    scorer = Fixed(random_scores(find_sites(lm64.model), 0))
    with sparse(lm64.model, scorer, POLICY, "prompt") as run:
        assert generate(lm64, torch.tensor([prompt]))[0].tolist() == step_by_step(lm64, run, prompt, "prompt")


def test_a_second_prompt_gets_its_own_plan(lm, make_net, examples):
    one, other = (torch.tensor([example.ids]) for example in examples([9, 11]))
    scorer = Predicted(make_net(lm, [1]), "scores")
    with sparse(lm.model, scorer, POLICY, "prompt"):
        expected = generate(lm, other)
    with sparse(lm.model, scorer, POLICY, "prompt"):
        generate(lm, one)
        assert torch.equal(generate(lm, other), expected)


@pytest.mark.parametrize("pooling", ["scores", "mean", "last"])
def test_a_prompt_padded_on_the_left_gets_the_plan_that_it_gets_alone(lm64, make_net, examples, pooling):
    """As `generate` wants batches of prompts."""
    short, long = (example.ids for example in examples([5, 9]))
    ids = torch.tensor([[0] * 4 + short, long])
    mask = (ids != 0).long()
    scorer = Predicted(make_net(lm64, [1]), pooling)
    with sparse(lm64.model, scorer, POLICY, "prompt") as run:
        found = generate(lm64, ids, mask)
        together = dict(run.plan)
    for row, prompt in enumerate((short, long)):
        with sparse(lm64.model, scorer, POLICY, "prompt") as run:
            alone = generate(lm64, torch.tensor([prompt]))
            for unit, keep in run.plan.items():
                assert torch.equal(together[unit][row], keep[0]), unit
        assert torch.equal(found[row, -NEW:], alone[0, -NEW:])


def test_generating_dense_gives_the_tokens_of_the_plain_model(lm, make_net, examples, hooks_on):
    ids = torch.tensor([examples([9])[0].ids])
    expected = generate(lm, ids)
    with sparse(lm.model, Predicted(make_net(lm, [1]), "scores"), SparsityPolicy(0.0), "prompt"):
        assert torch.equal(generate(lm, ids), expected)
    assert hooks_on(lm.model) == 0
