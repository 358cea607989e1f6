"""Rival methods without training, each against a slow, obvious reference, and what they read."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch
from families import FAMILIES, tiny
from having import Have
from torch import Tensor, nn

from shadow.data.batches import Batch, collate, logits_of
from shadow.front import sparse
from shadow.models.kinds import find_sites, weights_of
from shadow.models.sites import Site
from shadow.plans.low_rank_rest import LowRankRest
from shadow.plans.policy import SparsityPolicy
from shadow.plans.rules import Statistical
from shadow.scorers.calibrated import rows_of
from shadow.scorers.gate import GateTimesMeanUp, UpMagnitude
from shadow.scorers.inputs import InputNorm
from shadow.scorers.modes import ModeDistance, best_mode
from shadow.scorers.rank_aware import RankAware
from shadow.scorers.rotated import RotatedInput
from shadow.scorers.scaled import Backed
from shadow.signals import Signal

FEW = pytest.mark.parametrize("family", ["opt-350m", "llama", "gemma3_text", "phi3", "pythia", "falcon-7b"])


@pytest.fixture(scope="module")
def small(examples: Callable) -> Batch:
    return collate(examples([9, 5, 12]))


@pytest.fixture(scope="module")
def sample(examples: Callable) -> list[Batch]:
    return [collate(examples([12, 9, 10], seed=1)), collate(examples([7, 12], seed=2))]


def channels(model: nn.Module) -> list[Site]:
    return [site for site in find_sites(model, ["channel"]) if site.slot != "lm_head"]  # type: ignore[arg-type]


def above(sites: list[Site], cut: float) -> SparsityPolicy:
    """Everything that scores no more than the cut goes, in every layer."""
    thresholds = {site.key: cut for site in sites}
    return SparsityPolicy(0.5, "threshold", min_units=0, dense_layers=[], thresholds=thresholds)


@contextmanager
def reading(changed: dict[nn.Linear, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Each of these projections reads its own input changed by its function."""
    with ExitStack() as stack:
        for projection, fn in changed.items():
            hook = projection.register_forward_pre_hook(lambda module, args, fn=fn: (fn(args[0]),))
            stack.callback(hook.remove)
        yield


def unread_of(model, scorer, batch: Batch, policy: SparsityPolicy, **others) -> dict:
    with sparse(model, scorer, policy, **others) as run:
        run.logits(batch)
    return run.bytes()


# By a projection's own input


@FEW
def test_wina_weighs_an_input_by_the_columns_of_all_that_read_it(family, small):
    model, cut = tiny(family), 0.5
    assert family in FAMILIES

    def without(site: Site) -> Callable[[Tensor], Tensor]:
        rows = torch.cat([reader.weight for reader in site.readers])
        norms = torch.tensor([float(column.norm()) for column in rows.T])
        return lambda x: torch.where(x.abs() * norms > cut * float(norms.median()), x, 0.0)

    sites = channels(model)
    scorer = InputNorm().build(model, Have([]))
    with reading({reader: without(site) for site in sites for reader in site.readers}):
        expected = logits_of(model, small)
    thresholds = {site.key: cut * float(scorer.factors[site.key].median()) for site in sites}
    policy = SparsityPolicy(0.5, "threshold", min_units=0, dense_layers=[], thresholds=thresholds)
    with sparse(model, scorer, policy) as run:
        found = run.logits(small)
    assert run.achieved("channel") > 0.05
    torch.testing.assert_close(found[small.real()], expected[small.real()])


@pytest.mark.parametrize("level", [0.25, 0.5])
def test_wina_reads_what_stays_of_all_seven_and_a_norm_of_each_channel(tiny_llama, small, level):
    model = tiny_llama.model
    policy = SparsityPolicy(level, dense_layers=[])
    unread = unread_of(model, InputNorm().build(model, Have([])), small, policy)
    norms = sum(site.units for site in channels(model)) / weights_of(model).layers
    assert unread["skipped_of_layers"] == pytest.approx(level - norms)


@FEW
def test_scap_reads_the_mode_where_an_input_is_near_it(family, small, sample):
    model, cut = tiny(family), 0.3
    sites = channels(model)
    scorer = ModeDistance(0.5, 64).build(model, Have(sample))
    assert any(mode != 0 for mode in scorer.centres.values())

    def without(site: Site) -> Callable[[Tensor], Tensor]:
        mode = scorer.centres[site.key]
        return lambda x: torch.where((x - mode).abs() > cut, x, mode)

    with reading({reader: without(site) for site in sites for reader in site.readers}):
        expected = logits_of(model, small)
    with sparse(model, scorer, above(sites, cut)) as run:
        found = run.logits(small)
    assert run.achieved("channel") > 0.05
    torch.testing.assert_close(found[small.real()], expected[small.real()])


def test_the_mode_is_where_most_numbers_are_if_it_costs_least(tiny_llama):
    """Numbers around 3, and a few far ones that pull the mean: 3 stands in best."""
    site = channels(tiny_llama.model)[1]
    draw = torch.Generator().manual_seed(0)
    x = 3 + 0.01 * torch.randn(64, site.units, generator=draw)
    x[0] = 50.0
    assert best_mode(site, x, 0.5) == pytest.approx(3, abs=0.05)
    assert best_mode(site, torch.randn(64, site.units, generator=draw).relu(), 0.4) == 0


@FEW
@pytest.mark.parametrize("alpha", [0.75, 1.0])
def test_r_sparse_sends_what_goes_through_the_truncated_weights(family, small, alpha):
    """By hand: each projection's own output from kept inputs, and from the others by its SVD."""
    model, level = tiny(family), 0.5
    sites = channels(model)
    recipe = RankAware(level, alpha)
    scorer = recipe.build(model, Have([]))
    policy = SparsityPolicy(level, dense_layers=[])
    with ExitStack() as stack:
        for site in sites:
            together = torch.cat([reader.weight for reader in site.readers])
            u, s, v = torch.linalg.svd(together, full_matrices=False)
            rank = recipe.rank_of(site)
            low = (u[:, :rank] * s[:rank] @ v[:rank]).split([reader.out_features for reader in site.readers])
            norms = together.norm(dim=0)
            for reader, part in zip(site.readers, low, strict=True):

                def hook(module, args, y, norms=norms, part=part):
                    (x,) = args
                    least = (x.abs() * norms).topk(x.shape[-1] // 2, -1, largest=False).indices
                    stays = torch.ones_like(x).scatter(-1, least, 0.0)
                    return (
                        nn.functional.linear(x * stays, module.weight, module.bias) + x * (1 - stays) @ part.T
                    )

                stack.callback(reader.register_forward_hook(hook).remove)
        expected = logits_of(model, small)
    with sparse(model, scorer, policy) as run:
        found = run.logits(small)
    torch.testing.assert_close(found[small.real()], expected[small.real()], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("alpha", [0.8, 0.95])
def test_r_sparse_reads_the_share_of_its_columns_over_alpha(make_lm, small, alpha):
    """Grouped queries have ranks of their own sizes; ranks are whole, so that a little less is read."""
    model = make_lm("llama").model
    recipe, policy = RankAware(0.5, alpha), SparsityPolicy(0.5, dense_layers=[])
    scorer, weights = recipe.build(model, Have([])), weights_of(model).layers
    unread = unread_of(model, scorer, small, policy)
    norms = sum(site.units for site in channels(model)) / weights
    factors = sum(recipe.rank_of(site) * (site.units + site.cost) for site in channels(model)) / weights
    assert unread["skipped_of_layers"] == pytest.approx(0.5 - factors - norms)
    longest = max((site.units + site.cost) / (site.units * site.cost) for site in channels(model))
    assert 0 <= 0.5 / alpha - 0.5 - factors < longest  # less than one rank at each site
    assert isinstance(scorer, Backed)
    assert isinstance(scorer.stand_in, LowRankRest)


@FEW
def test_larosa_drops_small_directions_of_what_reads_the_stream(family, small, sample):
    """By hand: every projection's weights times Q, and of Q'x the larger half."""
    model = tiny(family)
    sites = channels(model)
    scorer = RotatedInput().build(model, Have(sample))

    def without(site: Site) -> Callable[[Tensor], Tensor]:
        q = scorer.bases.get(site.key, torch.eye(site.units))
        torch.testing.assert_close(q @ q.T, torch.eye(site.units), rtol=0, atol=1e-4)

        def change(x: Tensor) -> Tensor:
            turned = x @ q
            stays = turned.abs() >= turned.abs().topk(site.units // 2, -1).values[..., -1:]
            return (turned * stays) @ q.T

        return change

    with reading({reader: without(site) for site in sites for reader in site.readers}):
        expected = logits_of(model, small)
    with sparse(model, scorer, SparsityPolicy(0.5, dense_layers=[])) as run:
        found = run.logits(small)
    torch.testing.assert_close(found[small.real()], expected[small.real()], rtol=1e-3, atol=1e-4)


def test_larosa_has_principal_directions_and_reads_two_rotations_a_layer(small, sample):
    model = tiny("llama")
    scorer = RotatedInput().build(model, Have(sample))
    rows = rows_of(model, [Signal(1, "site", "gate_up")], sample, 1000)[Signal(1, "site", "gate_up")]
    squares = (rows @ scorer.bases[1, "gate_up"]).square().sum(0)
    assert torch.equal(squares.argsort(), torch.arange(32))
    values = torch.linalg.svdvals(rows).square()
    torch.testing.assert_close(squares.flip(0)[:8], values[:8], rtol=1e-3, atol=1e-4)
    unread = unread_of(model, scorer, small, SparsityPolicy(0.5, dense_layers=[]))
    rotations = 3 * 2 * 32 * 32 / weights_of(model).layers
    assert unread["skipped_of_layers"] == pytest.approx(0.5 - rotations)


# By the gate, or by what it is multiplied by


@contextmanager
def without_neurons(model, choose: Callable[[Tensor, Tensor, int], Tensor]) -> Iterator[None]:
    """Of a Llama: neurons go where choose(gate, up, layer) says so."""
    with ExitStack() as stack:
        for number, layer in enumerate(model.model.layers):
            seen: dict[str, Tensor] = {}
            for name in ("gate_proj", "up_proj"):
                projection = getattr(layer.mlp, name)

                def note(module, args, y, name=name, seen=seen):
                    seen[name] = y

                stack.callback(projection.register_forward_hook(note).remove)

            def drop(module, args, seen=seen, number=number):
                gate = nn.functional.silu(seen["gate_proj"])
                return (args[0] * choose(gate, seen["up_proj"], number),)

            stack.callback(layer.mlp.down_proj.register_forward_pre_hook(drop).remove)
        yield


def neurons(model) -> list[Site]:
    return find_sites(model, ["neuron"])


def test_chess_has_a_threshold_for_each_neuron(small, sample):
    model, cut = tiny("llama"), 0.15
    ups: list[list[Tensor]] = [[] for _ in model.model.layers]
    with ExitStack() as stack:
        for layer, found in zip(model.model.layers, ups, strict=True):
            hook = layer.mlp.up_proj.register_forward_hook(lambda m, args, y, found=found: found.append(y))
            stack.callback(hook.remove)
        for batch in sample:
            logits_of(model, batch)
    real = torch.cat([batch.real().flatten() for batch in sample])
    means = [torch.cat([y.flatten(0, 1) for y in found])[real].abs().mean(0) for found in ups]
    with without_neurons(model, lambda gate, up, layer: gate.abs() > cut / means[layer]):
        expected = logits_of(model, small)
    with sparse(model, GateTimesMeanUp().build(model, Have(sample)), above(neurons(model), cut)) as run:
        found = run.logits(small)
    assert 0.05 < run.achieved("neuron") < 0.95
    torch.testing.assert_close(found[small.real()], expected[small.real()])


def test_m_countdown_drops_neurons_whose_up_is_small(small):
    model, cut = tiny("llama"), 0.1
    with without_neurons(model, lambda gate, up, layer: up.abs() > cut):
        expected = logits_of(model, small)
    with sparse(model, UpMagnitude(), above(neurons(model), cut)) as run:
        found = run.logits(small)
    assert 0.05 < run.achieved("neuron") < 0.95
    torch.testing.assert_close(found[small.real()], expected[small.real()])


@pytest.mark.parametrize("recipe", [UpMagnitude(), GateTimesMeanUp()], ids=["m_countdown", "chess"])
def test_what_sees_one_of_gate_and_up_reads_that_whole(recipe, small, sample):
    """A third of the FFN whole, of the other two what stays, and CHESS a number of each neuron."""
    model = tiny("phi3")
    scorer = recipe.build(model, Have(sample))
    unread = unread_of(model, scorer, small, SparsityPolicy(0.5, dense_layers=[]))
    ffn = sum(site.units * site.cost for site in neurons(model))
    vectors = sum(scorer.weights_at(site) for site in neurons(model)) if hasattr(scorer, "weights_at") else 0
    assert unread["skipped_of_layers"] == pytest.approx((ffn / 3 - vectors) / weights_of(model).layers)


@pytest.mark.parametrize("predictor", ["chess", "m_countdown"])
def test_neurons_without_a_gate_are_refused_by_name(compose, predictor):
    from shadow.errors import UserError
    from shadow.jobs import checks

    with pytest.raises(
        UserError, match=rf"predictor={predictor} reads what a gate is multiplied by.*opt have no"
    ):
        checks.check_method(compose("evaluate", "model=tiny-opt", f"predictor={predictor}"))


# Gemma-3n's rule


@pytest.mark.parametrize("level", [0.3, 0.95])
def test_what_is_above_mean_and_deviation_stays(level):
    from scipy.stats import norm

    scores = torch.randn(4, 3000, generator=torch.Generator().manual_seed(0))
    keep = Statistical(lambda key: level).keep([((1, "neuron"), scores)])[1, "neuron"]
    for row, stays in zip(scores.double(), keep, strict=True):
        cutoff = row.mean() + row.std(unbiased=False) * norm.ppf(level)
        assert torch.equal(stays, row > cutoff)
    assert float(keep.float().mean()) == pytest.approx(1 - level, abs=0.01)
    silent = Statistical(lambda key: 0.5, least=2).keep([((1, "neuron"), torch.zeros(3, 8))])[1, "neuron"]
    assert silent.sum(-1).tolist() == [2, 2, 2]
