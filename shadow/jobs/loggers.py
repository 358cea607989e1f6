"""Weights & Biases as a job's logger."""

from collections.abc import Mapping
from typing import Any

from pytorch_lightning.loggers import Logger, WandbLogger

from shadow.errors import UserError

SAID = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}


def wandb_logger(offline: bool | str | None, **settings: Any) -> WandbLogger:
    """offline: as the environment says it; settings: of Lightning's WandbLogger and of wandb.init."""
    return WandbLogger(offline=is_offline(offline), **settings)


def is_offline(offline: bool | str | None) -> bool:
    said = "" if offline is None else str(offline).strip().lower()
    if said not in SAID:
        raise UserError(f"WANDB_OFFLINE (logger.wandb.offline) must be true or false, got {offline!r}")
    return SAID[said]


def begin(logger: Logger, settings: Mapping[str, Any]) -> None:
    """Log the settings: of W&B this begins the run, which needs an account."""
    if not isinstance(logger, WandbLogger):
        logger.log_hyperparams(dict(settings))
        return
    import wandb  # seconds, where nobody asks for it

    try:
        logger.log_hyperparams(dict(settings))
    except wandb.errors.Error as error:
        raise UserError(
            f"logger=wandb could not begin a run ({' '.join(str(error).split()).rstrip('.')}): wandb login, "
            "or WANDB_OFFLINE=true to need no account, or logger=csv"
        ) from error
