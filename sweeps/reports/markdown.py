"""Tables in Markdown, and for the console."""

import os
from collections.abc import Set
from pathlib import Path


def markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def bold(rows: list[list[str]], cells: Set[tuple[int, int]]) -> list[list[str]]:
    """cells: (row, column) of those that become bold."""
    return [
        [f"**{text}**" if (n, column) in cells else text for column, text in enumerate(row)]
        for n, row in enumerate(rows)
    ]


def aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    ]


def beside(path: Path, folder: Path) -> str:
    """The path as seen from the report, so that a moved sweep keeps its links."""
    return Path(os.path.relpath(path, folder.resolve())).as_posix()
