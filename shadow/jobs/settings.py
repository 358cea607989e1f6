"""What decides a result: the settings that name it, where it lies, what is refused before work starts."""

import re
import shlex
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from shadow.artifacts import key_of
from shadow.criteria import CRITERIA
from shadow.data import CalibrationData
from shadow.errors import UserError
from shadow.models import describe_folder
from shadow.sparsity import SparsityPolicy
from shadow.traces import Rows

FORMAT = 1  # of traces and predictors; a change of what they mean makes a new name
WHERE = {"cache", "install", "device_map"}  # of the model: not what it is
DATA_WHERE = {"train", "eval", "root"}  # files: their content counts
TRAINER_WHERE = {
    "_target_",
    "accelerator",
    "devices",
    "default_root_dir",
    "log_every_n_steps",
    "enable_model_summary",
}
NETS = ("unified", "layerwise")
SCORERS = (*NETS, "static", "random", "oracle")
# what an override of evaluate.py must begin with to concern the artifacts that train.py makes
TRAINS = [
    "model",
    "data",
    "traces",
    "criterion",
    "predictor",
    "sparsity.decided_at",
    "trainer",
    "seed",
    "paths",
    "experiment",
    "debug",
]


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
    return {"name": model["name"], "source": source, "dtype": model["dtype"]}


def model_label(cfg: DictConfig) -> str:
    return Path(cfg.model.path).name if cfg.model.path else cfg.model.name


def calibration_data(cfg: DictConfig) -> CalibrationData:
    return instantiate(cfg.data, _convert_="all")


def data_label(cfg: DictConfig) -> str:
    """`builtin`, `text` or `tasks`: the option's name, or the class's where the config was given by hand."""
    return HydraConfig.get().runtime.choices.get("data") or cfg.data._target_.rsplit(".", 1)[-1]


def trace_settings(cfg: DictConfig) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "model": model_settings(cfg),
        "data": {key: value for key, value in plain(cfg.data).items() if key not in DATA_WHERE},
        "content": calibration_data(cfg).fingerprint(),
        "traces": plain(cfg.traces),
        "seed": cfg.seed,
    }


def traces_folder(cfg: DictConfig) -> Path:
    name = f"{model_label(cfg)}-{data_label(cfg)}-{key_of(trace_settings(cfg))}"
    return Path(cfg.paths.artifact_dir) / "traces" / name


def check_traces(cfg: DictConfig) -> None:
    settings = cfg.traces
    unknown = [name for name in settings.criteria if name not in CRITERIA]
    if unknown or not settings.criteria:
        raise UserError(f"traces.criteria must name some of {list(CRITERIA)}, got {list(settings.criteria)}")
    if settings.batch_size < 1 or settings.shard_windows < 1 or settings.shard_windows % settings.batch_size:
        raise UserError(
            "traces.shard_windows must be a multiple of traces.batch_size, got "
            f"{settings.shard_windows} and {settings.batch_size}"
        )
    if needs_traces(cfg) and cfg.criterion.name not in settings.criteria:
        raise UserError(
            f"criterion={cfg.criterion.name} must be among traces.criteria={list(settings.criteria)}"
        )


def reads(cfg: DictConfig) -> tuple[Rows, str]:
    """Which rows of a store a predictor learns from, and which of their states it reads."""
    pooling, decided_at = cfg.predictor.pooling, cfg.sparsity.decided_at
    if pooling not in ("scores", "mean", "last"):
        raise UserError(f"predictor.pooling must be scores, mean or last, got {pooling!r}")
    if pooling == "scores":
        return "token", "state"
    if decided_at == "token":
        raise UserError(
            f"sparsity.decided_at=token needs predictor.pooling=scores, got {pooling!r}: "
            "one state of a whole prompt says nothing about a single token"
        )
    return "window", f"{decided_at}/{pooling}"


def predictor_settings(cfg: DictConfig) -> dict[str, Any]:
    trainer = {key: value for key, value in plain(cfg.trainer).items() if key not in TRAINER_WHERE}
    return {
        "traces": trace_settings(cfg),
        "criterion": cfg.criterion.name,
        "predictor": plain(cfg.predictor),
        "reads": reads(cfg),
        "trainer": trainer,
    }


def predictor_folder(cfg: DictConfig) -> Path:
    name = f"{model_label(cfg)}-{cfg.predictor.name}-{cfg.criterion.name}-{key_of(predictor_settings(cfg))}"
    return Path(cfg.paths.artifact_dir) / "predictors" / name


def policy_of(cfg: DictConfig) -> SparsityPolicy:
    settings = plain(cfg.sparsity)
    del settings["decided_at"]
    return SparsityPolicy(**settings)


def needs_traces(cfg: DictConfig) -> bool:
    return cfg.predictor.name not in ("random", "oracle")


def check_train(cfg: DictConfig) -> None:
    """What can be known before the model is loaded."""
    check_predictor(cfg)
    check_traces(cfg)
    policy_of(cfg)
    calibration_data(cfg)


def check_predictor(cfg: DictConfig) -> None:
    name, taps = cfg.predictor.name, cfg.predictor.taps
    if name not in SCORERS:
        raise UserError(f"predictor.name must be one of {list(SCORERS)}, got {name!r}")
    if name not in NETS:
        return
    reads(cfg)
    if taps != "each" and (not taps or list(taps) != sorted(set(taps))):
        raise UserError(f"predictor.taps must be `each` or rising layer numbers, got {taps}")


def check_scorer(cfg: DictConfig) -> None:
    """Before the model is loaded: an unknown scorer, a missing artifact and the command that makes it."""
    check_predictor(cfg)
    name = cfg.predictor.name
    if cfg.sparsity.level == 0:
        return
    if name in NETS:
        wanted = predictor_folder(cfg) / "meta.json"
    elif name == "static":
        wanted = traces_folder(cfg) / "manifest.json"
    else:
        return
    check_traces(cfg)
    if not wanted.is_file() and not cfg.make_missing:
        raise UserError(
            f"there is no {'predictor' if name in NETS else 'trace store'} {wanted.parent}: make it with "
            f"`{train_command()}`, or set make_missing=true"
        )


def train_command() -> str:
    """The `python train.py ...` that makes what this job misses, from this job's own overrides."""
    kept = [
        override
        for override in HydraConfig.get().overrides.task
        if any(re.match(rf"[+~]*{re.escape(start)}[=.@]", override) for start in TRAINS)
    ]
    return shlex.join(["python", "train.py", *kept])
