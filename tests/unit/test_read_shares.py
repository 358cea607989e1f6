"""What each method reads of each projection, as its paper's formula has it, counted by the executor."""

from typing import NamedTuple

import pytest
from having import Have

from shadow.data.batches import collate
from shadow.front import sparse
from shadow.models.kinds import weights_of
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.gate import GateMagnitude, GateTimesMeanUp, UpMagnitude
from shadow.scorers.inputs import InputMagnitude, InputNorm
from shadow.scorers.modes import ModeDistance
from shadow.scorers.own_input import SignBits, TruncatedGate, TruncatedNeurons
from shadow.scorers.rank_aware import RankAware
from shadow.scorers.rotated import RotatedInput
from shadow.scorers.statics import ActivationNorm, Fluctuation, Magnitude, WandaSp

E, F, KV, LAYERS = 32, 64, 16, 4  # of the tiny models: the width, neurons, rows of k and of v
CHANNELS = 3 * E + F  # of a layer: inputs of q/k/v, of o, of gate/up, and of down
S = 0.5  # what goes
HALF = (S, S, S, S, S, S, S)
FFN = (1, 1, 1, 1, S, S, S)
ALL = (S, 1, 1, S, S, S, S)  # keys and values of heads that go are written for later tokens


class Formula(NamedTuple):
    """read: the share of q, k, v, o, gate, up and down; more: numbers that are read beside, in a layer."""

    read: tuple[float, ...]
    more: float = 0.0


RANK, ALPHA = 4, 0.8
METHODS = {
    "teal": (InputMagnitude(), Formula(HALF)),
    "wina": (InputNorm(), Formula(HALF, CHANNELS)),
    "scap": (ModeDistance(S, 64), Formula(HALF)),
    "r_sparse": (RankAware(S, ALPHA), Formula((S / ALPHA,) * 7, CHANNELS)),
    "larosa": (RotatedInput(), Formula(HALF, 2 * E * E)),
    "cats": (GateMagnitude(), Formula((1, 1, 1, 1, 1, S, S))),
    "chess": (GateTimesMeanUp(), Formula((1, 1, 1, 1, 1, S, S), F)),
    "m_countdown": (UpMagnitude(), Formula((1, 1, 1, 1, S, 1, S))),
    "d_countdown": (TruncatedNeurons(RANK), Formula(FFN, 2 * RANK * (E + F))),
    "svdp": (TruncatedGate(RANK), Formula(FFN, RANK * (E + F))),
    "magnitude": (Magnitude(), Formula(ALL)),
    "wanda_sp": (WandaSp(), Formula(ALL)),
    "flap": (Fluctuation(), Formula(ALL)),
    "cfsp": (ActivationNorm(), Formula(FFN)),
}


@pytest.fixture(scope="module")
def sample(examples):
    return [collate(examples([12, 9, 10]))]


def share_read(model, recipe, sample):
    scorer = recipe.build(model, Have(sample))
    with sparse(model, scorer, SparsityPolicy(S, dense_layers=[])) as run:
        run.logits(sample[0])
    return 1 - run.bytes()["skipped_of_layers"]


@pytest.mark.parametrize("name", METHODS)
def test_a_gated_model_is_read_as_the_formula_has_it(make_lm, sample, name):
    """To a hundredth; of R-Sparse to what is left of whole ranks, of which there are few here."""
    recipe, formula = METHODS[name]
    sizes = (E * E, KV * E, KV * E, E * E, F * E, F * E, F * E)
    expected = sum(share * size for share, size in zip(formula.read, sizes, strict=True)) + formula.more
    found = share_read(make_lm("llama").model, recipe, sample) * sum(sizes)
    ranks = 4 * max(E + E + 2 * KV, E + 2 * F) if name == "r_sparse" else 0
    assert expected - ranks <= found * 1.01
    assert found <= expected * 1.01


def test_signs_of_a_gate_are_a_sixteenth_of_it(make_lm, sample):
    """Of a model with ReLU and no gate: fc1 and fc2 of what stays, and a bit of each weight of fc1."""
    model = make_lm("opt").model
    layer = 4 * E * E + 2 * E * F
    expected = 4 * E * E + S * 2 * E * F + E * F / 16
    assert weights_of(model).layers == LAYERS * layer
    assert share_read(model, SignBits(), sample) == pytest.approx(expected / layer)
