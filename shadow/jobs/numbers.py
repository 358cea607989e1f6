"""Numbers of a predictor's settings with which nothing can be fitted, refused before work starts."""

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig

from shadow.errors import UserError

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


def check_numbers(cfg: DictConfig) -> None:
    settings = cfg.predictor
    for name, least in WHOLE.items():
        require_whole(f"predictor.{name}", settings[name], least)
    for name, rule in NUMBERS.items():
        require_number(f"predictor.{name}", settings[name], *rule)
    for name, (told, fits) in OPTIONAL.items():
        if settings[name] is not None:
            require_number(f"predictor.{name}", settings[name], f"{told}, or null for none", fits)
    mlp = settings.mlp
    if mlp is None:
        return
    if not isinstance(mlp, DictConfig) or set(mlp) != {"head", "neuron", "scaled"}:
        raise UserError(f"predictor.mlp must be null, or give head, neuron and scaled, got {mlp}")
    for name in ("head", "neuron"):
        require_whole(f"predictor.mlp.{name}", mlp[name], 1)


def require_whole(setting: str, value: Any, least: int) -> None:
    if type(value) is not int or value < least:  # True is an int to isinstance
        raise UserError(f"{setting} must be a whole number of at least {least}, got {value!r}")


def require_number(setting: str, value: Any, told: str, fits: Callable[[float], bool]) -> None:
    if type(value) not in (int, float) or not fits(value):
        raise UserError(f"{setting} must be {told}, got {value!r}")
