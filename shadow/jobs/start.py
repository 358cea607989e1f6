"""What every job's seeds and names must be: checked before anything is seeded, logged or written."""

from omegaconf import DictConfig, OmegaConf

from shadow.errors import UserError

SEEDS = ("seed", "data.seed", "data.split_seed", "measure.seed", "model.source.seed")
NAMES = ("model.name", "predictor.name")  # they begin the names of folders
WITHIN = {"sparsity.learnt": "windows=0", "sparsity.block": "windows=8"}  # groups in groups, and what to give
LONGEST = 100  # characters of a name; a folder's may have 255 bytes


def check_start(cfg: DictConfig) -> None:
    for setting, instead in WITHIN.items():
        if not isinstance(OmegaConf.select(cfg, setting, default=OmegaConf.create()), DictConfig):
            raise UserError(f"{setting} is a group, of which settings are given: give {setting}.{instead}")
    for setting in SEEDS:
        check_seed(setting, OmegaConf.select(cfg, setting, default=0))
    for setting in NAMES:
        check_name(setting, OmegaConf.select(cfg, setting))


def check_seed(setting: str, value: object) -> None:
    """What numpy, torch and Python's own generator all take."""
    if type(value) is not int or not 0 <= value < 2**32:  # True is an int to isinstance
        raise UserError(f"{setting} must be a whole number in [0, 4294967295], got {value!r}")


def check_name(setting: str, value: object) -> None:
    """A folder of the artifacts begins so: it must stay one, and lie there."""
    plain = isinstance(value, str) and value.isprintable() and not set(value) & set("/\\")
    if not plain or not value or str(value).startswith(".") or len(str(value)) > LONGEST:
        raise UserError(
            f"{setting} begins the names of folders and must have 1 to {LONGEST} characters, no slash, and "
            f"no dot at its beginning, got {value!r}"
        )
