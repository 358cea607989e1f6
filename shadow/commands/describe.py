"""--help: what a command does, its options and settings with the comments of conf/, and examples."""

import shutil
import textwrap
from collections.abc import Sequence

from shadow.commands.comments import (
    Line,
    chosen_by,
    lines_of_option,
    lines_of_task,
    options_of,
    usual_options,
)
from shadow.commands.tasks import SCRIPTS, TASKS


def of_task(task: str, words: Sequence[str] = ()) -> str:
    """words: overrides; all settings of the options that they choose are told, too."""
    told, chosen = TASKS[task], choices(task, words)
    first = '"TEXT" ' if task == "compare" else ""
    also = f"   or python {task}.py ..." if task in SCRIPTS else ""
    given = [group for group in chosen if any(word.startswith(f"{group}=") for word in words)]
    lines = {line.setting: line for line in lines_of_task(task)}
    for group, option in chosen.items():
        lines |= {line.setting: line for line in lines_of_option(group, option or "")}
    parts = [
        paragraph(told.about),
        "",
        f"  shadow {task} {first}[GROUP=OPTION] [SETTING=VALUE] ...{also}",
        "",
        "Options, the chosen one of each group first:",
        *(option_lines(group, option) for group, option in chosen.items() if len(options_of(group)) > 1),
        "",
        "Settings that most people need:",
        *(row(lines[name]) for name in told.settings if name in lines),
    ]
    for group in given:
        of_group = [line for name, line in lines.items() if name.startswith(f"{group}.") and line.comment]
        parts += ["", f"Settings of {group}={chosen[group]}:", *map(row, of_group)] if of_group else []
    last = (
        "--help after options tells their settings too. --cfg job prints the whole config. -m runs a job for "
        "each of several values."
    )
    return "\n".join([*parts, "", "Examples:", *examples(task), "", paragraph(last)])


def examples(task: str) -> list[str]:
    return [f"  shadow {task} {words}\n      {what}" for words, what in TASKS[task].examples]


def choices(task: str, words: Sequence[str]) -> dict[str, str | None]:
    """Of each group of the task the option that is chosen, by these words or as usual."""
    usual = usual_options(task)
    given = {group: option for group, _, option in (word.partition("=") for word in words) if group in usual}
    chosen = {**usual, **given}
    for _ in range(len(usual)):  # what is chosen so may choose others, or leave off choosing
        found = {name: option for name, option in chosen_by(chosen).items() if name in usual}
        if (told := {**usual, **found, **given}) == chosen:
            break
        chosen = told
    return {name: option for name, option in chosen.items() if options_of(name)}


def option_lines(group: str, option: str | None) -> str:
    others = [name for name in options_of(group) if name != option]
    listed = ", ".join([f"{option} (chosen)" if option else "none (chosen)", *others])
    return hanging(f"  {group}=", listed, 18)


def row(line: Line) -> str:
    text = f"  {line.setting}={line.value}" if line.value else f"  {line.setting}"
    return hanging(f"{text}", line.comment, 42)


def hanging(start: str, text: str, column: int) -> str:
    """The text beside its start, or below it where that is long."""
    lines = textwrap.wrap(text, max(width() - column, 30), break_on_hyphens=False)
    first = f"{start:<{column - 1}} " if len(start) < column else f"{start}\n{' ' * column}"
    return first + f"\n{' ' * column}".join(lines)


def paragraph(text: str) -> str:
    return textwrap.fill(text, width())


def width() -> int:
    return min(shutil.get_terminal_size((100, 24)).columns, 110)
