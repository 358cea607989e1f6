"""Settings as typed, composed before Hydra starts: what it would refuse at length is one sentence here."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import CompactHydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from shadow.commands.suggestions import leaves, like
from shadow.errors import UserError, meant

# nodes whose settings a class takes as they are given, which refuses those that it does not know
OPEN = (
    "hydra",
    "trainer",
    "predictor",
    "executor",
    "data",
    "logger",
    "callbacks",
    "recipe",
    "model.source",
    "model.shape",
)
PLUGINS = {
    "hydra/launcher": ("joblib", "submitit_local", "submitit_slurm"),
    "hydra/sweeper": ("optuna",),
}  # of the extra


def composed(task: str, words: Sequence[str]) -> DictConfig:
    """The config of the first of the jobs that these words ask for, with Hydra's own settings in it.

    Refuses options and keys that there are not, and added ones that nothing reads.
    """
    with initialize_config_module("shadow.conf", version_base="1.3"):
        overrides = parsed(words)
        try:
            cfg = compose(task, [first_of(override) for override in overrides], return_hydra_config=True)
        except CompactHydraException as error:
            raise UserError(sentence(error, task, overrides)) from error
        refuse_unknown_options(overrides, cfg)
        refuse_unread(overrides, cfg)
    return cfg


def parsed(words: Sequence[str]) -> list[Override]:
    """glob(...) is only known while a config is being composed."""
    wordless = [word for word in words if "=" not in word and not word.startswith("~")]
    if wordless:
        raise UserError(f"a setting is given as KEY=VALUE and an option as GROUP=OPTION, got {wordless[0]!r}")
    loader = GlobalHydra.instance().config_loader() if GlobalHydra.instance().is_initialized() else None
    try:
        return OverridesParser.create(config_loader=loader).parse_overrides(list(words))
    except OverrideParseException as error:
        reason = error.message.splitlines()[0].rstrip(".")
        raise UserError(
            f"{error.override!r} cannot be read as KEY=VALUE ({reason}): put a value with brackets or "
            "commas of its own in quotes, as \"text='a, b'\""
        ) from error


def first_of(override: Override) -> str:
    """Of a sweep its first value: the words of one job."""
    if not override.is_sweep_override():
        return str(override.input_line)
    key, _, text = str(override.input_line).partition("=")
    if override.is_interval_sweep():
        return f"{key}=null"  # whichever number it will be
    first = next(override.sweep_string_iterator(), None)
    if first is None:
        raise UserError(f"{key}={text} matches none of {', '.join(hydras_options(key))}")
    return f"{key}={first}"


def hydras_options(group: str) -> list[str]:
    """Of its own groups and its plugins' too, which comments.options_of, without Hydra, does not know."""
    return list(GlobalHydra.instance().config_loader().get_group_options(group))


def refuse_unknown_options(overrides: Sequence[Override], cfg: DictConfig) -> None:
    """Of a sweep over options Hydra says it when that job's turn has come."""
    own = any(override.key_or_group == "hydra.searchpath" for override in overrides)
    for override in overrides:
        group = override.key_or_group
        if own or not override.is_choice_sweep() or group not in cfg.hydra.runtime.choices:
            continue
        for value in override.sweep_string_iterator():
            if value not in hydras_options(group):
                raise UserError(no_option(group, value, hydras_options(group)))


def refuse_unread(overrides: Sequence[Override], cfg: DictConfig) -> None:
    """`+key` adds what some option's class or another setting takes; no job would read anything else."""
    for override in overrides:
        key = override.key_or_group
        if not override.is_add() or key in cfg.hydra.runtime.choices:
            continue
        inside = any(key == node or key.startswith(f"{node}.") for node in OPEN)
        if inside or any(is_read(key, value) for value in strings(OmegaConf.to_container(cfg))):
            continue
        known = [name for name in leaves(cfg) if name != key and not key.startswith(f"{name}.")]
        near = like(key, known, value_in(override))
        raise UserError(f"no job reads what {override.input_line} adds{near or ': leave it out'}")


def value_in(override: Override) -> str:
    """As it was typed, with its sign."""
    _, sign, value = str(override.input_line).partition("=")
    return sign + value


def is_read(key: str, value: str) -> bool:
    """Whether an interpolation in it asks for the key, or for one above it."""
    asked = re.findall(r"\$\{(?:oc\.select:)?([\w.]+)", value)
    return any(key == name or key.startswith(f"{name}.") for name in asked)


def strings(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for value in node.values():
            yield from strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from strings(value)
    elif isinstance(node, str):
        yield node


def sentence(error: CompactHydraException, task: str, overrides: Sequence[Override]) -> str:
    """What Hydra says in as many lines as there are options."""
    if isinstance(error, MissingConfigException):
        return missing(error)
    text = " ".join(str(error).split()) or " ".join(str(error.__cause__).split())
    if match := re.match(r"Multiple values for (\S+)\. .*'override \1: (.*)'", text):
        return f"{match[1]} is chosen already: give {match[1]}={match[2]} without +"
    match = re.match(r"Could not (?:override|delete from config\.) '([^']+)'", text)
    if match is None:
        return text
    given = next((override for override in overrides if override.key_or_group == match[1]), None)
    near = like(match[1], leaves(settings_alone(task, overrides)), value_in(given) if given else "")
    return f"there is no setting {match[1]}{near or ':'} --help lists them"


def settings_alone(task: str, overrides: Sequence[Override]) -> DictConfig:
    """Composed of the options that are chosen, without what is wrong in the rest."""
    chosen = []
    for override in overrides:
        group = override.key_or_group
        if not override.is_add() and hydras_options(group):
            chosen.append(first_of(override))
    return compose(task, chosen, return_hydra_config=True)


def missing(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    if option in PLUGINS.get(group, ()):
        return (
            f"Hydra's {option} is not installed: pip install 'shadow-llm[launchers]', or in a checkout "
            "pip install -e '.[launchers]'"
        )
    if not group:
        return " ".join(str(error).split())
    return no_option(group, option, list(error.options or []))


def no_option(group: str, option: str, options: Sequence[str]) -> str:
    near = meant(option, options)
    listed = "--help lists them" if near else f"give one of {', '.join(options)}"
    return f"{group}={option} names no option of {group}{near or ':'} {listed}"
