"""One set of weights told from another."""

import hashlib

from transformers import PreTrainedModel

from shadow.models.sites import values_of


def digest(model: PreTrainedModel) -> str:
    """By a few numbers of every parameter."""
    found = hashlib.sha256()
    for name, _ in model.named_parameters():
        owner, _, own = name.rpartition(".")
        flat = values_of(model.get_submodule(owner), own).flatten()
        found.update(name.encode() + flat[:: max(1, len(flat) // 64)][:64].float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]
