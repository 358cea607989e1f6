"""A model's config.json, read or refused in one sentence."""

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig

from shadow.errors import UserError

# what transformers makes of numbers that fit no model, as of no heads
ODD = (StrictDataclassError, ValueError, TypeError, ArithmeticError, AttributeError, KeyError)


def read_config(name: str | Path, **where: Any) -> PretrainedConfig:
    """name: of a folder, or of the hub; where: as transformers has it."""
    try:
        return AutoConfig.from_pretrained(name, **where)
    except (*ODD, OSError) as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"model {str(name)!r} comes with Python code of its own, which is run only if that is asked "
                "for: read it, and give model.trust_remote_code=true, got false"
            ) from error
        file = Path(name) / "config.json"
        if not file.is_file():  # the hub's, which says what it lacks
            raise
        raise UserError(
            f"{file} is damaged, or of no model that transformers knows ({one_line(error)}): copy the folder "
            "again"
        ) from error


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
