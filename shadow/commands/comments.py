"""The options of conf/, and their settings with the comments that stand in the YAML."""

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, NamedTuple

from shadow.artifacts.usual import content_of
from shadow.commands.tasks import SCRIPTS


class Line(NamedTuple):
    setting: str
    value: str
    comment: str


def usual_options(task: str) -> dict[str, str | None]:
    """As its defaults list has them, and those of the task that it is made from."""
    found: dict[str, str | None] = {}
    for entry in content_of(files("shadow.conf") / f"{task}.yaml")["defaults"]:
        if isinstance(entry, dict):
            found |= {name.removeprefix("override "): option for name, option in entry.items()}
        elif entry != "_self_":
            found |= usual_options(entry)
    return found


def chosen_by(options: Mapping[str, str | None]) -> dict[str, str]:
    """Of other groups the options that these choose, as predictor=recommended chooses sparsity=learnt.

    So do those of its group that an option is made from, as sweep=demo of sweep=methods.
    """
    found: dict[str, str] = {}
    for group, option in options.items():
        for entry in content_of_option(group, option or "").get("defaults", []):
            if isinstance(entry, str) and entry != "_self_":
                found |= chosen_by({group: entry.partition("@")[0]})
            elif isinstance(entry, dict):
                found |= {
                    name.removeprefix("override /"): other
                    for name, other in entry.items()
                    if name.startswith("override /")
                }
    return found


def content_of_option(group: str, option: str) -> dict[str, Any]:
    file = files("shadow.conf") / group / f"{option}.yaml"
    return content_of(file) if file.is_file() else {}


def lines_of_task(task: str) -> list[Line]:
    """With those of the task that it is made from."""
    parent = [] if task in SCRIPTS else lines_of_task("evaluate")
    return commented(lines_of(files("shadow.conf") / f"{task}.yaml"), parent)


def options_of(group: str) -> list[str]:
    folder = files("shadow.conf") / group
    if not folder.is_dir():
        return []
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def lines_of_option(group: str, option: str) -> list[Line]:
    """With those of the options of the same group that it is made from; its own values win."""
    file = files("shadow.conf") / group / f"{option}.yaml"
    content = content_of_option(group, option)
    if not content:
        return []
    parents = [name for name in content.get("defaults", []) if isinstance(name, str) and name != "_self_"]
    of_parents = [line for name in parents for line in lines_of_option(group, name.partition("@")[0])]
    return commented(lines_of(file, f"{group}."), of_parents)


def commented(own: Sequence[Line], parents: Sequence[Line]) -> list[Line]:
    """Values of its own win, and where they have no comment, the parents' tells of them."""
    found = {line.setting: line for line in parents}
    for line in own:
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
