"""Devices and processes on which a job cannot run, refused before work starts."""

import torch
from omegaconf import DictConfig

from shadow.errors import UserError, require_choice
from shadow.jobs.calibration import asked_criteria
from shadow.jobs.config import STRATEGIES, is_one_process, shares_weights


def check_devices(cfg: DictConfig) -> None:
    """Processes share the work out, and accelerate spreads one model: not both over the same devices."""
    check_accelerator(cfg)
    trainer, device_map = cfg.trainer, cfg.model.device_map
    require_choice("trainer.strategy", trainer.strategy, list(STRATEGIES))
    if shares_weights(cfg):
        check_shared(cfg)
    if not is_one_process(cfg) and trainer.strategy == "auto":
        raise UserError(
            f"trainer.devices={trainer.devices} asks for several processes: give trainer.strategy=ddp, or "
            f"fsdp for them to share a model that is larger than one device, got {trainer.strategy}"
        )
    if trainer.strategy == "ddp" and trainer.devices not in (1, [0]) and device_map is not None:
        raise UserError(
            f"with trainer.devices={trainer.devices} each process holds the whole model: give "
            "model.device_map=null, or for a model larger than one device trainer=fsdp as well, or "
            f"trainer.devices=1, got {device_map!r}"
        )


def check_accelerator(cfg: DictConfig) -> None:
    asked = cfg.trainer.accelerator
    if asked in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            f"trainer.accelerator={asked} needs a GPU, and torch {torch.__version__} finds none here: give "
            "auto or cpu, or install torch for this machine's GPU"
        )


def check_shared(cfg: DictConfig) -> None:
    trainer, asked = cfg.trainer, asked_criteria(cfg)
    if cfg.model.device_map is not None:
        raise UserError(
            "trainer.strategy=fsdp gives each process a part of every layer, and model.device_map gives "
            f"devices whole ones: give model.device_map=null, got {cfg.model.device_map!r}"
        )
    if is_one_process(cfg) and trainer.num_nodes == 1:
        raise UserError(
            "trainer.strategy=fsdp shares the weights among processes and needs several: give "
            f"trainer.devices=2 or more, or trainer=default, got trainer.devices={trainer.devices} with "
            f"trainer.accelerator={trainer.accelerator}, which is one"
        )
    if "grasp" in asked:
        raise UserError(
            "criterion=grasp differentiates twice, and what trainer.strategy=fsdp gathered of the weights is "
            f"gone by then: leave it out of traces.criteria, or give trainer=ddp, got {asked}"
        )
