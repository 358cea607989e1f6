"""What the numbers of a model must be."""

import torch
from transformers import PreTrainedModel

from shadow.errors import UserError


def require_finite(model: PreTrainedModel) -> None:
    """Refuse weights that make every number after them meaningless. Those on disk are not read for it."""
    for name, values in model.named_parameters():
        if not values.is_meta and not torch.isfinite(values).all():
            raise UserError(
                f"the model's weights must be finite numbers, and {name} has NaN or infinity in "
                f"model.dtype={str(values.dtype)[6:]}: get the file again, or try model.dtype=float32"
            )


def require_dtype(setting: str, name: str) -> torch.dtype:
    """Of those in which a model computes; what has fewer bits only stores numbers."""
    chosen = getattr(torch, str(name), None)
    if chosen not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise UserError(
            f"{setting} must name a torch dtype that computes, as float32, bfloat16, float16 or float64, got "
            f"{name!r}"
        )
    return chosen
