"""Reduced-rank ridge regression against its closed form."""

import pytest
import torch

from shadow.fit.ridge import Moments

N, E, R = 200, 12, 3
SHAPES = {"head": (3, 4), "neuron": (3, 10)}


@pytest.fixture
def rows():
    """x: [N, E] far from 0 and of uneven scale; y of each kind: [N, S, U], a noisy linear map of x."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(N, E, generator=draw) * torch.logspace(-2, 2, E) + 50 * torch.randn(E, generator=draw)
    scaled = (x - x.mean(0)) / x.std(0)
    y = {}
    for kind, (layers, units) in SHAPES.items():
        weights = torch.randn(E, layers * units, generator=draw)
        noise = torch.randn(N, layers * units, generator=draw)
        y[kind] = (scaled @ weights + noise + 5).view(N, layers, units)
    return x, y


def seen(x, y, batch=64):
    moments = Moments(True)
    for start in range(0, len(x), batch):
        here = slice(start, start + batch)
        moments.add(x[None, here], {kind: values[here] for kind, values in y.items()})
    return moments


def standardised(x, y):
    """In float64: x with mean 0 and variance 1, y with mean 0, flat."""
    x = x.double()
    x = (x - x.mean(0)) / x.std(0, correction=0)
    return x, {kind: (v.double() - v.double().mean(0)).flatten(1) for kind, v in y.items()}


def loss_of(weights, x, y, ridge):
    """Squared error and penalty, each kind divided by its number of outputs; weights: [E, outputs]."""
    return float(
        sum(
            ((y[kind] - x @ w).square().sum() / len(x) + ridge * w.square().sum()) / w.shape[1]
            for kind, w in weights.items()
        )
    )


def maps(down, up):
    return {kind: (values @ down).T.double() for kind, values in up.items()}


def closed_form(x, y, ridge):
    gram = x.T @ x / len(x) + ridge * torch.eye(E, dtype=torch.double)
    return {kind: torch.linalg.solve(gram, x.T @ values / len(x)) for kind, values in y.items()}


def test_the_means_and_scales_are_those_of_all_rows(rows):
    x, y = rows
    moments = seen(x, y)
    # float32 sums over values with means of up to 50 and scales of 0.01
    torch.testing.assert_close(moments.center(), x.mean(0), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(moments.scale(), x.std(0, correction=0), rtol=1e-3, atol=0)
    for kind, mean in moments.mean().items():
        assert mean.shape == SHAPES[kind]
        torch.testing.assert_close(mean, y[kind].mean(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ridge", [0.01, 0.1, 1.0, 10.0])
def test_at_full_rank_it_is_ridge_regression(rows, ridge):
    x, y = standardised(*rows)
    for kind, found in maps(*seen(*rows).regress(E, ridge)).items():
        # float32 against float64, over condition numbers of up to 100
        torch.testing.assert_close(found, closed_form(x, y, ridge)[kind], rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("rank", [1, 2, R, 6])
@pytest.mark.parametrize("ridge", [0.01, 0.1, 1.0])
def test_at_lower_rank_no_map_of_that_rank_has_a_smaller_loss(rows, rank, ridge):
    """The optimum by the SVD of the whitened solution, kinds side by side and weighing alike."""
    x, y = standardised(*rows)
    down, up = seen(*rows).regress(rank, ridge)
    assert down.shape == (rank, E)
    assert {kind: values.shape for kind, values in up.items()} == {"head": (12, rank), "neuron": (30, rank)}

    root = torch.linalg.cholesky(x.T @ x / N + ridge * torch.eye(E, dtype=torch.double))
    weigh = {kind: values.shape[1] ** 0.5 for kind, values in y.items()}
    full = torch.cat([root.T @ w / weigh[kind] for kind, w in closed_form(x, y, ridge).items()], 1)
    u, s, v = torch.linalg.svd(full, full_matrices=False)
    best = torch.linalg.solve_triangular(root.T, (u[:, :rank] * s[:rank]) @ v[:rank], upper=True)
    optimum = dict(zip(y, best.split([values.shape[1] for values in y.values()], 1)))
    optimum = {kind: w * weigh[kind] for kind, w in optimum.items()}

    least, got = loss_of(optimum, x, y, ridge), loss_of(maps(down, up), x, y, ridge)
    assert got == pytest.approx(least, rel=1e-5)  # float32
    assert least > loss_of(closed_form(x, y, ridge), x, y, ridge)


def test_batches_of_rows_add_up(rows):
    whole, parts = seen(*rows, batch=N).regress(R, 0.1), seen(*rows, batch=7).regress(R, 0.1)
    for kind, found in maps(*parts).items():
        torch.testing.assert_close(
            found, maps(*whole)[kind], rtol=1e-2, atol=2e-3
        )  # float32 sums in other order


def test_inputs_that_share_their_outputs_are_as_many_rows(rows):
    x, y = rows
    other = x + torch.randn(N, E, generator=torch.Generator().manual_seed(1)) * x.std(0)
    together = Moments(True)
    for here in (slice(0, N // 2), slice(N // 2, N)):
        together.add(torch.stack([x, other])[:, here], {kind: values[here] for kind, values in y.items()})
    alone = seen(torch.cat([x, other]), {kind: torch.cat([values, values]) for kind, values in y.items()})
    assert together.count == alone.count == 2 * N
    torch.testing.assert_close(together.center(), alone.center(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(together.scale(), alone.scale(), rtol=1e-3, atol=0)
    for kind, mean in together.mean().items():
        torch.testing.assert_close(mean, alone.mean()[kind], rtol=1e-4, atol=1e-4)
    for kind, found in maps(*together.regress(R, 0.1)).items():
        torch.testing.assert_close(found, maps(*alone.regress(R, 0.1))[kind], rtol=1e-2, atol=2e-3)


def test_a_huge_penalty_leaves_the_mean(rows):
    for found in maps(*seen(*rows).regress(R, 1e9)).values():
        assert found.abs().max() < 1e-7


def test_a_column_that_never_varies_is_no_trouble(rows):
    x, y = rows
    x[:, 3] = 7.0
    moments = seen(x, y)
    for values in (moments.center(), moments.scale(), *maps(*moments.regress(R, 0.1)).values()):
        assert torch.isfinite(values).all()
    assert (moments.scale() > 0).all()


def test_fewer_rows_than_columns_are_no_trouble(rows):
    x, y = rows
    down, up = seen(x[:5], {kind: values[:5] for kind, values in y.items()}).regress(R, 0.1)
    assert torch.isfinite(down).all()
    assert all(torch.isfinite(values).all() for values in up.values())
