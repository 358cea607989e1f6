"""Training a predictor on made-up traces whose answer is known."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from shadow.errors import UserError
from shadow.fit.module import Descent, PredictorModule
from shadow.fit.objectives import Active, Cutoff, Listwise, LogSquares, Pairwise
from shadow.fit.rows import EpochShuffle, Reading, TraceData
from shadow.models.sites import KINDS
from shadow.scorers.nets import NetShape, TapNet
from shadow.scorers.paper_nets import MinMax
from shadow.traces.packing import encode, pack
from shadow.traces.shards import FEATURES, files_of, finish, inspect, write_shard
from shadow.traces.store import Traces

WINDOWS, TOKENS, LAYERS, WIDTH = 30, 10, 3, 8
UNITS = {"head": 4, "neuron": 16}


@pytest.fixture(params=["linear", "curved"])
def store(request, tmp_path):
    """Log scores that are a linear map of the tap's state, or of its absolute values."""
    draw = torch.Generator().manual_seed(0)
    weights = {kind: torch.randn(WIDTH, LAYERS * units, generator=draw) / 3 for kind, units in UNITS.items()}

    def scores(state, kind):
        seen = state[:, 1].abs() - 0.8 if request.param == "curved" else state[:, 1]
        return (seen @ weights[kind]).exp().view(-1, LAYERS, UNITS[kind])

    for shard in range(3):
        states = torch.randn(10 * TOKENS, LAYERS, WIDTH, generator=draw)
        pooled = torch.randn(10, LAYERS, WIDTH, generator=draw)
        window = torch.arange(10 * shard, 10 * shard + 10)
        features = {"window/window": window, "token/window": window.repeat_interleave(TOKENS)}
        for name, values in (("window/prompt/last", pooled), ("token/state", states)):
            features[name], features[f"{name}/scale"] = pack(values)
        fisher = {}
        for kind in UNITS:
            for rows, seen in (("window", pooled), ("token", states)):
                for suffix, values in encode(scores(seen, kind), "float16").items():
                    fisher[f"{rows}/{kind}{suffix}"] = values
        for part, arrays in ((FEATURES, features), ("fisher", fisher)):
            write_shard(tmp_path, "key", part, shard, (10, 10 * TOKENS), arrays)
    shards = [(file, inspect(file, "key")) for file in files_of(tmp_path)]
    finish(tmp_path, {"traces": {"shard_windows": 10}}, {"taps": [0, 1, 2]}, {"30": 30, "20": 20}, shards)
    return Traces(tmp_path)


def make_data(store, taps=(1,), rows="token", state="state", val_share=0.2, seed=0, ahead=0, kinds=KINDS):
    reading = Reading(rows, state, FEATURES)
    return TraceData([store], "fisher", list(taps), reading, val_share, 64, seed, ahead, kinds)


def descends(lr, **changes):
    settings = {
        "weight_decay": 0.0,
        "last_weight_decay": 0.0,
        "beta2": 0.98,
        "warmup": 0.1,
        "schedule": "cosine",
    }
    return Descent(lr, **settings | changes)


def make_module(taps=(1,), rank=8, floor=0.0, seed=0, objective=None, ahead=0):
    torch.manual_seed(seed)
    net = TapNet(list(taps), LAYERS, WIDTH, UNITS, NetShape(rank, 16, 2), ahead)
    return PredictorModule(net, dict.fromkeys(UNITS, objective or LogSquares(floor)), descends(0.02))


def everything(data, rows="train"):
    part = getattr(data, rows)
    return part.__getitems__(list(range(len(part))))


def losses(module, data, rows="val"):
    """(loss of the net, loss of the static mean)"""
    sample = everything(data, rows)
    with torch.no_grad():
        targets = module.targets(sample)
        mean = {kind: values.mean(0) for kind, values in module.targets(everything(data)).items()}
        static = {kind: mean[kind].expand_as(values) for kind, values in targets.items()}
        return float(module.loss(module.net(sample.states), targets)), float(module.loss(static, targets))


def fit(module, data, epochs):
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    trainer.fit(module, data)
    return trainer


def judged(module, data, trainer):
    """What was logged of a fit, and of a validation after it: after each epoch nothing is ranked."""
    fitted = dict(trainer.callback_metrics)
    assert "val/loss" in fitted
    assert "val/spearman" not in fitted
    return fitted | trainer.validate(module, data, verbose=False)[0]


# Rows


def test_training_and_validation_share_no_window_and_lose_none(store):
    data = make_data(store)
    windows = [
        set(store.read("token", FEATURES, "window", rows.indices).tolist()) for rows in (data.train, data.val)
    ]
    assert not windows[0] & windows[1]
    assert windows[0] | windows[1] == set(range(WINDOWS))
    assert len(windows[1]) == 6
    assert len(data.train) == 24 * TOKENS


def test_the_split_depends_on_the_seed(store):
    assert torch.equal(make_data(store).val.indices, make_data(store).val.indices)
    assert not torch.equal(make_data(store).val.indices, make_data(store, seed=1).val.indices)


def test_samples_hold_the_taps_states_and_the_scores_from_the_first_tap_on(store):
    sample = make_data(store, taps=(1, 2)).train.__getitems__([5, 3])
    rows = make_data(store, taps=(1, 2)).train.indices[[3, 5]]  # in the order of the store
    assert torch.equal(sample.states, store.read("token", FEATURES, "state", rows)[:, 1:])
    for kind in UNITS:
        assert torch.equal(sample.scores[kind], store.read("token", "fisher", kind, rows)[:, 1:])


@pytest.mark.parametrize(("taps", "ahead"), [((0,), 1), ((0, 1), 1), ((1,), 1), ((0,), 2)])
def test_a_sample_of_taps_that_look_ahead_holds_the_scores_of_the_scored_layers_alone(store, taps, ahead):
    data = make_data(store, taps, ahead=ahead)
    sample, rows = data.val.__getitems__([5, 3]), data.val.indices[[3, 5]]
    assert torch.equal(sample.states, store.read("token", FEATURES, "state", rows)[:, list(taps)])
    for kind in UNITS:
        scores = store.read("token", "fisher", kind, rows)[:, taps[0] + ahead :]
        assert torch.equal(sample.scores[kind], scores)
    assert make_module(taps, ahead=ahead).targets(sample).keys() == UNITS.keys()


def two_stores(store):
    """The second has the same rows with all states negated, and no scores that anyone should read."""

    class Negated(Traces):
        def read(self, rows, part, name, indices):
            assert part == FEATURES
            return -super().read(rows, part, name, indices)

    reading = Reading("token", "state", FEATURES)
    return TraceData([store, Negated(store.folder)], "fisher", [1], reading, 0.2, 50, 0)


def test_rows_of_two_stores_have_their_own_states_and_the_first_ones_scores(store):
    rows = two_stores(store).train
    count = len(rows.indices)
    assert len(rows) == 2 * count
    sample = rows.__getitems__([count + 5, 3, 7, count + 3])
    states = store.read("token", FEATURES, "state", rows.indices[[3, 3, 5, 7]])[:, 1:2]
    assert torch.equal(sample.states, states * torch.tensor([1.0, -1, -1, 1])[:, None, None])
    scores = store.read("token", "fisher", "neuron", rows.indices[[3, 3, 5, 7]])[:, 1:]
    assert torch.equal(sample.scores["neuron"], scores)


def test_a_pass_meets_each_row_once_and_its_states_in_each_store(store):
    data = two_stores(store)
    passed = list(data.passed("rows"))
    assert torch.equal(torch.cat([rows for rows, _ in passed]), data.train.indices)
    states = torch.cat([sample.states for _, sample in passed])
    assert torch.equal(states, store.read("token", FEATURES, "state", data.train.indices)[:, 1:2])
    (other,) = data.train.in_other_stores(data.train.indices)
    assert torch.equal(other, -states)


def test_the_first_validation_rows_are_of_every_store(store):
    data = two_stores(store)
    first = next(iter(data.val_dataloader()))
    assert len(first.states) < len(data.val)  # not all of them
    known = store.read("token", FEATURES, "state", data.val.indices)[:, 1:2].flatten(1)
    own = (first.states.flatten(1)[:, None] == known).all(-1).any(-1)
    assert 0.3 < own.float().mean() < 0.7


def test_window_rows_are_read_with_the_state_that_is_asked_for(store):
    data = make_data(store, rows="window", state="prompt/last")
    sample = everything(data)
    assert len(sample.states) == 24
    assert torch.equal(
        sample.states, store.read("window", FEATURES, "prompt/last", data.train.indices)[:, 1:2]
    )


@pytest.mark.parametrize("rows", ["token", "window"])
def test_of_the_first_windows_of_a_store_no_others_are_seen(store, rows):
    """In the middle of its second shard."""
    state = {"token": "state", "window": "prompt/last"}[rows]
    data = make_data(Traces(store.folder, 15), rows=rows, state=state)
    indices = torch.cat([data.train.indices, data.val.indices]).sort().values
    assert torch.equal(indices, torch.arange(15 * (TOKENS if rows == "token" else 1)))
    assert store.read(rows, FEATURES, "window", indices).max() == 14
    assert len(data.val) == 3 * (TOKENS if rows == "token" else 1)


def test_an_epoch_has_every_row_once_in_an_order_of_its_own(store):
    shuffle = EpochShuffle(50, seed=1)
    orders = []
    for epoch in (0, 1, 0):
        shuffle.set_epoch(epoch)
        orders.append(list(shuffle))
    assert sorted(orders[0]) == list(range(50))
    assert orders[0] == orders[2] != orders[1]


def test_lightning_gives_every_epoch_its_own_order(store):
    orders = []

    class Spy(PredictorModule):
        def training_step(self, batch, batch_idx):
            orders.append(batch.states.sum().item())
            return super().training_step(batch, batch_idx)

    objectives = dict.fromkeys(UNITS, LogSquares(0.0))
    module = Spy(TapNet([1], LAYERS, WIDTH, UNITS, NetShape(2, 16, 2)), objectives, descends(0.0))
    fit(module, make_data(store), 2)
    half = len(orders) // 2
    assert orders[:half] != orders[half:]


# The start


@pytest.mark.parametrize("taps", [(1,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("ridge", [1e9, None])
def test_without_regression_the_start_is_the_static_mean(store, taps, ridge):
    data, module = make_data(store, taps), make_module(taps)
    module.start(data, ridge)
    targets = module.targets(everything(data))
    with torch.no_grad():
        found = module.net(everything(data, "val").states)
    for kind, values in found.items():
        expected = targets[kind].mean(0).expand_as(values)
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)  # float32 mean of 240 rows


@pytest.mark.parametrize("store", ["linear"], indirect=True)
@pytest.mark.parametrize("taps", [(1,), (1, 2)])
def test_the_start_finds_a_linear_map(store, taps):
    """With a tap at layer 2 as well, whose state says nothing of the scores, layer 2 stays at its mean."""
    data, module = make_data(store, taps), make_module(taps)
    module.start(data, 1e-6)
    with torch.no_grad():
        found = module.net(everything(data, "val").states)
    targets = module.targets(everything(data, "val"))
    for kind in UNITS:
        # scores are packed to 11 bits, so their logarithms to 2**-11
        torch.testing.assert_close(found[kind][:, 0], targets[kind][:, 0], rtol=0, atol=0.01)
        last = (found[kind][:, 1] - targets[kind][:, 1]).abs().mean()
        assert (last < 0.01) if taps == (1,) else (last > 0.1)


@pytest.mark.parametrize("store", ["linear"], indirect=True)
def test_the_start_of_a_tap_that_looks_ahead_finds_the_map_to_the_layers_that_it_scores(store):
    """The scores of layer 2 are a map of the state at layer 1, and of nothing at layer 0."""
    data, module = make_data(store, (0, 1), ahead=1), make_module((0, 1), ahead=1)
    module.start(data, 1e-6)
    sample = everything(data, "val")
    targets = module.targets(sample)
    with torch.no_grad():
        found = module.net(sample.states)
    for kind in UNITS:
        torch.testing.assert_close(found[kind][:, 1], targets[kind][:, 1], rtol=0, atol=0.01)
        assert (found[kind][:, 0] - targets[kind][:, 0]).abs().mean() > 0.1


@pytest.mark.parametrize("ridge", [0.01, 0.1, 1.0])
def test_the_start_never_fits_worse_than_the_mean(store, ridge):
    data, module = make_data(store), make_module()
    module.start(data, ridge)
    loss, static = losses(module, data, "train")
    assert loss <= static * (1 + 1e-5)


def test_starting_twice_is_starting_once(store):
    data, module, other = make_data(store), make_module(floor=0.1), make_module(floor=0.1)
    module.start(data, 0.1)
    other.start(data, 0.1)
    other.start(data, 0.1)
    for name, values in module.state_dict().items():
        assert torch.equal(values, other.state_dict()[name]), name


# Training


@pytest.mark.parametrize("ridge", [None, 1.0])
def test_training_learns_a_map_that_it_can_say(store, ridge):
    data, module = make_data(store), make_module()
    module.start(data, ridge)
    before, static = losses(module, data, "train")
    fit(module, data, 60)
    after = losses(module, data, "train")[0]
    assert after < 0.25 * min(before, static)
    assert losses(module, data)[0] < 0.5 * losses(module, data)[1]


def test_training_is_deterministic(store):
    weights = []
    for _ in range(2):
        data, module = make_data(store), make_module(floor=0.1)
        torch.manual_seed(0)
        module.start(data, 0.1)
        fit(module, data, 3)
        weights.append(module.state_dict())
    for name, values in weights[0].items():
        assert torch.equal(values, weights[1][name]), name


@pytest.mark.parametrize("levels", [[0.5], [0.3, 0.7]], ids=str)
def test_a_net_learns_which_units_are_active(store, levels):
    data, module = make_data(store), make_module(objective=Active(levels))
    module.start(data, None)
    before = losses(module, data)[0]
    logged = judged(module, data, fit(module, data, 40))
    assert losses(module, data)[0] < before
    assert logged["val/loss"] < logged["val/static_loss"]
    assert logged["val/recall@50"] > logged["val/static_recall@50"] + 0.05


@pytest.mark.parametrize(
    "objective",
    [
        LogSquares(0.5),
        Listwise(0.5),
        Pairwise(0.5),
        Cutoff(0.5, [0.3, 0.7]),
        Active([0.3, 0.7]),
        MinMax("layer"),
    ],
    ids=lambda o: type(o).__name__,
)
@pytest.mark.parametrize("taps", [(1,), (0, 2)])
def test_the_loss_of_layers_one_at_a_time_is_that_of_all_at_once(store, objective, taps):
    data, module = make_data(store, taps=taps), make_module(taps, objective=objective)
    module.start(data, None)
    for values in module.net.parameters():
        if values.requires_grad:  # away from where slopes vanish
            torch.nn.init.normal_(values, std=0.5)
    sample = everything(data)
    found = {}
    for name, loss in {
        "at once": module.loss(module.net(sample.states), module.targets(sample)),
        "one at a time": module.loss_by_layers(sample),
    }.items():
        module.zero_grad()
        loss.backward()
        slopes = {key: p.grad.clone() for key, p in module.named_parameters() if p.grad is not None}
        found[name] = float(loss.detach()), slopes
    (whole, slopes), (by_layers, other) = found.values()
    assert by_layers == pytest.approx(whole, rel=3e-3)  # products are in bfloat16
    assert slopes.keys() == other.keys()
    for key, slope in slopes.items():
        assert float((slope - other[key]).norm()) <= 0.03 * float(slope.norm()), key


ORDERS = pytest.mark.parametrize(
    "objective", [Listwise(0.5), Pairwise(0.5), Cutoff(0.5, [0.3, 0.7])], ids=lambda o: type(o).__name__
)


@ORDERS
@pytest.mark.parametrize("ridge", [None, 0.1])
def test_an_order_is_learnt_from_the_mean_or_the_ridge_of_log_scores_on(store, objective, ridge):
    data, module, squares = make_data(store), make_module(objective=objective), make_module(floor=0.5)
    module.start(data, ridge)
    squares.start(data, ridge)
    states = everything(data, "val").states
    with torch.no_grad():
        for kind, values in module.net(states).items():
            assert torch.equal(values, squares.net(states)[kind])


@ORDERS
@pytest.mark.parametrize("store", ["curved"], indirect=True)
def test_a_net_learns_the_order_of_units(store, objective):
    data, module = make_data(store), make_module(objective=objective)
    module.start(data, 0.1)
    before = losses(module, data, "train")[0]
    logged = judged(module, data, fit(module, data, 20))
    assert losses(module, data, "train")[0] < before
    assert logged["val/recall@50"] > logged["val/static_recall@50"] + 0.05


def test_neurons_may_be_active_above_0_and_heads_by_levels(store):
    """As DejaVu labels them, for no head's norm is 0."""
    sample, module = everything(make_data(store)), make_module()
    module.objectives = {"head": Active([0.5]), "neuron": Active(None)}
    sample.scores["neuron"] = (sample.scores["neuron"] - 1).relu()
    targets = module.targets(sample)
    assert (targets["head"].mean(-1) == 0.5).all()
    assert torch.equal(targets["neuron"], (sample.scores["neuron"] > 0).float())
    assert 0 < targets["neuron"].mean() < 1


def test_above_0_tells_nothing_where_all_scores_are(store):
    data, module = make_data(store), make_module(objective=Active(None))
    with pytest.raises(UserError, match=r"predictor\.active\.neuron=positive .* give levels"):
        module.start(data, None)


@pytest.mark.parametrize("ridge", [None, 0.1])
def test_a_net_of_one_kind_learns_what_it_says_and_reads_no_other(store, ridge):
    torch.manual_seed(0)
    net = TapNet([1], LAYERS, WIDTH, {"head": 4}, NetShape(8, 16, 2))
    data, module = (
        make_data(store, kinds=["head"]),
        PredictorModule(net, {"head": LogSquares(0.0)}, descends(0.02)),
    )
    assert everything(data).scores.keys() == {"head"}
    module.start(data, ridge)
    before = losses(module, data)[0]
    trainer = fit(module, data, 20)
    assert losses(module, data)[0] < before
    assert trainer.callback_metrics["val/loss"] < trainer.callback_metrics["val/static_loss"]


@pytest.mark.parametrize(("schedule", "last"), [("cosine", 0.0), ("constant_with_warmup", 1.0)])
def test_the_rate_follows_its_schedule(schedule, last):
    module = make_module()
    module.descent = descends(0.5, schedule=schedule)
    module.trainer = SimpleNamespace(estimated_stepping_batches=20)
    found = module.configure_optimizers()
    optimizer, scheduler = found["optimizer"], found["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(20):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    assert rates[1] == max(rates) == 0.5
    assert rates[-1] == pytest.approx(0.5 * last)


def test_the_last_layer_of_a_tap_decays_at_a_rate_of_its_own():
    module = make_module()
    module.descent = descends(0.5, weight_decay=0.1, last_weight_decay=0.2)
    module.trainer = SimpleNamespace(estimated_stepping_batches=20)
    decay_of = {
        id(parameter): group["weight_decay"]
        for group in module.configure_optimizers()["optimizer"].param_groups
        for parameter in group["params"]
    }
    for name, parameter in module.net.named_parameters():
        expected = None if not parameter.requires_grad else 0.2 if ".up." in name else 0.1
        assert decay_of.get(id(parameter)) == expected, name


def test_training_leaves_the_static_mean_alone(store):
    data, module = make_data(store), make_module()
    module.start(data, 0.1)
    fixed = {name: p.clone() for name, p in module.named_parameters() if not p.requires_grad}
    fit(module, data, 2)
    assert any("static" in name for name in fixed)
    for name, values in module.named_parameters():
        if name in fixed:
            assert torch.equal(values, fixed[name])


def test_validation_logs_loss_rank_correlation_and_recall(store):
    data, module = make_data(store), make_module()
    module.start(data, 1e-3)
    logged = judged(module, data, fit(module, data, 1))
    assert {
        "val/loss",
        "val/static_loss",
        "val/spearman",
        "val/recall@50",
        "val/static_mass@70",
        "train/loss",
    } <= set(logged)
    assert float(logged["val/loss"]) == pytest.approx(losses(module, data)[0], rel=1e-4)
    assert float(logged["val/static_loss"]) == pytest.approx(losses(module, data)[1], rel=1e-4)


def test_the_metrics_of_layers_are_those_of_their_validation_rows_alone(store):
    """In batches of uneven size; the mass is of scores times norms."""
    draw = torch.Generator().manual_seed(0)
    norms = {kind: torch.rand(LAYERS, units, generator=draw) + 0.1 for kind, units in UNITS.items()}
    data, net = make_data(store), make_module().net
    data.batch_size = 25
    module = PredictorModule(net, dict.fromkeys(UNITS, LogSquares(0.0)), descends(0.02), norms)
    module.start(data, 0.1)
    logged = judged(module, data, fit(module, data, 2))
    rows = module.metrics_of_layers()
    assert [(row["kind"], row["layer"]) for row in rows] == [
        (kind, layer) for kind in UNITS for layer in (1, 2)
    ]
    sample = everything(data, "val")
    with torch.no_grad():
        said = module.net(sample.states)
    for row in rows:
        kind, index = row["kind"], row["layer"] - 1
        guess, scores = said[kind][:, index], sample.scores[kind][:, index]
        n = UNITS[kind] // 2
        constant = module.net.reader(1).static[kind][index].expand_as(guess)
        for prefix, values in {"": guess, "static_": constant}.items():
            kept, best = (torch.zeros_like(v).scatter_(1, v.topk(n).indices, 1) for v in (values, scores))
            size = scores * norms[kind][row["layer"]]
            assert row[f"{prefix}recall@50"] == pytest.approx(
                float((kept * best).sum(1).mean() / n), abs=1e-5
            )
            mass = float(((size * kept).sum(1) / size.sum(1)).mean())
            assert row[f"{prefix}mass@50"] == pytest.approx(mass, abs=1e-5)
    for name in rows[0].keys() - {"layer", "kind"}:
        mean = sum(row[name] for row in rows) / len(rows)
        assert float(logged[f"val/{name}"]) == pytest.approx(mean, abs=1e-5), name


def test_without_norms_the_mass_is_of_scores(store):
    ones = {kind: torch.ones(LAYERS, units) for kind, units in UNITS.items()}
    found = []
    for norms in (None, ones):
        data, descent = make_data(store), descends(0.0)
        objectives = dict.fromkeys(UNITS, LogSquares(0.0))
        module = PredictorModule(make_module().net, objectives, descent, norms)
        module.start(data, 0.1)
        fit(module, data, 1)
        found.append(module.metrics_of_layers())
    assert found[0] == found[1]


@pytest.mark.parametrize("floor", [0.01, 0.5])
def test_a_score_of_zero_has_a_finite_target(store, floor):
    data, module = make_data(store), make_module(floor=floor)
    module.start(data, None)
    sample = everything(data)
    for values in sample.scores.values():
        values[:, :, 0] = 0
    for kind, values in module.targets(sample).items():
        assert torch.isfinite(values).all()
        assert (values[:, :, 0] <= values.amin(-1)).all(), kind


# Refusals


@pytest.mark.parametrize("share", [0.0, 0.01, 1.0, 1.5, -0.1])
def test_a_validation_share_that_leaves_a_side_empty_is_refused(store, share):
    with pytest.raises(UserError, match=r"predictor\.val_share.*30 windows"):
        make_data(store, val_share=share)


def test_taps_that_were_not_collected_are_refused(store):
    with pytest.raises(UserError, match=r"predictor\.taps.*traces\.taps"):
        make_data(store, taps=(1, 3))


def test_a_criterion_that_was_not_collected_is_refused(store):
    with pytest.raises(UserError, match="criterion=l2_norm"):
        TraceData([store], "l2_norm", [1], Reading("token", "state", FEATURES), 0.2, 64, 0)
