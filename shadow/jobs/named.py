"""A language model by the name that `model=` gives it, for scripts of one's own."""

from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shadow.commands.comments import options_of
from shadow.errors import UserError
from shadow.models.load import Source, from_folder, load


def load_model(name: str, dtype: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The frozen model and its tokenizer; both are those of transformers.

    name: an option of `model`, as `opt-mini` or `smollm2-135m`, or a folder of `save_pretrained`.
    dtype: of its weights, as `bfloat16`; None: the option's own, float32 of a folder.
    """
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        options = OmegaConf.create(
            {"path": str(folder), "dtype": "float32", "device_map": None, "source": None}
        )
    else:
        options = options_of_model(name)
    source: Source = from_folder if options.source is None else instantiate(options.source)
    found = load(source, options.path, dtype or options.dtype, options.device_map)
    return found.model, found.tokenizer


def options_of_model(name: str) -> DictConfig:
    """What conf/model/NAME.yaml says, and where artifacts lie."""
    conf = files("shadow.conf")
    known = options_of("model")
    if name not in known:
        near = get_close_matches(str(name), known, n=1)
        cure = f"did you mean {near[0]!r}?" if near else f"give one of {known}, or a folder"
        raise UserError(f"load_model needs the name of a model or a model's folder, got {name!r}: {cure}")
    read = {
        group: conf / group / file for group, file in (("paths", "default.yaml"), ("model", f"{name}.yaml"))
    }
    whole = OmegaConf.create({group: OmegaConf.create(file.read_text()) for group, file in read.items()})
    options = whole.model
    assert isinstance(options, DictConfig)
    return options
