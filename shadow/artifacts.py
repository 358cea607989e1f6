"""From settings to a name; writing so that a reader never sees half a result."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def key_of(settings: dict) -> str:
    """Ten hex digits that name these settings: plain values, and lists and dicts of them."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """A fresh folder to fill; it takes its name when the block ends well and vanishes when it does not."""
    unfinished = folder.with_name(
        f".{folder.name}.part"
    )  # always the same: a rerun takes over what a kill left
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def writing(file: Path) -> Iterator[Path]:
    """A path to write; it takes the name `file` when the block ends well and vanishes when it does not."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.part")
    try:
        yield unfinished
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(file: Path, content: dict) -> None:
    with writing(file) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
