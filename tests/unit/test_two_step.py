"""The lm_head in two steps: words that stay have exact logits, and the others those of the copy."""

import pytest
import torch
from families import tiny
from having import Have

from shadow.data.batches import collate, logits_of
from shadow.errors import UserError
from shadow.executors.gathered import Gathered
from shadow.fit.thresholds import learn
from shadow.front import sparse
from shadow.jobs import checks
from shadow.models.kinds import find_sites, weights_of
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import Zero
from shadow.scorers.two_step import TwoStepHead

MOST = SparsityPolicy(0.9, dense_layers=[])


@pytest.fixture(scope="module")
def small(examples):
    return collate(examples([9, 5, 12]))


def seen_at_head(model, batch):
    """-> what the head reads and writes, [B, T, E] and [B, T, V], and the logits that come of it."""
    read = {}
    hook = model.get_output_embeddings().register_forward_hook(lambda m, args, y: read.update(x=args[0], y=y))
    logits = logits_of(model, batch)
    hook.remove()
    return read["x"], read["y"], logits


@pytest.mark.parametrize("family", ["opt-350m", "llama", "gemma2", "falcon-7b"])
def test_what_stays_is_exact_and_the_rest_is_the_copys(family, small):
    """By hand, of one position."""
    model = tiny(family)
    x, y, dense = seen_at_head(model, small)
    scorer = TwoStepHead(6).build(model, Have([small]))
    low = x @ scorer.copy.down.T @ scorer.copy.up.T + scorer.copy.bias
    with sparse(model, scorer, MOST) as run:
        found = run.logits(small)
    kept = 257 - int(0.9 * 257)
    cap = getattr(model.config, "final_logit_softcapping", None)
    for row, place in ((0, 3), (2, 11)):
        stays = low[row, place].topk(kept).indices
        expected = low[row, place].clone()
        expected[stays] = y[row, place, stays]
        if cap:
            expected = (expected / cap).tanh() * cap
        torch.testing.assert_close(found[row, place], expected, rtol=1e-3, atol=1e-4)
        assert torch.equal(found[row, place, stays], dense[row, place, stays])
    assert torch.isfinite(found.log_softmax(-1)[small.real()]).all()


@torch.no_grad()
def test_the_copy_is_the_nearest_of_its_rank_to_what_the_head_writes(tiny_llama, small):
    """Of the calibration's logits around their mean: no product of this rank is nearer than their own."""
    x, y, _ = seen_at_head(tiny_llama.model, small)
    x, y = x[small.real()].double(), y[small.real()].double()
    u, s, v = torch.linalg.svd(y - y.mean(0), full_matrices=False)
    least = float((y - y.mean(0) - (u[:, :4] * s[:4]) @ v[:4]).norm())
    copy = TwoStepHead(4).build(tiny_llama.model, Have([small])).copy
    assert float((y - copy(x.float()).double()).norm()) == pytest.approx(least, rel=1e-3)


def test_it_reads_the_copy_and_the_rows_that_stay_and_all_of_the_layers(tiny_llama, small):
    model, rank = tiny_llama.model, 4
    with sparse(model, TwoStepHead(rank).build(model, Have([small])), MOST) as run:
        run.logits(small)
        model.generate(
            torch.tensor([[5, 6, 7]]), max_new_tokens=2, do_sample=False
        )  # asks for the last logit
    (site,) = find_sites(model, ["row"])
    unread = int(0.9 * site.units) * site.cost - rank * (site.units + site.cost) - site.units
    assert run.bytes()["skipped"] == pytest.approx(unread / weights_of(model).all)
    assert run.bytes()["skipped_of_layers"] == 0
    assert run.achieved("row") == pytest.approx(0.9, abs=0.01)


def test_thresholds_of_logits_have_as_many_words_stay_as_the_level_says(tiny_llama, batch):
    model, scorer = tiny_llama.model, TwoStepHead(8).build(tiny_llama.model, Have([batch]))
    policy = SparsityPolicy(0.8, "threshold", dense_layers=[])
    cuts = learn(model, scorer, policy, "token", Zero(), [batch])
    chosen = SparsityPolicy(0.8, "threshold", dense_layers=[], thresholds=cuts)
    with sparse(model, scorer, chosen) as run:
        run.logits(batch)
    assert run.achieved("row") == pytest.approx(0.8, abs=0.01)


def test_level_0_is_the_dense_model(tiny_llama, small):
    with sparse(tiny_llama.model, TwoStepHead(4).build(tiny_llama.model, Have([small])), level=0.0) as run:
        assert torch.equal(run.logits(small), logits_of(tiny_llama.model, small))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"stand_in": "zero"}, r"rows of the lm_head that are not read need a stand-in that says what"),
        (
            {"executor": Gathered()},
            r"executor=gathered reads no rows of the lm_head by a plan yet: use executor=masked",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(tiny_llama, small, others, message):
    scorer = TwoStepHead(4).build(tiny_llama.model, Have([small]))
    with pytest.raises(UserError, match=message), sparse(tiny_llama.model, scorer, MOST, **others):
        pass


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sparsity.decided_at=prompt", r"predictor=two_step_head chooses among words anew"),
        ("sparsity.learnt.windows=8", r"learnt stand-in does not say what rows of the lm_head would write"),
    ],
)
def test_what_the_head_cannot_follow_is_refused_before_a_model_is_loaded(compose, override, message):
    cfg = compose("evaluate", "model=tiny-llama", "predictor=two_step_head", override)
    with pytest.raises(UserError, match=message):
        checks.check_method(cfg)
