"""One bar for each stage, named for what it counts: "collecting: 3 of 14 shards"."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shadow.terminal.lines import CONSOLE, rank_here

Item = TypeVar("Item")
_shown: list[Progress] = []  # at most one: stages within a stage show nothing


@contextmanager
def stage(name: str, total: int, unit: str, done: float = 0) -> Iterator[Callable[[float], None]]:
    """Yields what is called with how many more are done; parts of one may be counted.

    Nothing is shown but in a terminal, and by the first of several processes.
    """
    if _shown or not CONSOLE.is_terminal or rank_here():
        yield ignore
        return
    columns = (
        TextColumn("{task.description}:"),
        MofNCompleteColumn(" of "),
        TextColumn("{task.fields[unit]}"),
        BarColumn(),
        TimeRemainingColumn(compact=True),
    )
    bar = Progress(*columns, console=CONSOLE, transient=True, refresh_per_second=4)
    task = bar.add_task(name, total=total, completed=done, unit=unit)  # type: ignore[arg-type]
    _shown.append(bar)
    try:
        with bar:
            yield lambda more: bar.advance(task, more)
    finally:
        _shown.remove(bar)


def counted(items: Collection[Item], name: str, unit: str) -> Iterator[Item]:
    """The items, counted as each is done."""
    with stage(name, len(items), unit) as advance:
        for item in items:
            yield item
            advance(1)


def ignore(more: float) -> None:
    pass
