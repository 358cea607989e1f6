"""Two methods at once: each has its own units, levels and stand-in, and what both read is counted."""

import pytest
from having import Have

from shadow.data.batches import collate
from shadow.errors import UserError
from shadow.front import sparse
from shadow.jobs import checks, ingredients, loading, method, policies, stores
from shadow.models.kinds import find_sites, weights_of
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.gate import GateMagnitude
from shadow.scorers.inputs import InputMagnitude
from shadow.scorers.joined import Joined
from shadow.scorers.modes import ModeDistance
from shadow.scorers.two_step import TwoStepHead

RANK = 4


@pytest.fixture(scope="module")
def small(examples):
    return collate(examples([9, 5, 12]))


@pytest.mark.parametrize("layers", [InputMagnitude(), ModeDistance(0.5, 64)], ids=["teal", "scap"])
def test_each_drops_its_own_units_as_by_itself(tiny_llama, small, layers):
    """The head's plan in one block, within the block of the layers' method, by hand."""
    model, have = tiny_llama.model, Have([small])
    levels = {"vocabulary": 0.9}
    policy = SparsityPolicy(0.5, dense_layers=[], slot_levels=levels)
    scorer = Joined([layers, TwoStepHead(RANK)]).build(model, have)
    with sparse(model, scorer, policy) as run:
        found = run.logits(small)
    assert (run.achieved("channel"), run.achieved("row")) == (0.5, pytest.approx(0.9, abs=0.01))
    alone = layers.build(model, have)
    with sparse(model, alone, SparsityPolicy(0.5, dense_layers=[])) as by_itself:
        dense_head = by_itself.logits(small)
    exact = found == dense_head
    assert exact[small.real()].sum(-1).min() == 257 - int(0.9 * 257)  # words that stay, of the same states
    (rows,) = find_sites(model, ["row"])
    head = int(0.9 * rows.units) * rows.cost - RANK * (rows.units + rows.cost) - rows.units
    assert run.bytes()["skipped"] == pytest.approx(
        by_itself.bytes()["skipped"] + head / weights_of(model).all
    )
    assert run.bytes()["skipped_of_layers"] == pytest.approx(by_itself.bytes()["skipped_of_layers"])


def test_a_job_learns_thresholds_of_both_at_their_own_levels(compose, batch):
    job = (
        "model=tiny-llama",
        "predictor=teal_two_step",
        "sparsity=threshold",
        "data.windows=8",
        "data.tokens=12",
    )
    more = ("sparsity.level=0.3", "sparsity.slot_levels={vocabulary:0.9}", "make_missing=true")
    cfg = compose("evaluate", *job, *more)
    checks.check_evaluate(cfg)
    lm = loading.load_lm(cfg)
    scorer = ingredients.get_scorer(cfg, lm)
    stand_in = stores.get_stand_in(cfg, lm, scorer)
    policy = policies.get_policy(cfg, lm, scorer, stand_in)
    executor = method.executor_of(cfg)
    with sparse(lm.model, scorer, policy, stand_in=stand_in, executor=executor) as run:
        run.logits(batch)
    assert 0.8 < run.achieved("row") < 0.97
    assert 0.15 < run.achieved("channel") < 0.35


def test_slots_have_levels_of_their_own(tiny_llama, small):
    policy = SparsityPolicy(0.5, dense_layers=[0], slot_levels={"o": 0.75, "gate_up": 0.0})
    with sparse(tiny_llama.model, InputMagnitude(), policy) as run:
        run.logits(small)
    gone = {key: 1 - run.planner.kept[key] / run.planner.total[key] for key in run.planner.total}
    assert {slot: gone[2, slot] for slot in ("qkv", "o", "gate_up", "down")} == {
        "qkv": 0.5,
        "o": 0.75,
        "gate_up": 0.0,
        "down": 0.5,
    }
    assert SparsityPolicy(0.0, slot_levels={"o": 0.5}).prunes((1, "o")) is False


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Joined([InputMagnitude(), InputMagnitude()]), r"predictor\.parts must be several methods"),
        (lambda: Joined([InputMagnitude()]), r"predictor\.parts must be several methods"),
        (lambda: SparsityPolicy(0.5, slot_levels={"k": 0.5}), r"sparsity\.slot_levels must be levels"),
        (lambda: SparsityPolicy(0.5, slot_levels={"o": 1.0}), r"sparsity\.slot_levels must be levels"),
        (lambda: SparsityPolicy(0.5, slot_levels={"o": "x"}), r"sparsity\.slot_levels must be levels"),
        (lambda: SparsityPolicy(0.5, slot_levels=3), r"sparsity\.slot_levels must be levels .*got 3"),
        (lambda: SparsityPolicy(0.5, levels=["o"]), r"levels of single layers must be .*got \['o'\]"),
        (lambda: SparsityPolicy(0.5, "global", slot_levels={"o": 0.1}), r"levels of sites: .* got global"),
        (lambda: SparsityPolicy(0.5, kinds=["channel", "neuron"]), r"channels .* pruned alone"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_gates_and_words_go_together_too(tiny_llama, small):
    scorer = Joined([GateMagnitude(), TwoStepHead(RANK)]).build(tiny_llama.model, Have([small]))
    with sparse(tiny_llama.model, scorer, level=0.5) as run:
        run.logits(small)
    assert run.achieved("neuron") == 0.375
    assert run.achieved("row") == pytest.approx(0.5, abs=0.01)
