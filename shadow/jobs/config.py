"""Plain values of a composed config: labels, the model's shape, devices."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from transformers import AutoConfig, PretrainedConfig

from shadow.errors import UserError
from shadow.models.config_file import ODD, one_line, read_config
from shadow.models.load import require_folder

# of trainer.strategy, and which of Lightning's starts the processes: its own fsdp would shard the predictor,
# or nothing, for the model is no child of a module
STRATEGIES = {"auto": "auto", "ddp": "ddp", "fsdp": "ddp"}


def plain(node: DictConfig) -> dict[str, Any]:
    content = OmegaConf.to_container(node, resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def model_label(cfg: DictConfig) -> str:
    """Its name; of a folder that was given no name of its own, the folder's."""
    given = cfg.model.get("name")
    if not cfg.model.path or (given and not (files("shadow.conf") / "model" / f"{given}.yaml").is_file()):
        return given
    return Path(str(cfg.model.path)).expanduser().resolve().name


def data_label(cfg: DictConfig) -> str:
    """`builtin`, `text` or `tasks`: the option's name, or the class's where the config was given by hand."""
    return HydraConfig.get().runtime.choices.get("data") or cfg.data._target_.rsplit(".", 1)[-1]


def executor_label(cfg: DictConfig) -> str:
    return cfg.executor._target_.rsplit(".", 1)[-1].lower()


def shape_of(cfg: DictConfig) -> PretrainedConfig:
    """The model's config.json: of the folder `model.path`, or as `model.shape` has it."""
    if cfg.model.path:
        trusted = cfg.model.trust_remote_code
        return read_config(require_folder(cfg.model.path), trust_remote_code=trusted)
    try:
        return AutoConfig.for_model(**plain(cfg.model.shape))
    except ODD as error:
        raise UserError(
            f"model.shape must be of a model that transformers knows ({one_line(error)})"
        ) from error


def device_of(cfg: DictConfig) -> torch.device:
    """Where evaluate.py measures a model that is not spread over several."""
    on_gpu = cfg.trainer.accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


def devices_of(cfg: DictConfig) -> Any:
    """How many, or which, with `auto` resolved."""
    trainer = cfg.trainer
    if trainer.devices != "auto":
        return trainer.devices
    return 1 if trainer.accelerator == "cpu" else torch.cuda.device_count()


def is_one_process(cfg: DictConfig) -> bool:
    return devices_of(cfg) in (0, 1, [0])


def shares_weights(cfg: DictConfig) -> bool:
    """Whether each process holds a part of every weight, instead of all of them."""
    return cfg.trainer.strategy == "fsdp"
