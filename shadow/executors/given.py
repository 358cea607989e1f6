"""What a call of the model is given: its positions, its mask and its key-value cache."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache

from shadow.errors import UserError
from shadow.models.cache_name import cache_of

READ = (torch.int64, torch.int32, torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Given(NamedTuple):
    """read: ids [B, T] or embeddings [B, T, E]; mask: as the caller gave it; start: positions in the cache;
    logits_to_keep: as transformers has it, the last so many, or numbers of positions."""

    read: Tensor
    mask: Any
    cache: Cache | None
    start: int
    logits_to_keep: int | Tensor

    def real(self, behind: bool = False) -> Tensor:
        """-> bool [B, T]; behind: in a loop of transformers, behind its prompt, where nothing is padding."""
        if behind and not (isinstance(self.mask, Tensor) and self.mask.dim() == 2):
            return torch.ones(self.read.shape[:2], dtype=torch.bool, device=self.read.device)
        return real_positions(self.read, self.mask, self.start)

    def before(self) -> Tensor:
        """-> [B], real tokens of each row in the cache."""
        rows, tokens = self.read.shape[:2]
        mask = read_mask(self.mask, tokens, self.start)
        if mask is None or mask.shape[-1] == tokens:  # of the call alone
            return torch.full((rows,), self.start, device=self.read.device)
        if mask.dim() == 4:
            mask = sees(mask[:, 0, -1]).expand(rows, -1)
        return mask[:, : self.start].bool().sum(1)

    def shown(self) -> slice | Tensor | None:
        """Of T, the positions that logits are asked for; None: all."""
        kept = self.logits_to_keep
        return kept if isinstance(kept, Tensor) else slice(-kept, None) if kept else None

    def last(self) -> slice | Tensor:
        """Of T, the same, to pick them by."""
        shown = self.shown()
        return slice(None) if shown is None else shown


def read_given(signature: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> Given:
    bound = signature.bind(*args, **kwargs).arguments
    given = {name: value for name, value in bound.items() if name != "kwargs"} | bound.get("kwargs", {})
    read = given.get("input_ids")
    if read is None:
        read = given.get("inputs_embeds")
    if read is None:
        raise UserError("a sparse model is called with input_ids or inputs_embeds, and was given neither")
    cache = cache_of(given)
    if cache is not None and not isinstance(cache, Cache):
        raise UserError(
            f"a sparse model goes on from caches of transformers, got a {type(cache).__name__}: give a "
            "DynamicCache, or none"
        )
    require_read(read)
    kept = given.get("logits_to_keep", 0)
    require_kept(kept)
    start = 0 if cache is None else int(cache.get_seq_length())
    return Given(read, given.get("attention_mask"), cache, start, kept)


def require_read(read: Any) -> None:
    """Of ids or embeddings: what no model could read, and what compiled code would read as something else."""
    what = f"a {type(read).__name__}"
    if isinstance(read, Tensor):
        if read.dim() == (3 if read.is_floating_point() else 2) and read.numel() and read.dtype in READ:
            return
        what = f"{str(read.dtype)[6:]} {list(read.shape)}"
    raise UserError(
        "a sparse model reads input_ids, a tensor of int64 or int32, [rows, positions], or inputs_embeds, "
        f"[rows, positions, width], of one position at least, and was given {what}: tokenise with "
        "return_tensors='pt'"
    )


def require_kept(logits_to_keep: Any) -> None:
    if not isinstance(logits_to_keep, int | Tensor):
        raise UserError(
            "logits_to_keep must be a whole number, the last so many positions, or a tensor of positions, "
            f"got {logits_to_keep!r}"
        )


def cache_in(output: Any) -> Cache | None:
    """The key-value cache that a call hands back."""
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else ()
    return next((value for value in values if isinstance(value, Cache)), None)


def real_positions(ids: Tensor, mask: Any, start: int | None = None) -> Tensor:
    """-> bool [B, T], what is no padding of a call's ids [B, T] or embeddings [B, T, E].

    mask: transformers' attention mask, [B, T] or [B, all positions], or what its own loops make of it for
    static caches, [B or 1, 1, T, all] or one for each type of layer. start: positions before the call; None:
    the mask ends where the call does.
    """
    rows, tokens = ids.shape[:2]
    if start is None:
        start = mask.shape[-1] - tokens if isinstance(mask, Tensor) and mask.dim() == 2 else 0
    mask = read_mask(mask, tokens, start)
    if mask is None:
        return torch.ones(rows, tokens, dtype=torch.bool, device=ids.device)
    if mask.dim() == 4:  # padding is seen by nobody, itself not either
        return sees(mask[:, 0, :, start : start + tokens].diagonal(dim1=1, dim2=2)).expand(rows, -1)
    return (mask if mask.shape[1] == tokens else mask[:, start : start + tokens]).bool()


def read_mask(mask: Any, tokens: int, start: int) -> Tensor | None:
    """-> [B, tokens], [B, start + tokens or more], or [B or 1, 1, tokens, start + tokens or more]; None:
    nothing is padding."""
    if isinstance(mask, Mapping):
        if any(one is None for one in mask.values()):  # causal alone
            return None
        mask = next((one for one in mask.values() if one.shape[-1] >= start + tokens), mask)
    if mask is None:
        return None
    if isinstance(mask, Tensor):
        long = mask.shape[-1] >= start + tokens
        if mask.dim() == 2 and (long or mask.shape[1] == tokens):
            return mask
        if mask.dim() == 4 and long and mask.shape[2] == tokens:
            return mask
    what = f"of shape {list(mask.shape)}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
    raise UserError(
        f"attention_mask must tell padding for the {tokens} positions of the call, behind {start} in the "
        f"cache, as [rows, positions] or [rows, 1, queries, keys], and is {what}: give [rows, "
        f"{start + tokens}]"
    )


def sees(mask: Tensor) -> Tensor:
    """A mask of four dimensions is True where a key is seen, or 0 and not minus infinity."""
    return mask if mask.dtype == torch.bool else mask == 0
