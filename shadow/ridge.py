"""Reduced-rank ridge regression in one pass over rows: where a predictor's training starts."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from shadow.sites import Kind


class Fit(NamedTuple):
    """y = mean + up (down (x - center) / scale).  down: [R, E]; of each kind mean: [S, U], up: [S * U, R]."""

    center: Tensor
    scale: Tensor
    down: Tensor
    mean: dict[Kind, Tensor]
    up: dict[Kind, Tensor]


class Moments:
    """Sums of x, y, xx' and xy' over the rows seen. Memory: E x (outputs + E) numbers."""

    def __init__(self) -> None:
        self.count = 0
        self.x = self.xx = torch.zeros(0)
        self.y: dict[Kind, Tensor] = {}
        self.xy: dict[Kind, Tensor] = {}
        self.shift = torch.zeros(0)  # near the mean, so that differences of large sums keep their digits

    def add(self, x: Tensor, y: Mapping[Kind, Tensor]) -> None:
        """x: [N, E]; y: [N, S, U] of each kind."""
        if not self.count:
            self.shift = x.mean(0)
            self.x, self.xx = torch.zeros(x.shape[1]), torch.zeros(x.shape[1], x.shape[1])
            self.y = {kind: torch.zeros(values[0].shape) for kind, values in y.items()}
            self.xy = {kind: torch.zeros(x.shape[1], values[0].numel()) for kind, values in y.items()}
        x = x - self.shift
        self.count += len(x)
        self.x += x.sum(0)
        self.xx.addmm_(x.T, x)
        for kind, values in y.items():
            self.y[kind] += values.sum(0)
            self.xy[kind].addmm_(x.T, values.flatten(1))

    def fit(self, rank: int, ridge: float) -> Fit:
        """The rank-`rank` map with the least ridge loss, kinds weighing alike.

        ridge: penalty on the standardised weights, in units of the mean squared state (its variance is 1).
        """
        mean = self.x / self.count
        covariance = self.xx / self.count - mean.outer(mean)
        scale = covariance.diagonal().clamp(min=1e-12).sqrt()
        gram = covariance / scale.outer(scale) + ridge * torch.eye(len(mean))
        root = torch.linalg.cholesky(gram.double()).float()  # gram = root root'
        whitened: dict[Kind, Tensor] = {}
        spread = torch.zeros_like(gram)
        for kind, xy in self.xy.items():
            cross = (xy / self.count - mean.outer(self.y[kind].flatten() / self.count)) / scale[:, None]
            whitened[kind] = torch.linalg.solve_triangular(root, cross, upper=False)
            spread += whitened[kind] @ whitened[kind].T / whitened[kind].shape[1]
        directions = torch.linalg.eigh(spread.double()).eigenvectors[:, -rank:].flip(-1).float()
        return Fit(
            self.shift + mean,
            scale,
            torch.linalg.solve_triangular(root.T, directions, upper=True).T,
            {kind: y / self.count for kind, y in self.y.items()},
            {kind: (directions.T @ values).T for kind, values in whitened.items()},
        )
