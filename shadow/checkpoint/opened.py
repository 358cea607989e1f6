"""A loaded model that stays in a `sparse` block, and takes its method along when it is saved or copied."""

import atexit
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from shadow.checkpoint import folder
from shadow.checkpoint.method import Method, read
from shadow.errors import UserError
from shadow.executors.replaced import replace_method
from shadow.executors.run import Executor, Run
from shadow.front import facts_of, open_run

OPEN: "weakref.WeakSet[Opened]" = weakref.WeakSet()


@atexit.register
def close_all() -> None:
    """While Python can still import: blocks that it ends itself, later, end in a traceback."""
    for opened in list(OPEN):
        opened.close()


class Opened:
    """run: as `sparse` yields it, which counts all calls since the model was loaded."""

    run: Run

    def __init__(self, model: PreTrainedModel, stored: folder.Stored) -> None:
        if model.get_output_embeddings() is None:
            raise UserError(
                f"{stored.where} is a language model that is sparse, and {type(model).__name__} has no "
                "lm_head: load it by AutoModelForCausalLM"
            )
        self.model, self.stored = model, stored
        self.method = method_of(model, stored)
        self.stack = ExitStack()
        self.open(self.method.executor)
        OPEN.add(self)

    def open(self, executor: Executor) -> None:
        """With this executor, in place of the block before."""
        self.stack.close()
        model, method = self.model, self.method
        with ExitStack() as stack:
            self.run = stack.enter_context(
                open_run(model, method.scorer, method.policy, method.decided_at, method.stand_in, executor)
            )
            stack.enter_context(replace_method(model, "save_pretrained", self._saving(model.save_pretrained)))
            stack.enter_context(replace_method(model, "forward", unadapted(model)))
            self._copy_with_method()
            self.stack = stack.pop_all()

    def refuses(self, executor: Executor) -> str | None:
        """One sentence; None: the executor can run this method."""
        method = self.method
        policy = method.policy.of(method.scorer.kinds)
        facts = facts_of(self.model, method.scorer, policy, method.decided_at, method.stand_in)
        return executor.refuses(facts)

    def close(self) -> None:
        """The model is dense from now on."""
        self.stack.close()

    def _saving(self, own: Callable[..., Any]) -> Callable[..., Any]:
        def save_pretrained(save_directory: str | Path, *args: Any, **kwargs: Any) -> Any:
            if kwargs.get("push_to_hub"):
                raise UserError(
                    "save_pretrained(push_to_hub=True) would send the model without its method: call "
                    "model.push_to_hub(name)"
                )
            found = own(save_directory, *args, **kwargs)
            if kwargs.get("is_main_process", True):
                folder.add(Path(save_directory), self.stored)
            return found

        return save_pretrained

    def _copy_with_method(self) -> None:
        """A deep copy of the model is sparse too, in a block of its own."""
        bare = vars(self.model)["__deepcopy__"]

        def copied(memo: dict[int, Any]) -> nn.Module:
            found = bare(memo)
            found.hf_quantizer.opened = Opened(found, self.stored)
            return found

        vars(self.model)["__deepcopy__"] = copied

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """The block is this model's: of a copy `_copy_with_method` opens another."""


def method_of(model: PreTrainedModel, stored: folder.Stored) -> Method:
    try:
        return read(stored.told, stored.tensors, model)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(f"{stored.where} holds no method for this model ({reason}): {folder.CURE}") from error


def unadapted(model: PreTrainedModel) -> Callable[..., Any]:
    """The model's forward, refused where an adapter has come between it and its projections: what an adapter
    reads is not what the plan has left."""
    own = model.forward
    held = [
        (parent, name, child, f"{path}.{name}" if path else name)
        for path, parent in model.named_modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]

    def forward(*args: Any, **kwargs: Any) -> Any:
        for parent, name, child, path in held:
            if parent._modules[name] is not child:
                raise UserError(
                    f"{path} of this sparse model is now a {type(parent._modules[name]).__name__}, which "
                    "reads what the plan has dropped: merge an adapter by merge_and_unload(), or put it on "
                    "the dense model and export that"
                )
        return own(*args, **kwargs)

    return forward


def opened_of(model: Any) -> Opened:
    """Of a model that was loaded from such a folder."""
    opened = getattr(getattr(model, "hf_quantizer", None), "opened", None)
    if not isinstance(opened, Opened):
        raise UserError(
            "this model was not loaded from a folder of `shadow export`, or has been made dense again: load "
            "such a folder by AutoModelForCausalLM.from_pretrained"
        )
    return opened
