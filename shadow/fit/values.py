"""Values of a net's settings with which nothing can be fitted, refused before work starts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shadow.errors import UserError, require_number, require_whole
from shadow.models.sites import Kind

# the least of those that are whole
WHOLE = {"rank": 1, "hidden": 1, "depth": 0, "epochs": 0, "batch_size": 1, "rounds": 0}
Rule = tuple[str, Callable[[float], bool]]
ABOVE_0: Rule = ("a number above 0", lambda value: 0 < value < float("inf"))
AT_LEAST_0: Rule = ("a number of at least 0", lambda value: 0 <= value < float("inf"))
NUMBERS: dict[str, Rule] = {
    "floor": AT_LEAST_0,
    "lr": ABOVE_0,
    "beta2": ("a number in [0, 1)", lambda value: 0 <= value < 1),
    "weight_decay": AT_LEAST_0,
    "last_weight_decay": AT_LEAST_0,
    "warmup": ("a share of the steps, in [0, 1]", lambda value: 0 <= value <= 1),
    "val_share": ("a share of the windows, in (0, 1)", lambda value: 0 < value < 1),
}
OPTIONAL: dict[str, Rule] = {"clip": ABOVE_0, "ridge": ABOVE_0}
SCORED: tuple[Kind, ...] = ("head", "neuron")  # the kinds that a net may score


def require_numbers(settings: Mapping[str, Any]) -> None:
    for name, least in WHOLE.items():
        require_whole(f"predictor.{name}", settings[name], least)
    for name, rule in NUMBERS.items():
        require_number(f"predictor.{name}", settings[name], *rule)
    for name, (words, holds) in OPTIONAL.items():
        if settings[name] is not None:
            require_number(f"predictor.{name}", settings[name], f"{words}, or null for none", holds)
    mlp = settings["mlp"]
    if mlp is None:
        return
    if not isinstance(mlp, Mapping) or set(mlp) != {"head", "neuron", "scaled"}:
        raise UserError(f"predictor.mlp must be null, or give head, neuron and scaled, got {mlp}")
    for name in ("head", "neuron"):
        require_whole(f"predictor.mlp.{name}", mlp[name], 1)


def require_kinds(asked: Any) -> None:
    found = [kind for kind in SCORED if isinstance(asked, Sequence) and kind in asked]
    if isinstance(asked, str) or not found or len(found) != len(asked):
        raise UserError(f"predictor.kinds must name some of {list(SCORED)} in brackets, got {asked}")


def require_taps(taps: Any, ahead: Any) -> None:
    """What can be said of `predictor.taps` and `predictor.ahead` before the model is known."""
    if isinstance(ahead, bool) or not isinstance(ahead, int) or ahead < 0:
        raise UserError(f"predictor.ahead must be a whole number of layers, at least 0, got {ahead}")
    if isinstance(taps, int) and not isinstance(taps, bool) and taps >= 1:
        return
    layers = list(taps) if isinstance(taps, Sequence) and not isinstance(taps, str) else []
    if taps != "each" and (not layers or layers != sorted({tap for tap in layers if isinstance(tap, int)})):
        raise UserError(f"predictor.taps must be `each`, how many, or rising layers in brackets, got {taps}")


def are_levels(levels: Any) -> bool:
    """Whether these are levels of plans at which something goes and something stays."""
    if not isinstance(levels, Sequence) or isinstance(levels, str) or not levels:
        return False
    return all(isinstance(level, float) and 0 < level < 1 for level in levels)
