"""Rival methods without training, each against a slow, obvious reference, and what they read of the weights."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch
from families import FAMILIES, tiny
from torch import Tensor, nn

from shadow.data.batches import Batch, collate, logits_of
from shadow.front import sparse
from shadow.models.kinds import find_sites, weights_of
from shadow.models.sites import Site
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.inputs import InputNorm

FEW = pytest.mark.parametrize("family", ["opt-350m", "llama", "gemma3_text", "phi3", "pythia", "falcon-7b"])


@pytest.fixture(scope="module")
def small(examples: Callable) -> Batch:
    return collate(examples([9, 5, 12]))


@pytest.fixture(scope="module")
def sample(examples: Callable) -> list[Batch]:
    return [collate(examples([12, 9, 10], seed=1)), collate(examples([7, 12], seed=2))]


class Have:
    """What a recipe builds of, of these windows."""

    def __init__(self, sample: list[Batch]) -> None:
        self.windows = sample

    def sample(self) -> list[Batch]:
        return self.windows


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
