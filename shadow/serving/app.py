"""transformers' application with one model, and with errors as OpenAI's API has them."""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import BaseHandler

from shadow.checkpoint.opened import opened_of
from shadow.errors import UserError
from shadow.serving.requests import ApiError, check
from shadow.serving.served import Served
from shadow.serving.turns import SEED, State, Turns

log = logging.getLogger(__name__)

PATHS = {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health"}  # of transformers' own


class OneModel(ModelManager):
    """In place of transformers' own, which loads whatever a request names."""

    def __init__(self, served: Served) -> None:
        self.served, self.created = served, int(time.time())
        self.force_model = served.name

    def list_models(self, cache_dir: str | None = None) -> list[dict]:
        opened = opened_of(self.served.model)
        said = {"level": opened.method.policy.level, "executor": self.served.executor}
        base = {"id": self.served.name, "object": "model", "created": self.created, "owned_by": "local"}
        return [base | {"shadow": said | {"max_tokens": self.served.context}}]

    get_gen_models: Any = list_models  # as transformers called it before 5.24

    def shutdown(self) -> None:
        """The model goes with the process."""


class Checked(BaseHandler):
    """What both kinds of request have in common."""

    needed: str  # the field to go on from

    def __init__(self, model_manager: OneModel, generation_state: State) -> None:
        super().__init__(model_manager, generation_state)
        self.served = model_manager.served

    def _validate_request(self, body: dict) -> None:
        check(body, self.needed)
        super()._validate_request(body)

    def _resolve_model(self, body: dict) -> tuple[str, Any, Any]:
        asked = body.get("model")
        if asked not in (None, self.served.name):
            raise not_here(asked, self.served.name)
        return self.served.name, self.served.model, self.served.tokenizer

    def _build_generation_config(self, body: dict, *args: Any, **kwargs: Any) -> Any:
        seed = body.pop("seed", None)  # transformers would seed another thread than the model's
        config = super()._build_generation_config(body, *args, **kwargs)
        if body.get("max_tokens") is None and body.get("max_completion_tokens") is None:
            config.max_new_tokens = None  # as many as there is room for
        if body.get("temperature"):
            config.do_sample = True
        if (bias := body.get("logit_bias")) is not None:  # of completions transformers takes no notice of it
            config.sequence_bias = biases(bias, self.served) or None
        if seed is not None:
            vars(config)[SEED] = seed
        return config


class Completions(Checked, CompletionHandler):
    needed = "prompt"


class Chats(Checked, ChatCompletionHandler):
    needed = "messages"

    async def handle_request(self, body: dict, request_id: str) -> Any:
        if not getattr(self.served.tokenizer, "chat_template", None):
            raise ApiError(
                f"{self.served.name} has no chat template, for it was not trained to chat: ask "
                "/v1/completions with a prompt"
            )
        return await super().handle_request(body, request_id)


def biases(asked: dict[str, float], served: Served) -> dict[tuple[int], float]:
    words = served.model.config.get_text_config().vocab_size
    strange = [one for one in asked if int(one) >= words]
    if strange:
        raise ApiError(
            f"logit_bias names token {strange[0]}, and the model's are 0 to {words - 1}", param="logit_bias"
        )
    return {(int(one),): float(bias) for one, bias in asked.items()}


def not_here(asked: object, name: str) -> ApiError:
    return ApiError(
        f"the model {asked!r} is not served here, but {name!r} is", 404, "model_not_found", "model"
    )


def build(served: Served, most: int) -> FastAPI:
    """most: requests that may wait."""
    models, state = OneModel(served), State(Turns(served, most))
    others = cast(Any, None)  # handlers of paths that are taken away
    app = build_server(
        models,
        Chats(models, state),
        completion_handler=Completions(models, state),
        response_handler=others,
        transcription_handler=others,
        systemone_handler=others,
        generation_state=state,
    )
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", "") in PATHS]

    @app.get("/v1/models/{name:path}")
    def model(name: str) -> JSONResponse:
        if name != served.name:
            raise not_here(name, served.name)
        return JSONResponse(models.list_models()[0])

    tell_errors(app)
    return app


def tell_errors(app: FastAPI) -> None:
    """Each as {"error": {"message": ..., "type": ..., "code": ..., "param": ...}}."""

    def told(error: ApiError) -> JSONResponse:
        return JSONResponse(error.body, status_code=error.status)

    @app.exception_handler(ApiError)
    async def of_request(request: Request, error: ApiError) -> JSONResponse:
        return told(error)

    @app.exception_handler(UserError)
    async def of_method(request: Request, error: UserError) -> JSONResponse:
        return told(ApiError(str(error)))

    @app.exception_handler(RequestValidationError)
    async def of_body(request: Request, error: RequestValidationError) -> JSONResponse:
        reason = "; ".join(str(one["msg"]) for one in error.errors())
        return told(ApiError(f"the body must be a JSON object ({reason})"))

    @app.exception_handler(HTTPException)  # of transformers, and of paths that there are none of
    async def of_others(request: Request, error: HTTPException) -> JSONResponse:
        return told(ApiError(str(error.detail), error.status_code))

    @app.middleware("http")
    async def unforeseen(request: Request, call_next: Callable[[Request], Awaitable[Any]]) -> Any:
        try:
            return await call_next(request)
        except Exception as error:  # the connection goes on, and other requests with it
            log.error("%s failed", request.url.path, exc_info=error)
            return told(ApiError(f"the server failed ({type(error).__name__}): its log says more", 500))
