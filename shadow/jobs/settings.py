"""What decides a result: the settings that name it, and where it lies."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from shadow import criteria
from shadow.artifacts.files import key_of
from shadow.data.calibration import CalibrationData, TaskPrompts
from shadow.errors import UserError
from shadow.fit.module import Reading
from shadow.fit.objectives import Active, Cutoff, Listwise, LogSquares, Objective, Pairwise
from shadow.models.load import describe_folder
from shadow.models.sites import KINDS, Kind, Source
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.nets import NetShape
from shadow.scorers.paper_nets import MinMax, MLPShape
from shadow.scorers.predicted import Pooling
from shadow.traces.store import CONTEXTS, EMBEDDINGS, FEATURES, MEANS, covered, reach

FORMAT = 2  # of traces and predictors; a change of what they mean makes a new name
WHERE = {"cache", "install", "device_map"}  # of the model: not what it is
DATA_WHERE = {"train", "eval", "root"}  # files: their content counts
GROWS = ("windows", "examples_per_task")  # of the data: a store of fewer becomes one of more
TRACES_HOW = {"criteria", "batch_size"}  # of the traces: what a store is added, and how it is computed
TRAINER_WHERE = {
    "_target_",
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "default_root_dir",
    "log_every_n_steps",
    "enable_model_summary",
}
LOSSES = ("log_mse", "listwise", "pairwise", "cutoff", "bce", "min_max_layer", "min_max_global")
# of trainer.strategy, and which of Lightning's starts the processes: its own fsdp would shard the predictor,
# or nothing, for the model is no child of a module
STRATEGIES = {"auto": "auto", "ddp": "ddp", "fsdp": "ddp"}
NETS = (
    *("unified", "few_taps", "layerwise", "dejavu", "linear_heads", "ridge"),
    *("unified_paper", "unified_paper_global", "unified_sequence", "layerwise_paper"),
)


def plain(node: DictConfig) -> dict[str, Any]:
    content = OmegaConf.to_container(node, resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def model_settings(cfg: DictConfig) -> dict[str, Any]:
    model = plain(cfg.model)
    if model["path"]:
        source = describe_folder(model["path"])
    else:
        source = {key: value for key, value in model["source"].items() if key not in WHERE}
    settings = {"name": model["name"], "source": source, "dtype": model["dtype"]}
    return settings | ({"trust_remote_code": True} if model.get("trust_remote_code") else {})


def model_label(cfg: DictConfig) -> str:
    return Path(cfg.model.path).name if cfg.model.path else cfg.model.name


def calibration_data(cfg: DictConfig) -> CalibrationData:
    return instantiate(cfg.data, _convert_="all")


def data_label(cfg: DictConfig) -> str:
    """`builtin`, `text` or `tasks`: the option's name, or the class's where the config was given by hand."""
    return HydraConfig.get().runtime.choices.get("data") or cfg.data._target_.rsplit(".", 1)[-1]


def trace_settings(cfg: DictConfig) -> dict[str, Any]:
    """What names a store: not how many windows or which criteria, for those are added to it."""
    data, traces = plain(cfg.data), plain(cfg.traces)
    return {
        "format": FORMAT,
        "model": model_settings(cfg),
        "data": {key: value for key, value in data.items() if key not in {*DATA_WHERE, *GROWS}},
        "content": calibration_data(cfg).fingerprint(),
        "traces": {key: value for key, value in traces.items() if key not in TRACES_HOW},
        "seed": cfg.seed,
    }


def asked_size(cfg: DictConfig) -> str:
    """How many examples the data are asked for, as a store's manifest knows it."""
    return next(str(cfg.data[key]) for key in GROWS if key in cfg.data)


def asked_criteria(cfg: DictConfig) -> list[str]:
    """What the store of this job must hold: `traces.criteria`, and the criterion that is used of it."""
    asked = cfg.traces.criteria
    names = list(criteria.CRITERIA) if asked == "all" else list(asked or [])
    used = [cfg.criterion.name] if needs_traces(cfg) and cfg.criterion.name not in names else []
    return [name for name in [*names, *used] if name != criteria.RANDOM]


def traces_folder(cfg: DictConfig) -> Path:
    name = f"{model_label(cfg)}-{data_label(cfg)}-{key_of(trace_settings(cfg))}"
    return Path(cfg.paths.artifact_dir) / "traces" / name


def pruned_settings(before: DictConfig, level: float) -> dict[str, Any]:
    """What names the states that the predictor of `before` leaves of the same windows at this level."""
    found = trace_settings(before) | {"predictor": predictor_settings(before), "level": level}
    return found | pruned_by(before)


def pruned_by(cfg: DictConfig) -> dict[str, Any]:
    """What plans of later rounds take from `sparsity` beside their levels, where it is not the default."""
    fill, head_unit = fill_of(cfg), cfg.sparsity.head_unit
    return ({} if fill == "zero" else {"fill": fill}) | (
        {} if head_unit == "query" else {"head_unit": head_unit}
    )


def pruned_folder(before: DictConfig, level: float) -> Path:
    name = f"{model_label(before)}-{data_label(before)}-pruned-{key_of(pruned_settings(before, level))}"
    return Path(before.paths.artifact_dir) / "traces" / name


def require_choice(setting: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserError(f"{setting} must be one of {list(allowed)}, got {value!r}")


def reads(cfg: DictConfig) -> Reading:
    """Which rows of a store a predictor learns from, and what of them it reads."""
    pooling, decided_at, source = cfg.predictor.pooling, cfg.sparsity.decided_at, cfg.predictor.source
    require_choice("predictor.source", source, get_args(Source))
    require_choice("predictor.pooling", pooling, get_args(Pooling))
    if pooling == "scores":
        if source == "context":
            raise UserError(
                "predictor.source=context is kept of whole prompts only: use predictor.pooling=last or mean, "
                f"got {pooling!r}"
            )
        if cfg.traces.tokens_per_window == 0:
            raise UserError(
                "traces.tokens_per_window must be at least 1 for a predictor that learns from tokens, got 0"
            )
        return Reading("token", "state", FEATURES)
    if decided_at == "token":
        raise UserError(
            f"predictor={cfg.predictor.name} reads a whole prompt (predictor.pooling={pooling}), which says "
            "nothing about a single token: give sparsity.decided_at=prompt or sequence, got token"
        )
    if pooling == "attention":
        if source != "state" or cfg.predictor.taps != [0]:
            raise UserError(
                "predictor.pooling=attention reads the embeddings of all positions: give predictor.taps=[0] "
                f"and predictor.source=state, got {cfg.predictor.taps} and {source}"
            )
        return Reading("window", decided_at, EMBEDDINGS)
    return Reading("window", f"{decided_at}/{pooling}", CONTEXTS if source == "context" else FEATURES)


def trace_taps(cfg: DictConfig, layers: int) -> list[int]:
    taps = list(range(layers)) if cfg.traces.taps == "all" else list(cfg.traces.taps)
    if not taps or any(not 0 <= tap < layers for tap in taps):
        raise UserError(f"traces.taps must be `all` or layers in [0, {layers}) of this model, got {taps}")
    return taps


def predictor_taps(cfg: DictConfig, layers: int) -> list[int]:
    """The layers `predictor.taps` of this model.

    A number of taps is spread so that what they score begins evenly from layer 1 on, or from layer
    `predictor.ahead` on if that is later.
    """
    asked, ahead = cfg.predictor.taps, cfg.predictor.ahead
    check_taps(asked, ahead)
    if not isinstance(asked, int | str):  # a list
        if any(not 0 <= tap < layers - ahead for tap in asked):
            raise UserError(
                f"predictor.taps must be layers in [0, {layers - ahead}) of this model of {layers} layers, "
                f"as each scores from predictor.ahead={ahead} layers on, got {asked}"
            )
        return list(asked)
    first = max(1, ahead)
    if first >= layers:
        raise UserError(
            f"predictor.ahead must be less than this model's {layers} layers, got {ahead}: nothing is scored"
        )
    count = layers - first if asked == "each" else min(asked, layers - first)
    return [first - ahead + index * (layers - first) // count for index in range(count)]


def first_scored(cfg: DictConfig) -> int:
    """The first layer that is scored from `predictor.taps`."""
    taps, ahead = cfg.predictor.taps, cfg.predictor.ahead
    return taps[0] + ahead if isinstance(taps, ListConfig) else max(1, ahead)


def several_taps(cfg: DictConfig) -> bool:
    taps = cfg.predictor.taps
    return len(taps) > 1 if isinstance(taps, ListConfig) else taps != 1


def check_taps(taps: Any, ahead: Any) -> None:
    """What can be said of `predictor.taps` and `predictor.ahead` before the model is known."""
    if isinstance(ahead, bool) or not isinstance(ahead, int) or ahead < 0:
        raise UserError(f"predictor.ahead must be a whole number of layers, at least 0, got {ahead}")
    if isinstance(taps, int) and not isinstance(taps, bool) and taps >= 1:
        return
    layers = list(taps) if isinstance(taps, ListConfig) else []
    if taps != "each" and (not layers or layers != sorted({tap for tap in layers if isinstance(tap, int)})):
        raise UserError(f"predictor.taps must be `each`, how many, or rising layers in brackets, got {taps}")


def predictor_kinds(cfg: DictConfig) -> list[Kind]:
    asked = cfg.predictor.kinds
    kinds = [kind for kind in KINDS if isinstance(asked, ListConfig) and kind in asked]
    if not kinds or len(kinds) != len(asked):
        raise UserError(f"predictor.kinds must name some of {list(KINDS)} in brackets, got {asked}")
    return kinds


def are_levels(levels: Sequence[float]) -> bool:
    """Of plans at which something goes and something stays."""
    return bool(levels) and all(isinstance(level, float) and 0 < level < 1 for level in levels)


def objectives_of(cfg: DictConfig) -> dict[Kind, Objective]:
    """Of each kind that the predictor scores."""
    settings = cfg.predictor
    require_choice("predictor.loss", settings.loss, LOSSES)
    if settings.loss == "bce" and settings.ridge is not None:
        raise UserError(
            "predictor.loss=bce learns logits, where the ridge regression does not start: give "
            f"predictor.ridge=null, got {settings.ridge}"
        )
    return {kind: _objective(cfg, kind) for kind in predictor_kinds(cfg)}


def _objective(cfg: DictConfig, kind: Kind) -> Objective:
    loss, floor = cfg.predictor.loss, cfg.predictor.floor
    if loss == "log_mse":
        return LogSquares(floor)
    if loss == "listwise":
        return Listwise(floor)
    if loss == "pairwise":
        return Pairwise(floor)
    if loss == "cutoff":
        return Cutoff(floor, active_levels(cfg, kind))
    if loss == "bce":
        return Active(None if are_positive(cfg, kind) else active_levels(cfg, kind))
    return MinMax("layer" if loss == "min_max_layer" else "global")


def are_positive(cfg: DictConfig, kind: Kind) -> bool:
    """Whether what is above 0 is active: neurons behind a ReLU, by a criterion that is 0 for silent ones."""
    if kind == "head" or cfg.predictor.active.neuron != "positive":
        return False
    if cfg.criterion.name in criteria.BESIDE_MEANS:
        raise UserError(
            "predictor.active.neuron=positive needs a criterion that is 0 for what a ReLU silences: use "
            f"criterion=l2_norm, got criterion={cfg.criterion.name}, the distance from a mean"
        )
    return True


def active_levels(cfg: DictConfig, kind: Kind) -> list[float]:
    active = cfg.predictor.active[kind]
    levels = list(active) if isinstance(active, ListConfig) else []
    if not are_levels(levels):
        positive = "`positive`, or " if cfg.predictor.loss == "bce" and kind == "neuron" else ""
        raise UserError(
            f"predictor.active.{kind} must be {positive}levels in (0, 1) whose plans keep what is active, "
            f"got {active} with predictor.loss={cfg.predictor.loss}"
        )
    return levels


def predictor_shape(cfg: DictConfig) -> NetShape | MLPShape:
    if cfg.predictor.mlp is not None:
        mlp = MLPShape(**plain(cfg.predictor.mlp), attends=cfg.predictor.pooling == "attention")
        if cfg.predictor.ridge is not None:
            raise UserError(
                "predictor.mlp has no linear map for a regression to start from: give predictor.ridge=null, "
                f"got {cfg.predictor.ridge}"
            )
        return mlp
    if cfg.predictor.pooling == "attention":
        raise UserError(
            "predictor.pooling=attention is of the paper's nets and needs predictor.mlp, got null: use "
            "predictor=unified_sequence, or predictor.pooling=scores, mean or last"
        )
    return NetShape(cfg.predictor.rank, cfg.predictor.hidden, cfg.predictor.depth)


def predictor_settings(cfg: DictConfig) -> dict[str, Any]:
    trainer = {key: value for key, value in plain(cfg.trainer).items() if key not in TRAINER_WHERE}
    return {
        "traces": trace_settings(cfg),
        "size": asked_size(cfg),
        "criterion": cfg.criterion.name,
        "predictor": plain(cfg.predictor),
        "reads": reads(cfg),
        "trainer": trainer,
    } | (pruned_by(cfg) if cfg.predictor.rounds > 0 else {})


def predictor_folder(cfg: DictConfig) -> Path:
    name = f"{model_label(cfg)}-{cfg.predictor.name}-{cfg.criterion.name}-{key_of(predictor_settings(cfg))}"
    return Path(cfg.paths.artifact_dir) / "predictors" / name


def scorer_settings(cfg: DictConfig) -> dict[str, Any]:
    """What decides the plans of a job that prunes: its policy, its scorer and what that was made of."""
    settings: dict[str, Any] = {
        "sparsity": plain(cfg.sparsity) | {"fill": fill_of(cfg)},
        "scorer": cfg.predictor.name,
        "criterion": cfg.criterion.name,
    }
    if not learns_budgets(cfg):
        del settings["sparsity"]["budget_windows"]
    if not learns_budgets(cfg) or cfg.sparsity.budget_fewshot is None:
        del settings["sparsity"]["budget_fewshot"]
    if cfg.sparsity.head_unit == "query":
        del settings["sparsity"]["head_unit"]
    if cfg.predictor.name in NETS:
        settings["predictor"] = predictor_settings(cfg)
        settings["dense_fed"] = cfg.measure.dense_fed
        if cfg.measure.raw_inputs:
            settings["raw_inputs"] = True
    elif needs_traces(cfg) or needs_means(cfg):
        settings |= {"traces": trace_settings(cfg), "size": asked_size(cfg)}
    if cfg.predictor.name == "oracle":
        settings["loss"] = cfg.traces.loss
    if cfg.predictor.name == "svd":
        settings["rank"] = cfg.predictor.rank
    return settings


def learns_budgets(cfg: DictConfig) -> bool:
    """Whether calibration is asked for levels of layers, or for thresholds."""
    asked = cfg.sparsity.budgets == "greedy" or cfg.sparsity.scope == "threshold"
    return asked and cfg.sparsity.level > 0


def budget_data(cfg: DictConfig) -> CalibrationData:
    """The calibration's own examples, with as many shots as budgets are to be learnt with."""
    data = calibration_data(cfg)
    shots = cfg.sparsity.budget_fewshot
    return replace(data, num_fewshot=shots) if isinstance(data, TaskPrompts) and shots is not None else data


def budgets_settings(cfg: DictConfig) -> dict[str, Any]:
    data = {key: value for key, value in plain(cfg.data).items() if key not in {*DATA_WHERE, *GROWS}}
    return scorer_settings(cfg) | {
        "format": FORMAT,
        "model": model_settings(cfg),
        "data": data,
        "content": calibration_data(cfg).fingerprint(),
        "seed": cfg.seed,
    }


def budgets_file(cfg: DictConfig) -> Path:
    name = f"{model_label(cfg)}-{cfg.predictor.name}-{cfg.criterion.name}-{key_of(budgets_settings(cfg))}"
    return Path(cfg.paths.artifact_dir) / "budgets" / f"{name}.json"


def policy_of(cfg: DictConfig) -> SparsityPolicy:
    settings = plain(cfg.sparsity)
    # not of a plan, or not yet known
    for key in ("decided_at", "fill", "budgets", "budget_windows", "budget_fewshot"):
        del settings[key]
    return SparsityPolicy(**settings)


def needs_traces(cfg: DictConfig) -> bool:
    """Whether scores come from traces: the scorer's, or those that rank layers."""
    untraced = cfg.predictor.name in ("random", "oracle", "prompt_activation")
    ranks_layers = cfg.sparsity.budgets == "global" and cfg.sparsity.level > 0
    return (ranks_layers or not untraced) and cfg.criterion.name != criteria.RANDOM


def needs_means(cfg: DictConfig) -> bool:
    """Whether the sparse pass takes the calibration's means from the traces."""
    beside = cfg.criterion.name in criteria.BESIDE_MEANS
    asks = beside and cfg.predictor.name in ("oracle", "prompt_activation", "svd")
    return cfg.sparsity.level > 0 and (asks or fill_of(cfg) == "mean")


def fill_of(cfg: DictConfig) -> str:
    """`zero` or `mean`: what stands in a dropped unit's place."""
    if cfg.sparsity.fill != "auto":
        return cfg.sparsity.fill
    return "mean" if cfg.criterion.name in criteria.BESIDE_MEANS else "zero"


def device_of(cfg: DictConfig) -> torch.device:
    """Where evaluate.py measures a model that is not spread over several."""
    on_gpu = cfg.trainer.accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


def shares_weights(cfg: DictConfig) -> bool:
    """Whether each process holds a part of every weight, instead of all of them."""
    return cfg.trainer.strategy == "fsdp"


def asked_parts(cfg: DictConfig) -> list[str]:
    read = []
    if cfg.predictor.name in NETS and cfg.predictor.source == "context":
        read = [CONTEXTS]
    elif cfg.predictor.name in NETS and cfg.predictor.pooling == "attention":
        read = [EMBEDDINGS]
    return [FEATURES, MEANS, *read, *asked_criteria(cfg)]


def holds(manifest: dict | None, asked: str, parts: Sequence[str]) -> bool:
    """Whether a store has these parts of all windows that so many examples come to."""
    windows = (manifest or {}).get("sizes", {}).get(asked)
    if manifest is None or windows is None:
        return False
    size = manifest["settings"]["traces"]["shard_windows"]
    return all(covered(manifest, part) >= reach(part, windows, size) for part in parts)
