"""Positions of a call: real ones, those of the prompt, and those at which every unit stays."""

import torch
from torch import Tensor

from shadow.plans.policy import Tokens


class Positions:
    """real: bool [B, T], what is no padding; whole: bool [B, T], where every unit stays; None: nowhere."""

    def __init__(self, real: Tensor, whole: Tensor | None) -> None:
        self.real, self.whole = real, whole
        self.n_real = int(real.count_nonzero())
        self.n_whole = 0 if whole is None else int((whole & real).count_nonzero())
        self.untouched = whole is not None and self.n_whole == self.n_real


def prompt_of(real: Tensor, start: int, columns: int | None) -> Tensor:
    """real: bool [B, T], behind `start` positions in the cache -> bool [B, T], those of the prompt.

    columns: positions that `generate` was given. None: a loop of one's own, whose prompt is all of the first
    call on an empty cache.
    """
    if columns is None:
        return real if start == 0 else torch.zeros_like(real)
    if columns >= start + real.shape[1]:
        return real
    return real & (torch.arange(start, start + real.shape[1], device=real.device) < columns)


def whole_positions(
    tokens: Tokens, real: Tensor, prompt: Tensor, ends: Tensor, start: int = 0, before: Tensor | None = None
) -> Tensor | None:
    """-> bool [B, T], True where `tokens` of the policy leaves all units; None: nowhere.

    real, prompt: bool [B, T]; ends: bool [B, T], those of which a share is the last. start: positions in the
    cache, and before: [B], real ones of each row.
    """
    if tokens == "all":
        return None
    if tokens == "decode":
        return prompt if bool(prompt.any()) else None
    place = real.long().cumsum(1)  # from 1 on
    if isinstance(tokens, int):
        return place + (0 if before is None else before[:, None]) <= tokens
    if start > 0:
        return None
    assert isinstance(tokens, float)
    length = ends.sum(1, keepdim=True)
    return place <= length - (length * tokens).ceil().long()
