"""Command lines that Hydra answers with a traceback: refused before it starts."""

from collections.abc import Sequence
from importlib.resources import files


def refuse_null_groups(words: Sequence[str]) -> None:
    """words: the overrides; exits with one sentence at a config group that is set to null."""
    groups = {folder.name: folder for folder in files("shadow.conf").iterdir() if folder.is_dir()}
    for word in words:
        group, _, value = word.lstrip("+").partition("=")
        if group in groups and value.lower() == "null":
            options = sorted(file.name.removesuffix(".yaml") for file in groups[group].iterdir())
            raise SystemExit(f"{word} names no option of {group}: give one of {options}, or leave it out")
