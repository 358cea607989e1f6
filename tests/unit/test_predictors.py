"""The nets: which layers a tap scores, and what is learnt beside the static mean."""

import pytest
import torch

from shadow.criteria import CONTEXTUAL
from shadow.criteria.one_pass import score
from shadow.criteria.statistics import STATISTICS
from shadow.data.batches import collate
from shadow.errors import UserError
from shadow.models.kinds import find_sites
from shadow.scorers.fixed import Fixed, random_scores
from shadow.scorers.nets import NetShape, TapNet
from shadow.scorers.oracle import Oracle
from shadow.scorers.predicted import Predicted
from shadow.signals import Signal

UNITS = {"head": 4, "neuron": 64}


def states(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("taps", [[0], [1], [1, 3], [1, 2, 3], [0, 1, 2, 3]])
def test_a_net_scores_every_layer_from_its_first_tap_on(tiny_llama, make_net, taps):
    found = make_net(tiny_llama, taps)(states(5, len(taps)))
    assert {kind: tuple(values.shape) for kind, values in found.items()} == {
        "head": (5, 4 - taps[0], 4),
        "neuron": (5, 4 - taps[0], 64),
    }


@pytest.mark.parametrize(
    ("taps", "ahead", "spans"),
    [
        ([1], 0, [[1, 2, 3]]),
        ([1, 3], 0, [[1, 2], [3]]),
        ([1, 2, 3], 0, [[1], [2], [3]]),
        ([0], 1, [[1, 2, 3]]),
        ([0, 1, 2], 1, [[1], [2], [3]]),
        ([0, 1], 2, [[2], [3]]),
    ],
)
def test_a_tap_scores_the_layers_up_to_the_next_or_so_many_ahead(tiny_llama, make_net, taps, ahead, spans):
    scorer = Predicted(make_net(tiny_llama, taps, ahead=ahead), "scores")
    assert list(scorer.taps) == taps
    assert scorer.first == spans[0][0]
    assert scorer.shape.layers == 4
    of_all = scorer.net(states(2, len(taps)))
    assert {values.shape[1] for values in of_all.values()} == {4 - scorer.first}
    for tap, span in zip(taps, spans):
        found = scorer.scores(Signal(tap, "layer_input"), states(2, 7), None)
        assert set(found) == {(layer, kind) for layer in span for kind in UNITS}
        for (_, kind), values in found.items():
            assert values.shape == (2, 7, UNITS[kind])


def test_a_tap_sees_its_own_state_alone(tiny_llama, make_net):
    net = make_net(tiny_llama, [1, 2, 3])
    one, other = states(5, 3), states(5, 3)
    other[:, 1] = states(5, seed=1)
    for kind in UNITS:
        a, b = net(one)[kind], net(other)[kind]
        assert torch.equal(a[:, 0], b[:, 0])
        assert not torch.equal(a[:, 1], b[:, 1])
        assert torch.equal(a[:, 2], b[:, 2])


def test_one_tap_in_every_layer_is_a_net_a_layer(tiny_llama, make_net):
    """What the whole net says of a layer is what its tap says of it."""
    net = make_net(tiny_llama, [1, 2, 3])
    scorer, x = Predicted(net, "scores"), states(6, 3)
    with torch.no_grad():
        whole = net(x)
    for index, layer in enumerate((1, 2, 3)):
        for kind in UNITS:
            assert torch.equal(
                scorer.scores(Signal(layer, "layer_input"), x[:, index], None)[layer, kind],
                whole[kind][:, index],
            )


def test_an_untrained_net_says_the_same_of_every_state():
    net = TapNet([1], 4, 32, UNITS, NetShape(8, 16, 2))
    for values in net(states(5, 1)).values():
        assert torch.equal(values, values[:1].expand_as(values))


def test_a_rank_wider_than_the_state_adds_nothing():
    wide, square = (
        TapNet([1], 4, 32, UNITS, NetShape(1000, 16, 2)),
        TapNet([1], 4, 32, UNITS, NetShape(32, 16, 2)),
    )
    assert sum(p.numel() for p in wide.parameters()) == sum(p.numel() for p in square.parameters())


def test_a_rank_of_more_than_what_is_said_adds_nothing():
    net = TapNet([1, 3], 4, 32, {"head": 4}, NetShape(1000, 16, 0))
    assert [reader.down.out_features for reader in net.readers] == [8, 4]
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 33 * 8 + 8 * 8 + 33 * 4 + 4 * 4


def test_a_net_of_one_kind_says_nothing_of_the_other(tiny_llama, make_net):
    net = make_net(tiny_llama, [1, 2], kinds=["head"])
    assert net(states(5, 2)).keys() == {"head"}
    assert set(Predicted(net, "scores").scores(Signal(1, "layer_input"), states(2, 7), None)) == {(1, "head")}


def test_the_size_of_a_net_follows_its_shape():
    def size(*shape):
        net = TapNet([1], 4, 32, UNITS, NetShape(*shape))
        return sum(p.numel() for p in net.parameters() if p.requires_grad)

    outputs = 3 * (4 + 64)
    assert size(8, 16, 0) == 33 * 8 + 8 * outputs
    assert size(8, 16, 2) == size(8, 16, 0) + 33 * 16 + 17 * 16 + 16 * 8


@pytest.mark.parametrize(("depth", "linear"), [(0, True), (1, False), (2, False)])
def test_depth_bends_what_is_said_of_a_state(tiny_llama, make_net, depth, linear):
    net = make_net(tiny_llama, [1], depth=depth)
    one, other = states(2, 5, 1), states(2, 5, 1, seed=1)
    for kind in UNITS:
        middle = (net(one)[kind] + net(other)[kind]) / 2
        # float32 sums of some 100 terms
        assert torch.allclose(net((one + other) / 2)[kind], middle, rtol=1e-4, atol=1e-4) == linear


@pytest.mark.parametrize("pooling", ["scores", "mean", "last"])
def test_a_pooled_row_does_not_see_what_lies_outside(tiny_llama, make_net, pooling):
    scorer = Predicted(make_net(tiny_llama, [1]), pooling)
    inside = torch.arange(9) < torch.tensor([4, 9, 1])[:, None]
    one, other = states(3, 9), states(3, 9, seed=1)
    other[inside] = one[inside]
    first, second = (
        scorer.scores(Signal(1, "layer_input"), one, inside),
        scorer.scores(Signal(1, "layer_input"), other, inside),
    )
    for unit, values in first.items():
        assert values.shape == (3, UNITS[unit[1]])
        assert torch.equal(values, second[unit])


@pytest.mark.parametrize("pooling", ["scores", "mean", "last"])
def test_a_row_of_one_position_needs_no_pooling(tiny_llama, make_net, pooling):
    scorer = Predicted(make_net(tiny_llama, [1]), pooling)
    x = states(3, 1)
    pooled, single = (
        scorer.scores(Signal(1, "layer_input"), x, torch.ones(3, 1, dtype=torch.bool)),
        scorer.scores(Signal(1, "layer_input"), x, None),
    )
    for unit in single:
        torch.testing.assert_close(
            pooled[unit], single[unit][:, 0], rtol=1e-5, atol=1e-5
        )  # matmuls of other shape


def test_half_precision_states_are_read_in_float32(tiny_llama, make_net):
    scorer = Predicted(make_net(tiny_llama, [1]), "scores")
    x = states(2, 5).bfloat16()
    for unit, values in scorer.scores(Signal(1, "layer_input"), x, None).items():
        assert values.dtype == torch.float32
        assert torch.equal(values, scorer.scores(Signal(1, "layer_input"), x.float(), None)[unit])


def test_a_scorer_keeps_no_graph(tiny_llama, make_net):
    scorer = Predicted(make_net(tiny_llama, [1]), "scores")
    assert not any(
        values.requires_grad
        for values in scorer.scores(Signal(1, "layer_input"), states(2, 5), None).values()
    )


# Trivial scorers


def test_random_scores_depend_on_the_seed_alone(lm):
    sites = find_sites(lm.model)
    torch.manual_seed(1)
    one = random_scores(sites, 3)
    torch.manual_seed(2)
    assert all(torch.equal(values, one[unit]) for unit, values in random_scores(sites, 3).items())
    assert not torch.equal(one[2, "neuron"], random_scores(sites, 4)[2, "neuron"])
    assert set(one) == {(layer, kind) for layer in range(4) for kind in UNITS}


def test_fixed_scores_read_nothing():
    assert list(Fixed({}).signals([])) == []


def test_an_oracle_has_nothing_to_say_before_it_has_looked():
    with pytest.raises(ValueError, match="oracle must see the sample first"):
        Oracle("fisher").scores(Signal(0, "layer_input"), states(1, 1), None)


@pytest.mark.parametrize("loss", ["answer", "next_token"])
@pytest.mark.parametrize("criterion", CONTEXTUAL)
def test_an_oracle_says_what_the_criterion_found_at_each_token_and_over_a_pool(lm, batch, criterion, loss):
    found, oracle, pool = {}, Oracle(criterion, loss), batch.in_prompt()
    score(
        lm.model,
        batch,
        [criterion],
        lambda name, site, seen: found.update({(site.layer, site.kind): seen}),
        loss=loss,
    )
    oracle.look(lm.model, batch)
    tokens, pooled = (
        oracle.scores(Signal(0, "layer_input"), states(1, 1), None),
        oracle.scores(Signal(0, "layer_input"), states(1, 1), pool),
    )
    assert set(tokens) == set(pooled) == set(found)
    for unit, seen in found.items():
        assert torch.equal(tokens[unit], seen.tokens())
        assert torch.equal(pooled[unit], seen.window(pool))


def test_an_oracles_loss_is_that_of_the_answer_unless_told_otherwise(lm, batch):
    said = []
    for oracle in (Oracle("plainact"), Oracle("plainact", "answer"), Oracle("plainact", "next_token")):
        oracle.look(lm.model, batch)
        said.append(oracle.scores(Signal(0, "layer_input"), states(1, 1), None)[1, "neuron"])
    assert torch.equal(said[0], said[1])
    assert not torch.equal(said[0], said[2])


def test_an_oracle_forgets_the_sample_before(lm, examples):
    one, other = (collate(examples([9], seed=seed)) for seed in (1, 2))
    twice, once = Oracle("fisher"), Oracle("fisher")
    for batch in (one, other):
        twice.look(lm.model, batch)
    once.look(lm.model, other)
    for unit, values in once.scores(Signal(0, "layer_input"), states(1, 1), None).items():
        assert torch.equal(twice.scores(Signal(0, "layer_input"), states(1, 1), None)[unit], values)


@pytest.mark.parametrize("criterion", [*STATISTICS, "magnitude"])
def test_an_oracle_of_what_compares_windows_or_does_not_exist_is_refused_naming_what_it_may_be(criterion):
    with pytest.raises(
        UserError, match=rf"an oracle's criterion must be in .*'plainact'.*, got '{criterion}'"
    ):
        Oracle(criterion)


@torch.no_grad()
def test_an_oracle_of_removal_says_by_how_much_the_loss_is_higher_without_the_unit(lm64, examples):
    """Without it: its columns of the projection that reads it are 0."""
    (example,) = examples([7])
    batch, oracle = collate([example]), Oracle("removal")

    def loss():
        logits = lm64.model(input_ids=batch.ids).logits[0, example.prompt - 1 : -1]
        return torch.nn.functional.cross_entropy(logits, batch.ids[0, example.prompt :])

    oracle.look(lm64.model, batch)
    said, dense = oracle.scores(Signal(0, "layer_input"), states(1, 1), batch.real()), loss()
    assert {unit: values.shape[1] for unit, values in said.items()} == {
        (layer, kind): UNITS[kind] for layer in range(4) for kind in UNITS
    }
    for site in find_sites(lm64.model):
        width = site.module.in_features // site.units
        for unit in (0, 3):
            columns = site.module.weight[:, unit * width : (unit + 1) * width]
            kept = columns.clone()
            columns.zero_()
            expected = float(loss() - dense)
            columns.copy_(kept)
            # the oracle's losses, of about 5 nats, are float32
            assert float(said[site.layer, site.kind][0, unit]) == pytest.approx(expected, abs=2e-6)


def test_an_oracle_of_removal_has_nothing_to_say_of_a_single_token(lm, examples):
    oracle = Oracle("removal")
    oracle.look(lm.model, collate(examples([4])))
    with pytest.raises(UserError, match=r"use sparsity\.decided_at=prompt or sequence"):
        oracle.scores(Signal(0, "layer_input"), states(1, 1), None)
