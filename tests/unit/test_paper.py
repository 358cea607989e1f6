"""The reference's own nets and targets, and nets that are fed from a dense pass."""

import math

import pytest
import torch
from drawn_sites import sites_of
from torch.nn import functional as F

from shadow.artifacts.hub import load_predictor, save_predictor
from shadow.data.batches import Example, collate, last_of
from shadow.errors import UserError
from shadow.executors.gathered import Gathered
from shadow.executors.masked import Masked
from shadow.front import sparse
from shadow.models.kinds import find_sites
from shadow.models.sites import count_units
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.nets import TapNet
from shadow.scorers.paper_nets import MinMax, MLPShape, min_max, read_raw
from shadow.scorers.predicted import DenseFed, Predicted
from shadow.signals import Signal, hook_signals, hook_sites

E, LAYERS, UNITS = 32, 4, {"head": 4, "neuron": 64}


@pytest.fixture
def paper_net():
    def make(taps, scaled=True, seed=0):
        torch.manual_seed(seed)
        return TapNet(taps, LAYERS, E, UNITS, MLPShape(head=20, neuron=10, scaled=scaled)).eval()

    return make


def contexts_of(lm, batch):
    """What each layer's heads give out in a dense pass, [B, T, E]."""
    found = {}

    def keep(site, x):
        if site.kind == "head":
            found[site.layer] = x.flatten(2).clone()

    with torch.no_grad(), hook_sites(lm.model, find_sites(lm.model), keep):
        lm.model(input_ids=batch.ids, attention_mask=batch.real().long(), use_cache=False)
    return found


# The nets


def test_the_widths_are_the_references():
    """Two nets of Linear, ReLU, Linear with biases; the figures of its own size table."""
    with torch.device("meta"):
        net = TapNet([0], 24, 2048, {"head": 32, "neuron": 8192}, MLPShape(2048, 1024, scaled=True))
    trained = sum(values.numel() for values in net.parameters() if values.requires_grad)
    heads = 2048 * 2048 + 2048 + 2048 * 24 * 32 + 24 * 32
    neurons = 2048 * 1024 + 1024 + 1024 * 24 * 8192 + 24 * 8192
    assert trained == heads + neurons
    assert round(trained / 1e6) == 209  # of OPT-1.3B, 16 % of it


def test_a_net_says_what_its_formula_says(paper_net):
    net, x = paper_net([0]), torch.randn(5, 1, E)
    nets = net.reader(0).nets
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    scaled = ((x - low) / (high - low))[:, 0]
    for kind in UNITS:
        first, _, last = nets[kind]
        told = F.relu(scaled @ first.weight.T + first.bias) @ last.weight.T + last.bias
        torch.testing.assert_close(net(x)[kind], told.view(5, LAYERS, UNITS[kind]))


def test_an_unscaled_net_reads_the_numbers_as_they_are(paper_net):
    scaled, raw = paper_net([0]), paper_net([0], scaled=False)
    raw.load_state_dict(scaled.state_dict())
    x = torch.randn(5, 1, E)
    torch.testing.assert_close(scaled(x)["head"], scaled(3 * x)["head"])
    assert not torch.allclose(raw(x)["head"], raw(3 * x)["head"])
    torch.testing.assert_close(raw(min_max(x, (-1,)))["neuron"], scaled(x)["neuron"])


@pytest.mark.parametrize("attends", [False, True])
def test_a_net_that_reads_raw_numbers_is_the_one_that_was_trained_on_scaled_ones(attends):
    scaled, raw = (
        TapNet([0], LAYERS, E, UNITS, MLPShape(20, 10, scaled=True, attends=attends)).eval() for _ in range(2)
    )
    raw.load_state_dict(scaled.state_dict())
    read_raw(raw)
    x, inside = torch.rand(5, 7, E), torch.ones(5, 7, dtype=torch.bool)
    given = (min_max(x, (-1,)), inside) if attends else (min_max(x[:, :1], (-1,)), None)
    torch.testing.assert_close(raw(*given)["head"], scaled(*given)["head"])
    assert not torch.allclose(raw(3 * given[0], given[1])["head"], scaled(3 * given[0], given[1])["head"])


# Targets


@pytest.mark.parametrize("over", ["layer", "global"])
def test_targets_against_a_loop(over):
    scores = torch.rand(3, LAYERS, 6).exp()
    target = MinMax(over).target(scores, torch.zeros(LAYERS, 1))
    for row in range(3):
        for layer in range(LAYERS):
            among = scores[row, layer] if over == "layer" else scores[row].flatten()
            for unit in range(6):
                said = (scores[row, layer, unit] - min(among)) / (max(among) - min(among))
                assert math.isclose(target[row, layer, unit], said, rel_tol=1e-5, abs_tol=1e-7)


def test_equal_scores_are_0():
    assert torch.equal(
        MinMax("layer").target(torch.full((2, 1, 3), 5.0), torch.zeros(1, 1)), torch.zeros(2, 1, 3)
    )


def test_the_loss_is_the_mean_square():
    said, target = torch.rand(2, 3, 4), torch.rand(2, 3, 4)
    torch.testing.assert_close(MinMax("layer").loss(said, target), (said - target).square().mean())


# What is read


def test_one_tap_reads_what_the_first_layers_heads_give_out_at_the_prompts_end(lm, batch, paper_net):
    scorer, contexts = Predicted(paper_net([0]), "last", "context"), contexts_of(lm, batch)
    with sparse(lm.model, scorer, SparsityPolicy(0.5), "prompt") as run:
        run.logits(batch)
        made = run.plan
    last = last_of(contexts[0], batch.in_prompt())
    with torch.no_grad():
        said = scorer.net.reader(0)(last)
    scores = {(layer, kind): said[kind][:, layer] for layer in range(LAYERS) for kind in UNITS}
    wanted = SparsityPolicy(0.5).plan(scores, sites_of(scores))
    assert made.keys() == wanted.keys() == {(layer, kind) for layer in (1, 2, 3) for kind in UNITS}
    for unit, keep in wanted.items():
        assert torch.equal(made[unit], keep), unit


def test_a_layers_own_context_is_read_before_its_heads_are_dropped(lm, batch, paper_net):
    """In one pass: layer 1 is the first to be pruned, so its context is the dense one."""
    scorer, contexts = Predicted(paper_net([1, 2, 3]), "last", "context"), contexts_of(lm, batch)
    seen = {}
    scores = scorer.scores

    def spy(signal, state, pool):
        seen[signal.layer] = state.clone()
        return scores(signal, state, pool)

    scorer.scores = spy
    with sparse(lm.model, scorer, SparsityPolicy(0.5), "prompt") as run:
        run.logits(batch)
    real = batch.real()
    assert torch.equal(seen[1][real], contexts[1][real])
    assert not torch.allclose(seen[2][real], contexts[2][real])
    assert run.achieved("head") == pytest.approx(0.375)


def test_a_model_whose_heads_are_of_another_width_is_refused(lm, make_net):
    scorer = Predicted(
        TapNet([0], LAYERS, 48, count_units(find_sites(lm.model)), MLPShape(4, 4, scaled=True)),
        "last",
        "context",
    )
    with pytest.raises(UserError, match="width 48"), sparse(lm.model, scorer, level=0.5):
        pass


# What is read of whole prompts


@pytest.fixture
def sequence_net():
    torch.manual_seed(0)
    shape = MLPShape(head=20, neuron=10, scaled=True, attends=True)
    return TapNet([0], LAYERS, E, UNITS, shape).eval()


def scores_of(lm, scorer, batch, decided_at):
    """What is said of every row, by layer and kind."""
    found = {}
    with sparse(lm.model, scorer, SparsityPolicy(0.5), decided_at) as run:
        run.planner.on_scores = lambda signal, said: found.update(said)
        run.logits(batch)
    return found


def assert_said_alike(one, other):
    for unit, values in one.items():
        torch.testing.assert_close(values, other[unit], rtol=1e-5, atol=1e-6)


def examples_of(batch):
    return [
        Example(ids[:n].tolist(), int(prompt))
        for ids, n, prompt in zip(batch.ids, batch.lengths, batch.prompt, strict=True)
    ]


def test_a_net_that_attends_says_what_its_formula_says(sequence_net):
    x, attend = torch.randn(1, 5, E), sequence_net.attention.attend
    inside = torch.tensor([[True, True, True, False, False]])
    tokens = min_max(x[0, :3], (-1,))
    query, key, value = (tokens @ attend.in_proj_weight.T + attend.in_proj_bias).split(E, -1)
    mixed = (query @ key.T / math.sqrt(E)).softmax(-1) @ value
    read = (mixed @ attend.out_proj.weight.T + attend.out_proj.bias).mean(0)
    for kind in UNITS:
        first, _, last = sequence_net.reader(0).nets[kind]
        told = F.relu(first(read)) @ last.weight.T + last.bias
        torch.testing.assert_close(sequence_net(x, inside)[kind][0], told.view(LAYERS, UNITS[kind]))


def test_what_is_outside_is_not_read_not_even_nan(sequence_net):
    x, inside = torch.randn(2, 6, E), torch.tensor([[False, True, True, True, False, False], [True] * 6])
    filled = torch.where(inside[..., None], x, torch.nan)
    assert torch.equal(sequence_net(filled, inside)["head"], sequence_net(x, inside)["head"])
    alone = sequence_net(x[:1, 1:4], inside[:1, 1:4])["neuron"]
    torch.testing.assert_close(sequence_net(x, inside)["neuron"][:1], alone)
    nothing = sequence_net(x, torch.zeros(2, 6, dtype=torch.bool))["head"]
    assert torch.isfinite(nothing).all()


@pytest.mark.parametrize("decided_at", ["prompt", "sequence"])
def test_each_row_is_scored_as_if_it_were_alone(lm, batch, sequence_net, decided_at):
    scorer = Predicted(sequence_net, "attention")
    together = scores_of(lm, scorer, batch, decided_at)
    for row, example in enumerate(examples_of(batch)):
        alone = scores_of(lm, scorer, collate([example]), decided_at)
        assert_said_alike(alone, {unit: values[row : row + 1] for unit, values in together.items()})


def test_all_of_the_prompt_is_read_and_at_the_prompt_nothing_of_the_answer(lm, batch, sequence_net):
    scorer = Predicted(sequence_net, "attention")

    def changed(place):
        found = []
        for ids, prompt in examples_of(batch):
            where = place(prompt)
            found.append(Example([*ids[:where], (ids[where] + 7) % 64, *ids[where + 1 :]], prompt))
        return collate(found)

    first, answer = changed(lambda prompt: 0), changed(lambda prompt: prompt)
    said = scores_of(lm, scorer, batch, "prompt")
    assert_said_alike(said, scores_of(lm, scorer, answer, "prompt"))
    whole = scores_of(lm, scorer, batch, "sequence")
    for other, unlike in [(first, said), (answer, whole)]:
        decided_at = "prompt" if unlike is said else "sequence"
        found = scores_of(lm, scorer, other, decided_at)
        assert (found[1, "neuron"] - unlike[1, "neuron"]).abs().amax(-1).min() > 1e-4


def test_a_net_that_attends_says_nothing_of_single_tokens(lm, sequence_net):
    scorer = Predicted(sequence_net, "attention")
    refused = pytest.raises(UserError, match=r"sparsity\.decided_at=prompt or sequence, got token")
    with refused, sparse(lm.model, scorer, level=0.5):
        pass


def test_no_other_net_is_pooled_by_attention(paper_net, sequence_net):
    for net, pooling in [(paper_net([0]), "attention"), (sequence_net, "last")]:
        with pytest.raises(UserError, match="for nets that attend"):
            Predicted(net, pooling)


def test_a_net_that_attends_learns_what_the_last_token_does_not_say():
    """Which units matter is told by the first token alone; the others are noise, of any number."""
    torch.manual_seed(0)
    net = TapNet([0], 1, 8, {"head": 4}, MLPShape(16, 1, scaled=False, attends=True))
    best = torch.randint(4, (64,))
    states, lengths = torch.randn(64, 5, 8), torch.randint(2, 6, (64,))
    states[:, 0] = 4 * F.one_hot(best, 8)
    inside, target = torch.arange(5) < lengths[:, None], F.one_hot(best, 4).float()[:, None]
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    for _ in range(200):
        loss = (net(states, inside)["head"] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    said = net(states, inside)["head"][:, 0].argmax(-1)
    assert (said == best).float().mean() > 0.95, float(loss)


def test_a_net_that_attends_is_saved_and_loaded(lm, sequence_net, config_of, tmp_path):
    config = config_of(sequence_net, lm, pooling="attention")
    save_predictor(tmp_path, sequence_net, config)
    loaded = load_predictor(tmp_path)
    x, inside = torch.randn(2, 5, E), torch.arange(5) < torch.tensor([[3], [5]])
    assert loaded.pooling == "attention"
    with torch.no_grad():
        for kind, values in loaded.net(x, inside).items():
            assert torch.equal(values, sequence_net(x, inside)[kind])


def test_the_gathered_executor_plans_by_a_net_that_attends_as_the_masked_one(lm, batch, sequence_net):
    scorer, (example, *_) = Predicted(sequence_net, "attention"), examples_of(batch)
    ids = torch.tensor([example.ids[: example.prompt]])
    found = []
    for executor in (Masked(), Gathered()):
        with sparse(lm.model, scorer, SparsityPolicy(0.5), "prompt", executor=executor) as run:
            told = lm.model.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
            found.append((told, {unit: keep.clone() for unit, keep in run.plan.items()}))
    (masked, plan), (fast, same) = found
    assert torch.equal(masked, fast)
    assert plan.keys() == same.keys() != set()
    for unit, keep in plan.items():
        assert torch.equal(keep, same[unit]), unit


# Fed from a dense pass


def test_late_taps_read_dense_states(lm, batch, make_net):
    scorer, dense, one_pass = Predicted(make_net(lm, [1, 2, 3]), "scores"), {}, {}
    with (
        torch.no_grad(),
        hook_signals(
            lm.model,
            [Signal(layer, "layer_input") for layer in (1, 2, 3)],
            lambda signal, x: dense.__setitem__(signal.layer, x),
        ),
    ):
        lm.model(input_ids=batch.ids, attention_mask=batch.real().long(), use_cache=False)
    wanted = {}
    for tap in scorer.taps:
        scores = scorer.scores(Signal(tap, "layer_input"), dense[tap], None)
        wanted |= SparsityPolicy(0.5).plan(scores, sites_of(scores))
    real = batch.real()
    for fed, made in ((DenseFed(scorer), {}), (scorer, one_pass)):
        with sparse(lm.model, fed, SparsityPolicy(0.5)) as run:
            run.logits(batch)
            made |= run.plan
        same = [torch.equal(made[unit][real], wanted[unit][real]) for unit in wanted]
        assert all(same) == isinstance(fed, DenseFed)


def test_with_one_early_tap_there_is_no_difference(lm, batch, make_net):
    scorer = Predicted(make_net(lm, [1]), "scores")
    found = []
    for fed in (scorer, DenseFed(scorer)):
        with sparse(lm.model, fed, SparsityPolicy(0.5)) as run:
            found.append(run.logits(batch))
    assert torch.equal(*found)


def test_a_dense_fed_net_cannot_generate(lm, make_net):
    scorer = DenseFed(Predicted(make_net(lm, [1]), "scores"))
    with sparse(lm.model, scorer, SparsityPolicy(0.5)), pytest.raises(UserError, match="dense-fed"):
        lm.model(input_ids=torch.tensor([[1, 2, 3]]))


def test_a_dense_fed_net_looks_at_every_batch_anew(lm, batch, make_net):
    scorer = DenseFed(Predicted(make_net(lm, [1, 3]), "scores"))
    alone = collate([Example(batch.ids[0, : batch.lengths[0]].tolist(), int(batch.prompt[0]))])
    with sparse(lm.model, scorer, SparsityPolicy(0.5)) as run:
        run.logits(batch)
        after = run.logits(alone)
    with sparse(lm.model, scorer, SparsityPolicy(0.5)) as run:
        assert torch.equal(after, run.logits(alone))
