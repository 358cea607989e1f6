"""A predictor's folder, here or on the Hugging Face hub: writing it, and loading from it."""

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from shadow.artifacts import curve
from shadow.artifacts import learnt_policies as policies
from shadow.artifacts.files import write_json, writing
from shadow.artifacts.predictor_files import MEANS, empty_net, fill_net, means_in, unfit_config
from shadow.artifacts.shipped import shipped
from shadow.errors import UserError, first_line
from shadow.models.sites import SiteKey
from shadow.scorers.nets import TapNet
from shadow.scorers.predicted import Predicted

CONFIG, WEIGHTS, METRICS = "config.json", "predictor.safetensors", "metrics.csv"
# of config.json, to load it
NEEDED = (
    "taps",
    "ahead",
    "layers",
    "width",
    "units",
    "kinds",
    "net",
    "pooling",
    "source",
    "deviates",
    "means",
    "weights",
    "sha256",
)


def save_predictor(
    folder: Path, net: TapNet, config: dict[str, Any], means: Mapping[SiteKey, Tensor] | None = None
) -> None:
    """config.json comes last: that it is there says that the predictor is finished.

    means: [U, D] of every unit's activation over the calibration; they lie beside the net's weights.
    """
    tensors = net.state_dict() | {
        f"{MEANS}{layer}.{kind}": values for (layer, kind), values in (means or {}).items()
    }
    content = save({name: values.cpu().contiguous() for name, values in tensors.items()})
    config = config | {"sha256": hashlib.sha256(content).hexdigest()}
    with writing(folder / WEIGHTS) as unfinished:  # save_file has temporary files of its own
        unfinished.write_bytes(content)
    curve.write_card(folder, config, curve.read(folder))
    write_json(folder / CONFIG, config)


def save_metrics(folder: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """rows: of layers and kinds, all with the same columns."""
    with (
        writing(folder / METRICS) as unfinished,
        unfinished.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def load_predictor(folder_or_hub_id: str | Path, revision: str | None = None) -> Predicted:
    """A predictor that train.py has fitted, as the scorer that `sparse` takes.

    folder_or_hub_id: the folder that train.py names at its end, or such a folder's id on the Hugging Face
    hub, as "someone/opt-mini-unified"; `opt-mini` comes with the package. revision: branch, tag or commit
    there. The files hold tensors and plain values alone, and nothing of them is run. Raises UserError where
    they are damaged or no predictor's.
    """
    folder = find_folder(folder_or_hub_id, revision)
    config = read_config(folder)
    file = folder / WEIGHTS
    if not file.is_file():
        raise UserError(f"{folder} has no {WEIGHTS}: {CURE}")
    content = file.read_bytes()
    try:
        tensors = load(content)
        unfit = [name for name, values in tensors.items() if not values.isfinite().all()]
        means = means_in(tensors, config["units"], config["layers"])
        net = fill_net(empty_net(config), tensors)
    except (
        SafetensorError,
        RuntimeError,
        TypeError,
    ) as error:  # torch's word for missing, unknown or misshapen weights
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is not the predictor that {CONFIG} tells of ({reason}): {CURE}") from error
    found = hashlib.sha256(content).hexdigest()
    if config["sha256"] != found:
        raise UserError(f"{file} is damaged, for it does not match the checksum in {CONFIG}: {CURE}")
    if unfit:
        raise UserError(
            f"{file} ranks nothing, for its {unfit[0]!r} is not finite, as after a fit that diverged: remove "
            f"the folder and fit again with a smaller predictor.lr, or {CURE}"
        )
    learnt = policies.load(folder)
    return Predicted(net.eval(), config["pooling"], config["source"], means, config["deviates"], learnt)


CURE = "give a folder that train.py has finished, or such a folder's id on the hub"


def read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no {CONFIG}: {CURE}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({error}): {CURE}") from error
    missing = [key for key in NEEDED if not isinstance(config, dict) or key not in config]
    if missing:
        raise UserError(f"{file} is no predictor's, for it has no {missing[0]!r}: {CURE}")
    unfit = unfit_config(config)
    if unfit is not None:
        raise UserError(f"{file} is no predictor's, for {unfit}: {CURE}")
    return config


def dense_layers(config: dict[str, Any]) -> list[int]:
    """Those that the predictor does not score, and the first one, which stays whole for every scorer."""
    return list(range(max(config["taps"][0] + config["ahead"], 1)))


def find_folder(folder_or_hub_id: str | Path, revision: str | None) -> Path:
    if not isinstance(folder_or_hub_id, str | Path):
        raise UserError(f"a predictor is named by a folder or a hub's id, got {folder_or_hub_id!r}: {CURE}")
    folder = Path(folder_or_hub_id)
    try:
        folder = folder.expanduser()
        if folder.is_dir():
            return folder
    except (OSError, RuntimeError):
        pass  # a name too long for a disk, the home of nobody: no folder
    own = shipped(str(folder_or_hub_id))
    if own is not None:
        return own
    try:
        return Path(
            snapshot_download(
                str(folder_or_hub_id), revision=revision, allow_patterns=[CONFIG, WEIGHTS, policies.PATTERN]
            )
        )
    except HFValidationError as error:
        raise UserError(
            f"there is no folder {str(folder)!r}, and that is no id on the hub: {CURE}"
        ) from error
    except (OSError, httpx.HTTPError) as error:
        reason = first_line(error).rstrip(".")
        raise UserError(
            f"there is no folder {str(folder)!r}, and the Hugging Face hub gave no predictor of that name "
            f"({reason}): check the name and the network, or {CURE}"
        ) from error
