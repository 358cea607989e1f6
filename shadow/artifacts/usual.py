"""How settings differ from what conf/ has: what tells artifacts of one kind apart."""

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, TypeGuard

from omegaconf import OmegaConf

LONGEST = 60  # characters of a name that differences may take
UNTOLD = ("_target_", "name", "source", "shape", "path", "terms", "format", "seed")
# what is left open in conf/ is among settings as what it comes to
FOLLOWS: dict[str, tuple[object, ...]] = {
    "sparsity.kinds": (["head", "neuron"], ["channel"], ["neuron"], ["block"]),
    "sparsity.stand_in": ("zero", "mean", "own"),
}
GROUPS = ("predictor", "sparsity", "trainer", "model", "data", "traces")
MADE_OF = ("fit", "router", "sample", "traces", "predictor")
NAMED = ("model", "predictor")  # groups whose option has its name among its settings


def differences(settings: Mapping[str, Any]) -> dict[str, Any]:
    """settings: as an artifact's file has them -> those that are not as in conf/, dotted."""
    found: dict[str, Any] = {}
    groups = groups_of(settings)
    data = option_of_data(groups.get("data", {}))
    for group, values in groups.items():
        option = data if group == "data" else option_of(group, values)
        usual = option_values(group, option)
        for name, value in flat(values).items():
            told = name.partition(".")[0] not in UNTOLD and value not in FOLLOWS.get(f"{group}.{name}", ())
            if told and not is_open(usual.get(name)) and usual.get(name) != value:
                found[f"{group}.{name}"] = value
    if data != "builtin" and "data" in groups:
        found = {"data": data, **found}
    size = settings.get("size", settings.get("fit", {}).get("size"))
    if size is not None and size != str(usual_size(data)):
        found["data.examples_per_task" if data == "tasks" else "data.windows"] = size
    if "level" in settings:  # of the plans that left pruned states
        found["level"] = settings["level"]
    for name, expected in usual_job().items():
        value = settings.get(name, settings.get("fit", settings).get("traces", {}).get(name, expected))
        if value != expected:
            found[name] = value
    return found


def groups_of(settings: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The groups' settings, of what it was made of too: a predictor of its traces, budgets of a predictor."""
    found: dict[str, Mapping[str, Any]] = {}
    for name in MADE_OF:
        inner = settings.get(name)
        if is_made_of(inner):
            found |= groups_of(inner)
    for name in GROUPS:
        values = settings.get(name)
        if isinstance(values, Mapping) and not is_made_of(values):
            found[name] = values
    return {name: found[name] for name in GROUPS if name in found}


def is_made_of(inner: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether these are an artifact's settings, and not a group's."""
    return isinstance(inner, Mapping) and ("traces" in inner or "model" in inner)


def option_of(group: str, values: Mapping[str, Any]) -> str:
    if group in NAMED:
        return str(values.get("name"))
    if group == "sparsity":  # paths of greedy budgets serve every scope, and name none
        return str(values.get("scope", "layer"))
    return "default"


def option_of_data(values: Mapping[str, Any]) -> str:
    """By its class; `own` for another than those of conf/."""
    for option in ("builtin", "text", "tasks"):
        if option_values("data", option).get("_target_") == values.get("_target_"):
            return option
    return "own"


def usual_size(data: str) -> object:
    values = option_values("data", data)
    return values.get("windows", values.get("examples_per_task"))


@cache
def usual_job() -> dict[str, object]:
    """What a job takes that names no criterion and no seed."""
    whole = content_of(files("shadow.conf") / "train.yaml")
    chosen = {
        group: option
        for part in whole["defaults"]
        if isinstance(part, dict)
        for group, option in part.items()
    }
    return {"criterion": chosen["criterion"], "seed": whole["seed"]}


def is_open(value: object) -> bool:
    """Whether conf/ takes it from other settings."""
    return isinstance(value, str) and "${" in value


@cache
def option_values(group: str, option: str) -> dict[str, Any]:
    """An option's settings, dotted, with those of the options that it is made from; {} if conf/ has none."""
    file = files("shadow.conf") / group / f"{option}.yaml"
    if not file.is_file():
        return {}
    content = content_of(file)
    found: dict[str, Any] = {}
    for parent in content.pop("defaults", []):
        if isinstance(parent, str) and parent != "_self_":
            found |= option_values(group, parent)
    return found | flat(content)


def content_of(file: Traversable) -> dict[str, Any]:
    """A YAML of conf/, with its interpolations as they are written."""
    content = OmegaConf.to_container(OmegaConf.create(file.read_text(encoding="utf-8")), resolve=False)
    assert isinstance(content, dict)
    return {str(name): value for name, value in content.items()}


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= {f"{name}.{inner}": content for inner, content in flat(value).items()}
        else:
            found[name] = value
    return found


def in_name(found: Mapping[str, Any]) -> str:
    """As `fisher-epochs=3-rank=16`, by the last words of settings; what is too long is counted: `+2`."""
    parts: list[str] = []
    for name, value in found.items():
        leaf = name.rpartition(".")[2]
        parts.append(spelt(value) if leaf in ("criterion", "data") else f"{leaf}={spelt(value)}")
    told = list(parts)
    while len("-".join(told)) > LONGEST:
        told.pop()
    rest = len(parts) - len(told)
    return "-".join(told) + (f"+{rest}" if rest else "")


def spelt(value: object) -> str:
    """Without signs that a shell or a file system reads."""
    if isinstance(value, list | tuple):
        return ",".join(map(spelt, value))
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return re.sub(r"[^\w.,+-]+", "", f"{value:g}" if isinstance(value, float) else str(value))
