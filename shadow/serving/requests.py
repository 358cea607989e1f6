"""What is asked: refused where the answer would be another than the one that was asked for."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class ApiError(Exception):
    """An error as OpenAI's API has them. code: as clients look for it; param: the field."""

    def __init__(self, message: str, status: int = 400, code: str | None = None, param: str | None = None):
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "code": self.code, "param": self.param}}


class Field(NamedTuple):
    """what: in words; holds: whether a value is that."""

    what: str
    holds: Callable[[Any], bool]


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_texts(value: object) -> bool:
    """One text, or up to four."""
    if isinstance(value, str):
        return bool(value)
    return (
        isinstance(value, list) and 0 < len(value) <= 4 and all(isinstance(one, str) and one for one in value)
    )


def is_bias(value: object) -> bool:
    return isinstance(value, dict) and all(
        one.isdecimal() and is_number(bias) and -100 <= bias <= 100 for one, bias in value.items()
    )


TOKENS = Field("a whole number of at least 1", lambda value: is_whole(value) and value >= 1)
FIELDS = {
    "max_tokens": TOKENS,
    "max_completion_tokens": TOKENS,
    "temperature": Field("in [0, 2]", lambda value: is_number(value) and 0 <= value <= 2),
    "top_p": Field("in (0, 1]", lambda value: is_number(value) and 0 < value <= 1),
    # transformers adds 1 and divides by it
    "frequency_penalty": Field("in (-1, 2]", lambda value: is_number(value) and -1 < value <= 2),
    "logit_bias": Field("an object of token ids, each with a number in [-100, 100]", is_bias),
    "seed": Field("a whole number of at least 0", lambda value: is_whole(value) and 0 <= value < 2**63),
    "stream": Field("true or false", lambda value: isinstance(value, bool)),
    "stop": Field("a text, or up to four of them", is_texts),
    "prompt": Field("a text that is not empty", lambda value: isinstance(value, str) and value != ""),
}
# fields that the server has no answer to, and the values that ask for nothing; the others change no text
NOTHING: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "generation_config": (),
}


def check(body: Mapping[str, Any], needed: str) -> None:
    """needed: the field that says what to go on from."""
    if body.get(needed) is None:
        raise ApiError(f"{needed} is missing", param=needed)
    for name, field in FIELDS.items():
        value = body.get(name)
        if value is not None and not field.holds(value):
            raise ApiError(f"{name} must be {field.what}, got {value!r}", param=name)
    for name, nothing in NOTHING.items():
        value = body.get(name)
        if value is not None and value not in nothing:
            raise ApiError(f"{name} is not served here, got {value!r}: leave it out", param=name)
    if "messages" in body:
        check_messages(body["messages"])


def check_messages(messages: object) -> None:
    def fits(one: object) -> bool:
        return (
            isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)
        )

    if not isinstance(messages, list) or not messages or not all(fits(one) for one in messages):
        raise ApiError(
            "messages must be a list of objects, each with a role and a text as its content", param="messages"
        )
