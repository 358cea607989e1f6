"""Before Hydra starts: command lines that it answers with a traceback are refused, SHADOW_ROOT is settled."""

import os
from collections.abc import Sequence
from importlib.resources import files

from shadow.terminal.stops import expect


def prepare(words: Sequence[str]) -> None:
    """words: the overrides; exits with one sentence at what cannot work."""
    expect()
    refuse_null_groups(words)
    settle_root()


def refuse_null_groups(words: Sequence[str]) -> None:
    """Exits with one sentence at a config group that is set to null."""
    groups = {folder.name: folder for folder in files("shadow.conf").iterdir() if folder.is_dir()}
    for word in words:
        group, _, value = word.lstrip("+").partition("=")
        if group in groups and value.lower() == "null":
            options = sorted(file.name.removesuffix(".yaml") for file in groups[group].iterdir())
            raise SystemExit(f"{word} names no option of {group}: give one of {options}, or leave it out")


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
