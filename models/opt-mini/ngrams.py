"""What a count can predict: the losses of a unigram and of a bigram, which a trained model has to beat."""

import torch
from torch import Tensor

WEIGHTS = [share / 20 for share in range(20)]


def unigram_loss(train: Tensor, held_out: Tensor, vocabulary: int) -> float:
    """Both [N, T] of token ids, the first of a row given -> nats a token of `held_out`."""
    return -_unigram(train, vocabulary)[held_out[:, 1:]].log().mean().item()


def bigram_loss(train: Tensor, held_out: Tensor, vocabulary: int) -> float:
    """Interpolated with the unigram by the weight that does best on `held_out` itself: a strong rival."""
    unigram = _unigram(train, vocabulary)[held_out[:, 1:]]
    pairs, counts = _pairs(train, vocabulary).unique(return_counts=True)
    asked = _pairs(held_out, vocabulary)
    place = torch.searchsorted(pairs, asked).clamp_max(len(pairs) - 1)
    together = torch.where(pairs[place] == asked, counts[place], 0)
    before = torch.bincount(train[:, :-1].flatten(), minlength=vocabulary)[held_out[:, :-1]]
    bigram = torch.where(before > 0, together / before.clamp_min(1), unigram)
    losses = [-(weight * bigram + (1 - weight) * unigram).log().mean() for weight in WEIGHTS]
    return torch.stack(losses).min().item()


def _unigram(train: Tensor, vocabulary: int) -> Tensor:
    """-> [vocabulary] float64, no token impossible."""
    counts = torch.bincount(train[:, 1:].flatten(), minlength=vocabulary).double() + 1
    return counts / counts.sum()


def _pairs(rows: Tensor, vocabulary: int) -> Tensor:
    """-> [N, T - 1]: a number for each token and the one before it."""
    return rows[:, :-1] * vocabulary + rows[:, 1:]
