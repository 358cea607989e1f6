"""The method of a job: its recipe, policy, stand-in and executor, and the facts by which they refuse."""

import inspect
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, cast, get_args

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from shadow.criteria import BESIDE_MEANS
from shadow.errors import UserError, require_whole
from shadow.executors.run import Executor
from shadow.fit.recipe import Net
from shadow.jobs.config import device_of, plain, shape_of
from shadow.models.kinds import key_value_heads
from shadow.models.sites import Kind
from shadow.plans.facts import Facts, Traits
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.recipe import Needs, Recipe

RECIPES: dict[tuple[object, str], Recipe] = {}  # by class and settings


def recipe_of(cfg: DictConfig) -> Recipe:
    """For what a job asks again and again, traits, needs and rules: made once of the same settings."""
    settings = plain(cfg.predictor)
    del settings["name"]  # a label
    key = class_of("predictor", settings), repr(settings)
    if key not in RECIPES:
        RECIPES[key] = new_recipe(cfg)
    return RECIPES[key]


def new_recipe(cfg: DictConfig) -> Recipe:
    """To build a scorer, which may be the recipe itself and remember what it has seen."""
    settings = plain(cfg.predictor)
    del settings["name"]
    recipe = made("predictor", settings)
    missing = [name for name in ("traits", "needs", "refuses", "build") if not hasattr(recipe, name)]
    if missing:
        raise UserError(
            f"predictor._target_={settings['_target_']} is no recipe, for it has no {missing[0]}: let it "
            "inherit from shadow.scorers.recipe.TrainingFree"
        )
    return cast(Recipe, recipe)


def executor_of(cfg: DictConfig) -> Executor:
    return cast(Executor, made("executor", plain(cfg.executor)))


def class_of(group: str, settings: Mapping[str, Any]) -> Any:
    """A group's `_target_`, which may also lie in the folder that the job was started from."""
    here, target = HydraConfig.get().runtime.cwd, settings["_target_"]
    if here not in sys.path:
        sys.path.append(here)  # last: no file there hides an installed module
    try:
        return get_object(target or "")
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{group}._target_ must name a class, as my_file.Mine of a file my_file.py in {here}, got "
            f"{target!r} ({error})"
        ) from error


def made(group: str, settings: Mapping[str, Any]) -> object:
    found, target = class_of(group, settings), settings["_target_"]
    others = {name: value for name, value in settings.items() if name != "_target_"}
    try:
        inspect.signature(found).bind(**others)
    except TypeError as error:
        taken = ", ".join(inspect.signature(found).parameters) or "no settings"
        raise UserError(f"{group}._target_={target} takes {taken}: {error}") from error
    try:
        return instantiate(settings, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise


def net_of(cfg: DictConfig) -> Net:
    """The recipe of a predictor that is trained."""
    recipe = recipe_of(cfg)
    if not isinstance(recipe, Net):
        raise UserError(
            f"predictor._target_={cfg.predictor._target_} needs a fit, and only what inherits from "
            "shadow.fit.recipe.Net is fitted"
        )
    return recipe


def needs_of(cfg: DictConfig) -> Needs:
    return recipe_of(cfg).needs(cfg.criterion.name)


def is_trained(cfg: DictConfig) -> bool:
    """Whether the scorer is a predictor that is trained."""
    return needs_of(cfg).fit


def traits_of(cfg: DictConfig) -> Traits:
    layers = shape_of(cfg).get_text_config().num_hidden_layers
    traits = recipe_of(cfg).traits(cfg.criterion.name, layers)
    return traits._replace(name=f"predictor={cfg.predictor.name}")


def policy_of(cfg: DictConfig) -> SparsityPolicy:
    """With all kinds that are scored, unless the config names some; without what is learnt."""
    settings = plain(cfg.sparsity)
    if settings["kinds"] is None:
        scored = traits_of(cfg).kinds
        settings["kinds"] = [kind for kind in get_args(Kind) if kind in scored]
    own = {field.name for field in fields(SparsityPolicy)}
    return SparsityPolicy(**{name: value for name, value in settings.items() if name in own})


def facts_of(cfg: DictConfig, level: float | None = None) -> Facts:
    """level: in place of that of the config."""
    config = shape_of(cfg)
    text = config.get_text_config()
    policy, traits, stand_in = policy_of(cfg), traits_of(cfg), stand_in_of(cfg)
    return Facts(
        policy if level is None else replace(policy, level=level),
        cfg.sparsity.decided_at,
        traits,
        config,
        text.num_hidden_layers,
        text.num_attention_heads // key_value_heads(text),
        getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None) or 1,
        device_of(cfg).type,
        OmegaConf.select(cfg, "measure.dtype") or cfg.model.dtype,
        stand_in=traits.stands_in if stand_in == "own" else stand_in,
        corrects=learns_stand_in(cfg),
    )


def stand_in_of(cfg: DictConfig) -> str:
    """`zero`, `mean`, or the method's `own`: what stands in a dropped unit's place."""
    if cfg.sparsity.stand_in != "auto":
        return cfg.sparsity.stand_in
    if traits_of(cfg).stands_in:
        return "own"
    deviates = cfg.criterion.name in BESIDE_MEANS and traits_of(cfg).by_criterion
    return "mean" if deviates else "zero"


def ranks_layers(cfg: DictConfig) -> bool:
    """Whether mean scores say how much each layer loses."""
    return cfg.sparsity.budgets == "global" and cfg.sparsity.level > 0


def learns_budgets(cfg: DictConfig) -> bool:
    """Whether calibration is asked for levels of layers, or for thresholds."""
    asked = cfg.sparsity.budgets not in ("uniform", "global") or cfg.sparsity.scope == "threshold"
    return asked and cfg.sparsity.level > 0


def learns(cfg: DictConfig) -> bool:
    """Whether anything is learnt for this level, beside a predictor."""
    return learns_budgets(cfg) or learns_stand_in(cfg)


def learns_stand_in(cfg: DictConfig) -> bool:
    """Whether a stand-in is fitted to what the dense model says."""
    windows = cfg.sparsity.learnt.windows
    require_whole("sparsity.learnt.windows", windows, 0)
    return windows > 0 and cfg.sparsity.level > 0
