"""Means, and reduced-rank ridge regression, in one pass over rows: where a predictor's training starts."""

from collections.abc import Mapping

import torch
from torch import Tensor

from shadow.models.sites import Kind


class Moments:
    """Sums over rows of x and y, and for the regression of xx' and xy': width x outputs numbers."""

    def __init__(self, regression: bool) -> None:
        self.regression = regression
        self.count = 0
        self.x = self.x2 = self.xx = torch.zeros(0)
        self.y: dict[Kind, Tensor] = {}
        self.xy: dict[Kind, Tensor] = {}
        self.shift = torch.zeros(0)  # near the mean, so that differences of large sums keep their digits

    def add(self, x: Tensor, y: Mapping[Kind, Tensor]) -> None:
        """x: [K, N, E], K of them with the same y, which is [N, S, U] of each kind."""
        rows = x.flatten(0, 1)
        if not self.count:
            width = x.shape[-1]
            self.shift, self.x, self.x2 = rows.mean(0), torch.zeros(width), torch.zeros(width)
            self.y = {kind: torch.zeros(values[0].shape) for kind, values in y.items()}
            if self.regression:
                self.xx = torch.zeros(width, width)
                self.xy = {kind: torch.zeros(width, values[0].numel()) for kind, values in y.items()}
        rows = rows - self.shift
        together = rows.view(x.shape).sum(0)
        self.count += len(rows)
        self.x += rows.sum(0)
        self.x2 += rows.square().sum(0)
        for kind, values in y.items():
            self.y[kind] += len(x) * values.sum(0)
            if self.regression:
                self.xy[kind].addmm_(together.T, values.flatten(1))
        if self.regression:
            self.xx.addmm_(rows.T, rows)

    def center(self) -> Tensor:
        """-> [E]: mean of x."""
        return self.shift + self.x / self.count

    def scale(self) -> Tensor:
        """-> [E]: standard deviation of x."""
        return (self.x2 / self.count - (self.x / self.count).square()).clamp(min=1e-12).sqrt()

    def mean(self) -> dict[Kind, Tensor]:
        """-> [S, U]: mean of y."""
        return {kind: y / self.count for kind, y in self.y.items()}

    def regress(self, rank: int, ridge: float) -> tuple[Tensor, dict[Kind, Tensor]]:
        """-> down: [R, E], and up: [S * U, R] of each kind: y is about mean + up down (x - center) / scale.

        Of all maps of that rank it has the least ridge loss, the kinds weighing alike. ridge: penalty on the
        weights, in units of the variance of the scaled x, which is 1.
        """
        mean, scale = self.x / self.count, self.scale()
        gram = (self.xx / self.count - mean.outer(mean)) / scale.outer(scale) + ridge * torch.eye(len(mean))
        root = torch.linalg.cholesky(gram.double()).float()  # gram = root root'
        whitened: dict[Kind, Tensor] = {}
        spread = torch.zeros_like(gram)
        for kind, xy in self.xy.items():
            cross = (xy - self.x.outer(self.y[kind].flatten() / self.count)) / self.count / scale[:, None]
            whitened[kind] = torch.linalg.solve_triangular(root, cross, upper=False)
            spread += whitened[kind] @ whitened[kind].T / whitened[kind].shape[1]
        directions = torch.linalg.eigh(spread.double()).eigenvectors[:, -rank:].flip(-1).float()
        down = torch.linalg.solve_triangular(root.T, directions, upper=True).T
        return down, {kind: (directions.T @ values).T for kind, values in whitened.items()}
