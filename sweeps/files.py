"""Writing so that a reader never sees half a file."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

Cell = str | int | float | None


@contextmanager
def writing(file: Path) -> Iterator[Path]:
    """A path beside `file` to write; it takes that name if the block ends well, else it vanishes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}-{uuid4().hex}")  # jobs on several machines may redraw at once
    try:
        yield unfinished
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def write_csv(columns: Sequence[str], rows: Iterable[Iterable[Cell]], file: Path) -> None:
    with writing(file) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as stream:
        lines = csv.writer(stream, lineterminator="\n")
        lines.writerow(columns)
        lines.writerows(rows)
