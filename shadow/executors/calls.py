"""What a language model is called with, and how another answers in its place; of all devices."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from shadow.errors import UserError
from shadow.executors.altered import Unchanged
from shadow.executors.cache_layer import HeldLayer, Known, layers_of
from shadow.executors.families import Sizes
from shadow.executors.given import Given, require_kept, require_read
from shadow.executors.replaced import replace_method
from shadow.models.cache_name import cache_of, named_cache
from shadow.signals import hook_layers

REFUSED = ("inputs_embeds", "labels", "output_attentions", "output_hidden_states")
ELSE = "leave past_key_values and cache_implementation out, or use executor=masked"


class Places(NamedTuple):
    """Where the tokens of a call stand, on the host. real: bool [B, T]; start, offset: [B], as in `Known`;
    positions: [B, T], of which those of padding may lie below 0."""

    real: np.ndarray
    start: np.ndarray
    offset: np.ndarray
    positions: np.ndarray

    def known(self, device: torch.device) -> Known:
        return Known(*(torch.from_numpy(part).to(device) for part in (self.start, self.offset)))


def ids_of(input_ids: Tensor | None, others: Mapping[str, Any], config: PretrainedConfig) -> Tensor:
    """Those of a call; others: what else it was given, where the model's config says what is not."""
    told = {
        name: getattr(config, name, None) if others.get(name) is None else others[name] for name in REFUSED
    }
    refused = [name for name, value in told.items() if value is not None and value is not False]
    if refused:
        raise UserError(f"executor=gathered has no {refused[0]}: leave it out, or use executor=masked")
    if input_ids is None:
        raise UserError("executor=gathered reads input_ids: give them, or use executor=masked")
    require_read(input_ids)
    return input_ids


def stock(cache: Any) -> DynamicCache | None:
    """The cache that a call was given, if it is one that can be filled."""
    if cache is None:
        return None
    name = type(cache).__name__
    if not isinstance(cache, DynamicCache) or type(cache).update is not DynamicCache.update:
        raise UserError(f"executor=gathered fills a DynamicCache, got a {name}: {ELSE}")
    if cache.offloading:
        raise UserError(
            f"executor=gathered fills caches that are not offloaded, got a {name} that is: {ELSE}"
        )
    kinds = {type(layer) for layer in cache.layers} or {cache.layer_class_to_replicate or DynamicLayer}
    strange = kinds - {DynamicLayer, HeldLayer}
    if strange:
        raise UserError(
            "executor=gathered fills a DynamicCache of full attention, got one of "
            f"{strange.pop().__name__}: {ELSE}"
        )
    return cache


def require_fitting(cache: DynamicCache, ids: Tensor, sizes: Sizes) -> None:
    """ids: [B, T], which go on from the cache."""
    shapes = [shape_of(layer) for layer in layers_of(cache)]
    if len(shapes) != sizes.layers or len(set(shapes)) > 1:
        raise UserError(
            f"executor=gathered goes on from caches of the model's {sizes.layers} layers, all alike, and "
            f"past_key_values holds {sorted(set(shapes))} in {len(shapes)}: begin without past_key_values"
        )
    rows, heads, _, width = shapes[0]
    if rows != len(ids):
        raise UserError(
            f"past_key_values holds {rows} rows and input_ids has {len(ids)}: repeat the cache by "
            "batch_repeat_interleave, or choose its rows by batch_select_indices"
        )
    if (heads, width) != (sizes.kv_heads, sizes.head_width):
        raise UserError(
            f"the model has {sizes.kv_heads} key-value heads of width {sizes.head_width}, and "
            f"past_key_values {heads} of width {width}: this is another model's cache"
        )


def shape_of(layer: DynamicLayer) -> tuple[int, ...]:
    if isinstance(layer, HeldLayer) and layer.memory is not None and not layer.has_own:
        return layer.shape()
    return () if layer.keys is None else tuple(layer.keys.shape)


def places_of(
    ids: Tensor, mask: Tensor | None, given: Tensor | None, before: int, known: Known | None, learnt: bool
) -> Places:
    """ids: [B, T] behind `before` columns; mask: [B, before + T]; given: position_ids, [B or 1, T]; known: of
    the columns before; learnt: whether a model without position_ids counts them from the first real token,
    as those that add learnt positions do, and not from the first column."""
    rows, tokens = ids.shape
    columns = np.arange(before, before + tokens)
    first, shift = (None, None) if known is None else (numbers(known.start), numbers(known.offset))
    if mask is None:
        real = np.ones((rows, tokens), np.bool_)
        start = np.zeros(rows, np.int64) if first is None else first
    else:
        if not isinstance(mask, Tensor) or mask.shape != (rows, before + tokens):
            shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise UserError(
                f"executor=gathered needs an attention_mask of all positions so far, [{rows}, "
                f"{before + tokens}], got {shape}: leave it out, or use executor=masked"
            )
        whole = numbers(mask) != 0
        real, start = whole[:, before:], np.zeros(rows, np.int64)
        if not whole.all():
            if (whole[:, 1:] < whole[:, :-1]).any():
                raise UserError(
                    "executor=gathered needs rows that are padded on the left alone: set "
                    "tokenizer.padding_side='left'"
                )
            start = before + tokens - whole.sum(1)
    asked = None
    if given is not None:
        got = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
        if got not in ([tokens], [1, tokens], [rows, tokens]):
            raise UserError(f"position_ids must be those of the call's tokens, [{rows}, {tokens}], got {got}")
        asked = numbers(given)
        if asked.shape != (rows, tokens):
            asked = np.broadcast_to(asked, (rows, tokens))
        offset = columns[-1] - asked[:, -1]
    else:
        offset = start if learnt else np.zeros_like(start)
    if first is not None and shift is not None:
        offset = np.where(first < before, shift, offset)
    positions = columns - offset[:, None]
    if asked is not None and (((asked != positions) | (positions < 0) | (offset < 0)[:, None]) & real).any():
        raise UserError(
            "executor=gathered counts positions one by one from each row's first token or column, and "
            "position_ids are others: leave them out, or use executor=masked"
        )
    return Places(real, start, offset, positions)


def require_prompts(real: np.ndarray, end: int, prompt: int | None) -> None:
    """real: bool [B, T], padded on the left alone, up to position `end`; prompt: positions that `generate`
    was given. Of padding alone the dense model goes on in a way of its own."""
    if prompt is not None and prompt <= end and not real[:, -1].all():
        raise UserError(
            "executor=gathered goes on from the last token of each prompt, and a row of attention_mask tells "
            "of none: leave the row out, or use executor=masked"
        )


def numbers(of_device: Tensor) -> np.ndarray:
    """Small arrays are faster in numpy, and on a GPU each look at one would wait for the device."""
    return of_device.cpu().numpy()


def require_known(ids: np.ndarray, counted: np.ndarray, words: int, positions: int | None) -> None:
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


class Answering(ABC):
    """A run that answers in a model's place, whatever its device."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.config = model.config
        self.caches: bool = getattr(model.config, "use_cache", True)
        self.lock = Lock()  # buffers and counts are shared; a text's own state lies in its cache
        self.unchanged = Unchanged(model)

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """As the model's own: a cache that is given is filled, and one is made where none is."""
        ids, cache = ids_of(input_ids, others, self.config), stock(cache_of(others))
        require_kept(logits_to_keep)
        if cache is None and (self.caches if use_cache is None else use_cache):
            cache = DynamicCache()
        with self.lock:
            before = 0 if cache is None else cache.get_seq_length()
            given = Given(ids, attention_mask, cache, before, logits_to_keep)
            if cache is not None and before:
                logits = self.go_on(cache, given, position_ids)[:, given.last()]
            else:
                self.unchanged.require()
                logits = self.begin(cache, given, position_ids)
        return CausalLMOutputWithPast(logits=logits, **named_cache(cache))

    @abstractmethod
    def begin(self, cache: DynamicCache | None, given: Given, positions: Tensor | None) -> Tensor:
        """-> logits [B, T', V] of the positions asked for; what is to be remembered is put in the cache."""

    @abstractmethod
    def go_on(self, cache: DynamicCache, given: Given, positions: Tensor | None) -> Tensor:
        """-> logits [B, T, V] of the tokens behind those that the cache holds, one after the other."""


@contextmanager
def answering(
    model: PreTrainedModel, forward: Callable[..., CausalLMOutputWithPast], require_call: Callable[[], None]
) -> Iterator[None]:
    """Inside the block the model's forward is this one; afterwards what it was.

    require_call: refuses layers that are run past it."""

    names = list(inspect.signature(model.forward).parameters)

    def answer(*args: Any, **kwargs: Any) -> Any:
        found = forward(**dict(zip(names, args)), **kwargs)
        return found.to_tuple() if kwargs.get("return_dict") is False else found

    with replace_method(model, "forward", answer), hook_layers(model, require_call):
        yield
