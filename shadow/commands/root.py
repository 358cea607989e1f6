"""Where results and artifacts lie, as conf/paths/default.yaml has it."""

import os
from pathlib import Path

from shadow.jobs.command_line import settle_root


def root() -> Path:
    settle_root()
    return Path(os.environ.get("SHADOW_ROOT", "."))
