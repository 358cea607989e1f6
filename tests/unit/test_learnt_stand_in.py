"""Learnt stand-ins: numbers behind dropped units, fitted to what the dense model says."""

from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from families import FAMILIES, tiny

from shadow.data.batches import collate, logits_of
from shadow.errors import UserError
from shadow.executors.gathered import Gathered
from shadow.fit.stand_ins import StandInModule, divergence, loader
from shadow.fit.thresholds import learn
from shadow.front import sparse
from shadow.jobs import ingredients, keys, learnt, loading, policies, stores
from shadow.models.kinds import find_sites
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import Learnt, Zero
from shadow.scorers.fixed import Fixed, random_scores
from shadow.scorers.inputs import InputMagnitude

HALF = SparsityPolicy(0.5, kinds=("channel",))
THRESHOLDS = SparsityPolicy(0.5, kinds=("channel",), scope="threshold")
JOB = (
    *("model=tiny-llama", "predictor=teal", "sparsity=threshold", "data.windows=24", "data.tokens=12"),
    *("sparsity.learnt.windows=8", "sparsity.learnt.batch_size=4", "callbacks.progress=null"),
    *("+trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1"),
)


def of(model, policy=HALF):
    return Learnt([site for site in find_sites(model, ("channel",)) if policy.prunes(site.key)], Zero())


def drawn(stand_in):
    draw = torch.Generator().manual_seed(0)
    for values in stand_in.parameters():
        values.data += 0.1 * torch.randn(values.shape, generator=draw)
    return stand_in


@pytest.mark.parametrize("family", ["opt-350m", "llama", "gemma3_text", "phi3", "pythia", "falcon-7b"])
@torch.no_grad()
def test_what_projections_write_behind_pruned_sites_is_changed_by_the_numbers(family, examples):
    """By hand: a model whose readers' weights and biases have taken them in."""
    assert family in FAMILIES
    model, by_hand, batch = tiny(family), tiny(family), collate(examples([9, 5, 12]))
    stand_in, policy = drawn(of(model)), SparsityPolicy(0.5, kinds=("channel",), dense_layers=(0,))
    for site in find_sites(by_hand, ("channel",)):
        for reader, projection in enumerate(site.readers if policy.prunes(site.key) else ()):
            name = f"{site.layer}/{site.slot}/{reader}"
            factor, addend = stand_in.factors[name], stand_in.addends[name]
            bias = 0 if projection.bias is None else projection.bias.data
            projection.weight.data = projection.weight.data * factor[:, None]
            projection.bias = torch.nn.Parameter(bias * factor + addend)
    with sparse(model, InputMagnitude(), policy, stand_in=stand_in) as run:
        found = run.logits(batch)
    with sparse(by_hand, InputMagnitude(), policy) as run:
        expected = run.logits(batch)
    torch.testing.assert_close(found[batch.real()], expected[batch.real()], rtol=1e-4, atol=1e-5)


def test_nothing_changes_where_nothing_is_pruned_and_before_it_is_learnt(tiny_llama, batch, dense):
    model = tiny_llama.model
    for policy in (SparsityPolicy(0.0), SparsityPolicy(0.5, tokens=100, kinds=("channel",))):
        with sparse(model, InputMagnitude(), policy, stand_in=drawn(of(model))) as run:
            assert torch.equal(run.logits(batch), dense(tiny_llama, batch))
    with sparse(model, InputMagnitude(), HALF) as run:
        expected = run.logits(batch)
    with sparse(model, InputMagnitude(), HALF, stand_in=of(model)) as run:
        assert torch.equal(run.logits(batch), expected)


def test_its_numbers_are_counted_as_weights_that_are_read(tiny_llama, batch):
    stand_in, shares = of(tiny_llama.model), []
    for one in (Zero(), stand_in):
        with sparse(tiny_llama.model, InputMagnitude(), HALF, stand_in=one) as run:
            run.logits(batch)
        shares.append(run.bytes())
    assert stand_in.weights == 2 * sum(
        projection.out_features
        for site in find_sites(tiny_llama.model, ("channel",))
        if HALF.prunes(site.key)
        for projection in site.readers
    )
    assert shares[1]["added"] > shares[0]["added"] == 0
    assert shares[1]["skipped"] == pytest.approx(shares[0]["skipped"] - shares[1]["added"])


def test_fitting_brings_the_sparse_model_nearer_to_the_dense_one(tiny_llama, examples):
    model, stand_in, windows = tiny_llama.model, of(tiny_llama.model), examples([12] * 16)
    with sparse(model, InputMagnitude(), HALF, stand_in=stand_in) as run:

        def distance():
            with torch.no_grad(), run.planner.looking():
                dense = logits_of(model, collate(windows))
            return divergence(dense, run.logits(collate(windows)), collate(windows).real())

        before = distance()
        trainer = pl.Trainer(
            max_epochs=10,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            log_every_n_steps=1,
        )
        trainer.fit(StandInModule(run, stand_in, 0.003), loader(windows, 4, 0))
        assert distance() < 0.9 * before
    assert all(weight.grad is None for weight in model.parameters())


def test_a_job_learns_it_once_and_finds_it_again(compose, artifacts, caplog):
    cfg = compose("evaluate", *JOB)
    lm = loading.load_lm(cfg)
    scorer = ingredients.get_scorer(cfg, lm, [])
    within = stores.get_stand_in(cfg, lm, scorer)
    policy = policies.get_policy(cfg, lm, scorer, within)
    moved, first = learnt.with_learnt(cfg, lm, scorer, policy, within, [])
    made = (keys.learnt_folder(cfg) / "config.json").stat().st_mtime_ns
    found, again = learnt.with_learnt(cfg, lm, scorer, policy, within, [])
    assert found.thresholds == moved.thresholds
    assert moved.thresholds.keys() == policy.thresholds.keys()
    assert moved.thresholds != policy.thresholds
    assert (keys.learnt_folder(cfg) / "config.json").stat().st_mtime_ns == made
    assert all(torch.equal(first.state_dict()[name], values) for name, values in again.state_dict().items())
    assert any(bool((values != 1).any()) for values in first.factors.values())


def test_thresholds_move_to_where_the_level_goes_of_what_is_scored_with_it(tiny_llama, examples):
    """The stand-in doubles every number that is written: by the thresholds of before too little would go."""
    model, windows = tiny_llama.model, examples([12] * 8)
    thresholds = learn(model, InputMagnitude(), THRESHOLDS, "token", Zero(), [collate(windows)])
    policy, stand_in, shares = replace(THRESHOLDS, thresholds=thresholds), of(model), []
    for factor in stand_in.factors.values():
        factor.data *= 2
    with sparse(model, InputMagnitude(), policy, stand_in=stand_in) as run:
        run.logits(collate(windows))
        shares.append(run.achieved("channel"))
        module = StandInModule(run, stand_in, 0.0, moves=True)
        settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = pl.Trainer(max_epochs=2, accelerator="cpu", log_every_n_steps=1, **settings)
        trainer.fit(module, loader(windows, 4, 0))
    with sparse(
        model, InputMagnitude(), replace(policy, thresholds=module.thresholds), stand_in=stand_in
    ) as run:
        run.logits(collate(windows))
        shares.append(run.achieved("channel"))
    expected = 0.5 * 3 / 4  # of four layers the first is dense
    assert shares[0] < expected - 0.02
    assert shares[1] == pytest.approx(expected, abs=0.005)


def test_points_know_it_and_thresholds_do_not(compose):
    plain, other = compose("evaluate", *JOB, "sparsity.learnt.windows=0"), compose("evaluate", *JOB)
    longer = compose("evaluate", *JOB, "sparsity.learnt.epochs=5")
    assert keys.budgets_file(plain) == keys.budgets_file(other)
    assert "learnt" not in keys.method_settings(plain)["sparsity"]
    assert keys.method_settings(plain) != keys.method_settings(other) != keys.method_settings(longer)


def test_what_cannot_carry_it_out_refuses(tiny_llama):
    policy = SparsityPolicy(0.5)
    sites = find_sites(tiny_llama.model)
    stand_in = Learnt([site for site in sites if policy.prunes(site.key)], Zero())
    scorer = Fixed(random_scores(sites, 0))
    with (
        pytest.raises(UserError, match="changes what is written behind channels alone"),
        sparse(tiny_llama.model, scorer, policy, stand_in=stand_in, executor=Gathered()),
    ):
        pass
