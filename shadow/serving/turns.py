"""One request after another at the model, so that each gets the text that it has alone."""

import asyncio
import json
from threading import Lock
from typing import Any

import torch
from transformers.cli.serving.utils import BaseGenerateManager, GenerateManager, GenerationState

from shadow.serving.requests import ApiError
from shadow.serving.served import Served

USUAL = 1024  # new tokens where a request names no number, as in transformers
SEED = "shadow_seed"  # a request's own, beside the settings of its generation


class Turn:
    """The model, for one request: what transformers calls `generate` of, in the thread of all requests."""

    def __init__(self, turns: "Turns", streams: bool) -> None:
        self.turns, self.streams = turns, streams

    def generate(self, generation_config: Any, **inputs: Any) -> torch.Tensor:
        seed = vars(generation_config).pop(SEED, None)
        try:
            with torch.random.fork_rng(enabled=seed is not None):
                if seed is not None:
                    torch.manual_seed(seed)
                model: Any = self.turns.served.model
                return model.generate(generation_config=generation_config, **inputs)
        except ValueError as error:  # a UserError too
            if not self.streams:
                raise
            raise ValueError(json.dumps(str(error))[1:-1]) from error  # it is put between quotes
        finally:
            self.turns.leave()


class Turns(GenerateManager):
    """most: requests that wait or run; more are refused."""

    def __init__(self, served: Served, most: int) -> None:
        super().__init__()
        self.served, self.most = served, most
        self.inside, self.lock = 0, Lock()

    def generate_streaming(
        self,
        model: Any,
        processor: Any,
        inputs: dict,
        gen_config: Any,
        request_id: str,
        response_parser: Any = None,
    ) -> Any:
        self.enter(inputs, gen_config)
        turn: Any = Turn(self, streams=True)
        return super().generate_streaming(turn, processor, inputs, gen_config, request_id, response_parser)

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str
    ) -> Any:
        self.enter(inputs, gen_config)
        turn: Any = Turn(self, streams=False)
        # a client that leaves takes its answer along, and not its turn
        return await asyncio.shield(
            super().generate_non_streaming(turn, processor, inputs, gen_config, request_id)
        )

    def enter(self, inputs: Any, gen_config: Any) -> None:
        """Refuse what does not fit: the prompt with its new tokens, or another request."""
        prompt, context = int(inputs["input_ids"].shape[-1]), self.served.context
        room = USUAL if context is None else context - prompt
        if gen_config.max_new_tokens is None:
            gen_config.max_new_tokens = max(min(room, USUAL), 1)
        if context is not None and gen_config.max_new_tokens > room:
            raise ApiError(
                f"the model has {context} positions, and the prompt's {prompt} tokens with "
                f"{gen_config.max_new_tokens} new ones are more: give a shorter prompt, or fewer max_tokens",
                code="context_length_exceeded",
            )
        with self.lock:
            if self.inside >= self.most:
                raise ApiError(
                    f"{self.inside} requests wait already, and --max-waiting={self.most}: ask again later",
                    status=429,
                    code="rate_limit_exceeded",
                )
            self.inside += 1

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1


class State(GenerationState):
    """One queue, whatever is asked."""

    def __init__(self, turns: Turns) -> None:
        super().__init__()
        self.turns = turns

    def get_manager(self, model_id: str, use_cb: bool = False) -> BaseGenerateManager:
        return self.turns
