"""--help: what a command does, its options and settings with the comments of conf/, and examples."""

import re
import shutil
import textwrap
from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import NamedTuple

import yaml

INDENT = 2


class Task(NamedTuple):
    """settings: those that most people need; examples: words, and what they do."""

    about: str
    settings: Sequence[str]
    examples: Sequence[tuple[str, str]]


TASKS = {
    "train": Task(
        "Collect a language model's traces, and fit the predictor of which units a token needs. "
        "Run again, it goes on from what is finished.",
        (
            "stage",
            "model.path",
            "model.trust_remote_code",
            "traces.criteria",
            "traces.taps",
            "traces.tokens_per_window",
            "data.windows",
            "data.tokens",
            "predictor.taps",
            "predictor.rank",
            "predictor.epochs",
            "trainer.devices",
        ),
        (
            ("model=opt-mini", "the small model, in a minute"),
            ("model.path=/my/model model.name=mine predictor=few_taps", "a model of your own"),
            ("model=opt-30b stage=estimate", "only say what it will take"),
        ),
    ),
    "evaluate": Task(
        "Make a language model sparse by a method's plans, and measure what that costs and what it spares.",
        (
            "make_missing",
            "reuse_points",
            "sparsity.level",
            "sparsity.kinds",
            "sparsity.stand_in",
            "sparsity.decided_at",
            "sparsity.tokens",
            "sparsity.budgets",
            "sparsity.learnt.windows",
            "measure.text",
            "measure.windows",
            "measure.tasks",
            "measure.limit",
            "measure.root",
        ),
        (
            ("model=opt-mini predictor=teal sparsity=threshold make_missing=true", "one point"),
            (
                "-m model=opt-mini predictor=unified,static sparsity.level=0.2,0.4 make_missing=true",
                "four jobs",
            ),
            ("sweep=methods model=opt-mini", "all methods on one axis of bytes"),
        ),
    ),
    "recommend": Task(
        "Try cheap methods on a language model, from low levels to high, and write the one that skips most "
        "weight bytes within a budget of lost quality: a folder that from_pretrained loads.",
        (
            "budget",
            "contenders",
            "levels",
            "windows",
            "folder",
            "model.path",
            "data.windows",
            "measure.dtype",
        ),
        (
            ("model=opt-mini", "at most 0.1 nats over dense"),
            ("model.path=/my/model budget=0.05 data=text data.train=my.jsonl", "on text of your own"),
            (
                "model=opt-mini contenders=[[teal,learnt],[teal,block]] data.windows=320",
                "with learnt stand-ins",
            ),
        ),
    ),
    "compare": Task(
        "Let the dense and the sparse model go on with a text, side by side, and write a page of what each "
        "token lost and which units stayed.",
        ("continuation", "make_missing", "sparsity.level", "sparsity.decided_at", "sparsity.tokens"),
        (
            ('"The capital of France is" predictor=teal', "with the default model"),
            (
                '"An object" model=opt-mini predictor=teal sparsity=threshold sparsity.level=0.3',
                "by thresholds",
            ),
            ('"A tuple is" model=opt-mini predictor=few_taps continuation=0', "the text alone"),
        ),
    ),
    "export": Task(
        "Write the sparse model of these settings, with its card, as a folder that from_pretrained loads.",
        ("folder", "make_missing", "sparsity.level", "sparsity.decided_at", "measure.dtype"),
        (
            ("model=opt-mini predictor=teal sparsity=threshold make_missing=true", "at level 0.5"),
            (
                "model=opt-mini predictor=teal sparsity=threshold sparsity.level=0.4 folder=mine",
                "in a folder of yours",
            ),
            ("model=opt-mini predictor=few_taps make_missing=true", "with a trained predictor"),
        ),
    ),
}

SCRIPTS = ("train", "evaluate")  # which have a file of their own, and are what the others are made from


class Line(NamedTuple):
    setting: str
    value: str
    comment: str


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
    return {name: option for name, option in {**usual, **given}.items() if options_of(name)}


def usual_options(task: str) -> dict[str, str | None]:
    """As its defaults list has them, and those of the task that it is made from."""
    found: dict[str, str | None] = {}
    for entry in yaml.safe_load((files("shadow.conf") / f"{task}.yaml").read_text(encoding="utf-8"))[
        "defaults"
    ]:
        if isinstance(entry, dict):
            found |= {name.removeprefix("override "): option for name, option in entry.items()}
        elif entry != "_self_":
            found |= usual_options(entry)
    return found


def lines_of_task(task: str) -> list[Line]:
    parent = [] if task in SCRIPTS else lines_of(files("shadow.conf") / "evaluate.yaml")
    return [*parent, *lines_of(files("shadow.conf") / f"{task}.yaml")]


def options_of(group: str) -> list[str]:
    folder = files("shadow.conf") / group
    if not folder.is_dir():
        return []
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def option_lines(group: str, option: str | None) -> str:
    others = [name for name in options_of(group) if name != option]
    listed = ", ".join([f"{option} (chosen)" if option else "none (chosen)", *others])
    return hanging(f"  {group}=", listed, 18)


def lines_of_option(group: str, option: str) -> list[Line]:
    """With those of the options of the same group that it is made from; its own values win."""
    file = files("shadow.conf") / group / f"{option}.yaml"
    if not file.is_file():
        return []
    content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    found: dict[str, Line] = {}
    for parent in content.get("defaults", []):
        if isinstance(parent, str) and parent != "_self_":
            found |= {line.setting: line for line in lines_of_option(group, parent)}
    for line in lines_of(file, f"{group}."):
        known = found.get(line.setting)
        found[line.setting] = line._replace(comment=line.comment or (known.comment if known else ""))
    return list(found.values())


def lines_of(file: Traversable, before: str = "") -> list[Line]:
    """Settings with the comments behind and below them; nested ones are dotted. before: of each name."""
    found: list[Line] = []
    above: list[tuple[int, str]] = []  # nodes that the line stands in, by their indent
    for text in file.read_text(encoding="utf-8").splitlines():
        further = re.match(r"\s+# (.*)", text)
        if further and found:
            found[-1] = found[-1]._replace(comment=f"{found[-1].comment} {further[1]}")
            continue
        setting = re.match(r"( *)([\w]+):(?: +([^#]*?))?(?:\s+# (.*))?$", text)
        if setting is None:
            continue
        indent, name, value, comment = len(setting[1]), setting[2], setting[3] or "", setting[4] or ""
        above = [(depth, node) for depth, node in above if depth < indent]
        dotted = ".".join([*(node for _, node in above), name])
        above.append((indent, name))
        if not dotted.startswith("defaults"):
            found.append(Line(before + dotted, value.strip(), comment))
    return found


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
