"""What a run's folder is called: by what was asked of it."""

import re
from collections.abc import Sequence
from importlib.resources import files

from hydra.core.override_parser.types import Override

LONGEST = 80  # characters; a file's name may have 255 bytes
ELSEWHERE = (
    "hydra",
    "logger",
    "paths",
    "trainer",
    "callbacks",
    "launch",
    "make_missing",
    "reuse_points",
    "tags",
)


def run_name(overrides: Sequence[Override]) -> str:
    """`-opt-mini-few_taps-level=0.3`: the values of groups, and settings by their last word. "" for none."""
    parts = []
    for override in overrides:
        key, value = override.key_or_group, str(override.input_line).partition("=")[2]
        if key.partition(".")[0].partition("/")[0] in ELSEWHERE or override.is_delete():
            continue
        is_group = (files("shadow.conf") / key.partition("@")[0]).is_dir()
        parts.append(short(value) if is_group else f"{key.rpartition('.')[2]}={short(value)}")
    text = "-".join(parts)[:LONGEST].rstrip("-=,")
    return f"-{text}" if text else ""


def short(value: str) -> str:
    """Of a path its end, and no sign that a shell or a file system reads."""
    end = value.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.,=+-]+", "", end)
