"""What a language model is called with, and how another answers in its place; of all devices."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from shadow.errors import UserError
from shadow.executors.cpu.cache import OwnCache
from shadow.signals import replace_method

REFUSED = ("inputs_embeds", "labels", "output_attentions", "output_hidden_states")
Cache = TypeVar("Cache", bound=OwnCache)


def ids_of(input_ids: Tensor | None, others: Mapping[str, Any]) -> Tensor:
    """Those of a call; others: what else it was given."""
    refused = [name for name in REFUSED if others.get(name) is not None and others[name] is not False]
    if refused:
        raise UserError(f"executor=gathered has no {refused[0]}: leave it out, or use executor=masked")
    if input_ids is None:
        raise UserError("executor=gathered reads input_ids: give them, or use executor=masked")
    return input_ids


def begun(past_key_values: Any, own: type[Cache]) -> Cache | None:
    """The cache that a call goes on from; None if it begins."""
    if past_key_values is None or past_key_values.get_seq_length() == 0:
        return None
    if not isinstance(past_key_values, own):
        raise UserError(
            f"executor=gathered goes on from its own caches alone, got a {type(past_key_values).__name__}: "
            "begin without past_key_values"
        )
    return past_key_values


def counted_on(cache: OwnCache, tokens: int) -> Tensor:
    """-> [B, tokens]: the positions behind a cache, from each row's first token."""
    start = cache.start
    return cache.length + torch.arange(tokens, device=start.device) - start[:, None]


def require_left_padding(real: Tensor) -> None:
    if bool((real.long().diff(dim=1) < 0).any()) or not bool(real.any(1).all()):
        raise UserError(
            "executor=gathered needs rows that are padded on the left alone: "
            "set tokenizer.padding_side='left'"
        )


def check_positions(given: Tensor | None, counted: Tensor, real: Tensor) -> None:
    """[B, T] each; what stands at padding does not matter."""
    if given is not None and bool((given != counted)[real].any()):
        raise UserError(
            "executor=gathered counts positions from each row's first token, and position_ids are others: "
            "leave them out, or use executor=masked"
        )


def require_known(ids: Tensor, counted: Tensor, words: int, positions: int | None) -> None:
    """What compiled code would read beyond the end of its arrays without a word.

    ids, counted: [B, T]; positions: how many a model has learnt, None where it turns by any.
    """
    least, most = int(ids.min()), int(ids.max())
    if least < 0 or most >= words:
        raise UserError(
            f"executor=gathered was given token {least if least < 0 else most}, and the model's are 0 to "
            f"{words - 1}: is this its tokenizer?"
        )
    if positions is not None and int(counted.max()) >= positions:
        raise UserError(
            f"executor=gathered was asked for position {int(counted.max())}, and the model has learnt "
            f"{positions}: generate less, or from a shorter prompt"
        )


@contextmanager
def answering(model: PreTrainedModel, forward: Callable[..., CausalLMOutputWithPast]) -> Iterator[None]:
    """Inside the block the model's forward is this one; afterwards what it was."""

    with replace_method(model, "forward", forward):
        yield
