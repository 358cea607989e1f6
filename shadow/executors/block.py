"""What a block asks of a model and does to it, whatever the executor."""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from shadow.errors import UserError
from shadow.executors.planner import Planner
from shadow.executors.replaced import copied_without, replace_method
from shadow.models.layouts import find_layers

OPEN: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()  # layers of the models that are in a block
LOCK = threading.Lock()


@contextmanager
def block(model: PreTrainedModel, planner: Planner) -> Iterator[None]:
    with claimed(model), EAGER.held(), copied_without(model), prompted(model, planner):
        yield


class Eager:
    """While a block is open nothing runs that torch.compile made, of any model: what it made of this model's
    forward before the block would go past the block, and nobody could see it."""

    def __init__(self) -> None:
        self.blocks, self.stance = 0, ExitStack()

    @contextmanager
    def held(self) -> Iterator[None]:
        with LOCK:
            if self.blocks == 0:
                self.stance.enter_context(torch.compiler.set_stance("force_eager"))
            self.blocks += 1
        try:
            yield
        finally:
            with LOCK:
                self.blocks -= 1
                if self.blocks == 0:
                    self.stance.close()


EAGER = Eager()


@contextmanager
def claimed(model: PreTrainedModel) -> Iterator[None]:
    """Refuse a second block on layers that are in one: the inner would drop what is left by the outer."""
    layers = list(find_layers(model))
    with LOCK:
        if any(layer in OPEN for layer in layers):
            raise UserError(
                "this model is in a `sparse` block already, and a second one would run on what the first "
                "leaves of it: end the first, or load the model a second time"
            )
        OPEN.update(layers)
    try:
        yield
    finally:
        with LOCK:
            for layer in layers:
                OPEN.discard(layer)


def require_eager(model: nn.Module) -> None:
    """Refuse compiled models: their code was made without the block, and goes past it."""
    for name, module in model.named_modules():
        compiled = module._compiled_call_impl is not None or hasattr(module, "_orig_mod")
        if compiled or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable"):
            raise UserError(
                f"{f'{name} of the model' if name else 'the model'} is compiled, and compiled code does not "
                "see which units are dropped: give `sparse` a model that torch.compile was not called on"
            )


@contextmanager
def prompted(model: PreTrainedModel, planner: Planner) -> Iterator[None]:
    """Inside the block `generate` says where prompts end."""
    if not hasattr(model, "generate"):
        yield
        return
    own: Callable[..., Any] = model.generate  # type: ignore[assignment]  # nn.Module says Tensor | Module
    ended = threading.Event()

    def generate(inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        require_no_draft_of_its_own(model, args, kwargs)
        with planner.here.generating(columns_of(inputs, kwargs)):
            found = own(inputs, *args, **kwargs)
        if ended.is_set():
            raise UserError(
                "the block has ended while generate was running in another thread, whose last tokens are the "
                "dense model's: wait for the thread inside the block, as with thread.join()"
            )
        return found

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise UserError(
            "generate_batch and cache_implementation=paged join texts in one row, and plans are for rows: "
            "inside the block call model.generate(...) without them"
        )

    with ExitStack() as stack:
        stack.enter_context(replace_method(model, "generate", generate))
        for name in ("generate_batch", "init_continuous_batching"):
            stack.enter_context(replace_method(model, name, refuse))
        stack.callback(ended.set)
        yield


def require_no_draft_of_its_own(model: PreTrainedModel, args: tuple, kwargs: dict[str, Any]) -> None:
    """A draft by the first layers alone would count at these, and leave plans that lack the others."""
    configs = [*args[:1], kwargs.get("generation_config"), model.generation_config]
    asked = [kwargs, *(vars(config) for config in configs if config is not None)]
    if any(settings.get("assistant_early_exit") is not None for settings in asked):
        raise UserError(
            "assistant_early_exit drafts by some layers of the model alone, and plans are for all of them: "
            "leave it out, or give an assistant_model"
        )


def columns_of(inputs: Any, given: dict[str, Any]) -> int:
    """Positions of the prompt that `generate` is given; what lies in a cache counts too."""
    shown = given.get("inputs_embeds")
    if shown is None:
        shown = given.get("input_ids") if inputs is None else inputs
    mask = given.get("attention_mask")
    columns = [one.shape[1] for one in (shown, mask) if isinstance(one, torch.Tensor) and one.dim() > 1]
    return max([1, *columns])  # without any it begins with BOS
