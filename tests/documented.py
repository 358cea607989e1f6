"""The pages of README.md and docs/: their blocks of code, and the commands in those of the shell."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
README, DOCS = ROOT / "README.md", ROOT / "docs"
QUESTIONS = [README, *sorted(DOCS.glob("*.md"))]  # pages for readers, without results and decisions
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """Language and code of each, in their order."""
    return FENCE.findall(page.read_text(encoding="utf-8"))


def commands_in(code: str) -> Iterator[str]:
    """Each command of a shell block on one line, without its comment."""
    for line in code.replace("\\\n", " ").splitlines():
        command = line.partition(" # ")[0].strip()
        if command and not command.startswith("#"):
            yield command
