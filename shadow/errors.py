"""The one kind of error that a person can mend, and the plainest rules of settings that raise it."""

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches


class UserError(ValueError):
    """A setting or file is wrong. The message is one sentence: what, the rule, the value, and the cure.

    The scripts show it without a traceback; everything else keeps its traceback. It is one line, whatever
    values are told in it.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence.replace("\r", r"\r").replace("\n", r"\n"))


def first_line(error: Exception) -> str:
    """What a library's error says first, for a sentence; of one that says nothing, its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def require_choice(setting: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserError(f"{setting} must be one of {list(allowed)}, got {value!r}{meant(value, allowed)}")


def meant(given: object, names: Iterable[str]) -> str:
    """The end of a sentence that refuses a name: which of these it is nearest to, if to any."""
    near = get_close_matches(str(given), list(names), n=1)
    return f": did you mean {near[0]}?" if near else ""


def require_whole(setting: str, value: object, least: int) -> None:
    if type(value) is not int or value < least:  # True is an int to isinstance
        raise UserError(f"{setting} must be a whole number of at least {least}, got {value!r}")


def require_int(setting: str, value: object) -> None:
    """Whatever its size: a rule of several settings says more."""
    if type(value) is not int:
        raise UserError(f"{setting} must be a whole number, got {value!r}")


def require_name(setting: str, value: object) -> None:
    if not isinstance(value, str):
        raise UserError(f"{setting} must be a name, got {value!r}")


def require_number(setting: str, value: object, rule: str, holds: Callable[[float], bool]) -> None:
    """rule: what it must be, in words."""
    if type(value) not in (int, float) or not holds(value):  # type: ignore[arg-type]
        raise UserError(f"{setting} must be {rule}, got {value!r}")


class UncountedTokens(UserWarning):
    """What a block counted is not what it ran."""
