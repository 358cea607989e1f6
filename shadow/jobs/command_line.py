"""Before Hydra starts: help is given, what cannot work is refused in one sentence, folders are settled."""

import os
import shutil
import sys
from collections.abc import Sequence
from importlib.resources import files

from hydra._internal.utils import get_args_parser  # Hydra reads its flags with it, and shows it nowhere else
from hydra.types import RunMode
from omegaconf import DictConfig

from shadow.commands import describe
from shadow.commands.overrides import composed, parsed
from shadow.commands.run_names import run_name
from shadow.errors import UserError
from shadow.terminal.noise import keep_bars_from_files
from shadow.terminal.stops import expect

# of Hydra's flags, those with which it runs no job of conf/
OTHERS = (
    "hydra_help",
    "shell_completion",
    "config_path",
    "config_name",
    "config_dir",
    "experimental_rerun",
    "info",
)

ONE_OF = ("run", "multirun", "cfg", "info", "shell_completion")


def prepare(task: str, words: Sequence[str]) -> None:
    """task: `train` or `evaluate`; words: flags and overrides."""
    flags, unknown = get_args_parser().parse_known_args(list(words))
    if unknown and not unknown[0].startswith("-"):
        sys.exit(
            f"settings stand together, and {unknown[0]} stands behind a flag that others precede: "
            "give -m first"
        )
    if unknown:
        sys.exit(f"there is no flag {unknown[0]}: -m runs several jobs, --help tells of the rest")
    if flags.help:
        print(describe.of_task(task, flags.overrides))
        raise SystemExit(0)
    asked = [name for name in ONE_OF if getattr(flags, name)]
    if len(asked) > 1:
        sys.exit(f"give one of --{' and --'.join(asked)}: Hydra does one of them at a time")
    expect()
    keep_bars_from_files()
    refuse_null_groups(flags.overrides)
    settle_root()
    if any(getattr(flags, name) for name in OTHERS):
        return
    try:
        cfg = composed(task, flags.overrides)
        refuse_launch(cfg, flags.overrides, flags.multirun)
    except UserError as error:
        sys.exit(str(error))
    os.environ["SHADOW_RUN_NAME"] = run_name(parsed(flags.overrides))


def prepare_for(task: str, argv: Sequence[str] | None) -> None:
    """Of a task that is a function, too. argv: None: what the process was started with."""
    if argv is not None:
        sys.argv = [f"shadow {task}", *argv]  # Hydra reads them there
    prepare(task, sys.argv[1:])


def refuse_null_groups(words: Sequence[str]) -> None:
    """Exits with one sentence at a config group that is set to null."""
    groups = {folder.name: folder for folder in files("shadow.conf").iterdir() if folder.is_dir()}
    for word in words:
        group, _, value = word.lstrip("+").partition("=")
        if group in groups and value.lower() == "null":
            options = sorted(file.name.removesuffix(".yaml") for file in groups[group].iterdir())
            raise SystemExit(f"{word} names no option of {group}: give one of {options}, or leave it out")


def refuse_launch(cfg: DictConfig, words: Sequence[str], multirun: bool) -> None:
    """Several jobs need to be asked for, and Slurm to be there."""
    several = multirun or cfg.hydra.mode == RunMode.MULTIRUN
    swept = [override.input_line for override in parsed(words) if override.is_sweep_override()]
    if swept and not several:
        raise UserError(
            f"{swept[0]} has several values: give -m for a job of each, or brackets for one list, as [1,2]"
        )
    if several and cfg.hydra.launcher._target_.endswith("SlurmLauncher") and shutil.which("sbatch") is None:
        raise UserError(
            "launch=slurm submits with sbatch, and there is no such command here: start it on the cluster, "
            "or give launch=submitit_local or launch=joblib"
        )


def settle_root() -> None:
    """What a shell would make of SHADOW_ROOT, which may come from a file instead: ~ is the user's home."""
    root = os.environ.get("SHADOW_ROOT")
    if root is None:
        return
    if not root.strip():
        raise SystemExit(
            f"SHADOW_ROOT must name a folder, got {root!r}: unset it, or set it to . for this folder"
        )
    os.environ["SHADOW_ROOT"] = os.path.expanduser(root)
