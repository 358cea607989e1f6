"""Lightning's checkpoint on disk: whole or not there, and read without running anything that it holds."""

import io
import logging
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from shadow.artifacts.files import writing
from shadow.errors import UserError

log = logging.getLogger(__name__)


def resumable(folder: Path) -> str | None:
    """The checkpoint from which a fit in this folder goes on; a damaged one is removed."""
    last = folder / "last.ckpt"
    if last.is_file() and not zipfile.is_zipfile(last):
        log.warning("%s is damaged: the fit begins anew", last)
        last.unlink()
    return str(last) if last.is_file() else None


class WholeCheckpoints(TorchCheckpointIO):
    """A full disk leaves the checkpoint of before, where Lightning's own would cut it short."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        content = io.BytesIO()  # torch's own writer makes a RuntimeError of a full disk
        torch.save(checkpoint, content)
        with writing(Path(path)) as unfinished:
            unfinished.write_bytes(content.getbuffer())

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Tensors and plain values alone, whatever was asked for: a pickle could run anything."""
        try:
            return torch.load(path, map_location or "cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{path} must hold tensors and plain values alone, and does not: remove it, and the fit "
                "begins anew"
            ) from error
