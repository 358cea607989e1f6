"""docs/options.md from conf/, by `python docs/options.py`: what each option and each setting is for."""

import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
CONF, PAGE = ROOT / "conf", ROOT / "docs" / "options.md"
LINE = re.compile(r"^(?P<indent> *)(?P<key>[\w.]+):(?: (?P<value>.*?))?(?: +# (?P<meaning>.*))?$")
HEAD = """# Options

Every setting of `train.py` and `evaluate.py`, made from `conf/` by `python docs/options.py`.

An option replaces a group: `predictor=teal`. A setting follows its group's name: `sparsity.level=0.3`.
`python evaluate.py --cfg job` prints what would run.
"""
SETTINGS = "| setting | default | meaning |\n|---|---|---|"
SAID_WHOLE = {
    "criterion",
    "data",
    "executor",
    "measure",
    "predictor",
    "sparsity",
    "traces",
    "trainer",
}  # uncommented too


class Setting(NamedTuple):
    """key: dotted, without the group's name; value: as YAML has it; meaning: its comment."""

    key: str
    value: str
    meaning: str


def page() -> str:
    parts = [HEAD, "## Top level\n", top_level()]
    for folder in sorted(folder for folder in CONF.iterdir() if any(folder.glob("*.yaml"))):
        parts += [f"## {folder.name}\n", group(folder)]
    return "\n".join(parts)


def top_level() -> str:
    rows = [SETTINGS]
    seen: set[Setting] = set()
    for script in ("train", "evaluate"):
        for setting in settings_of(CONF / f"{script}.yaml"):
            if setting not in seen and not setting.key.startswith(("defaults", "task_name")):
                seen.add(setting)
                key = (
                    f"`{setting.key}`"
                    if setting.key in ("seed", "tags")
                    else f"`{setting.key}` ({script}.py)"
                )
                rows.append(f"| {key} | {code(setting.value)} | {plain(setting.meaning)} |")
    return "\n".join(rows) + "\n"


def group(folder: Path) -> str:
    """Its options, then each setting where it first stands, the option with most settings first."""
    files = sorted(folder.glob("*.yaml"))
    rows = ["| option | what it is for |", "|---|---|"]
    rows += [f"| `{file.stem}` | {plain(about(file))} |" for file in files]
    seen: set[str] = {"name", "_target_", "defaults"}
    settings = []
    of_group = [file for file in files if "@package _global_" not in file.read_text(encoding="utf-8")]
    for file in sorted(of_group, key=lambda file: (-len(settings_of(file)), file.name)):
        for setting in settings_of(file):
            if (setting.meaning or (setting.value and folder.name in SAID_WHOLE)) and setting.key not in seen:
                seen.add(setting.key)
                settings.append(
                    f"| `{folder.name}.{setting.key}` | {code(setting.value)} | {plain(setting.meaning)} |"
                )
    if settings:
        rows += ["", SETTINGS, *settings]
    return "\n".join(rows) + "\n"


def about(file: Path) -> str:
    """The comment that the file begins with."""
    said = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            said.append(line.removeprefix("#").strip())
    return " ".join(said)


def settings_of(file: Path) -> list[Setting]:
    """A comment that goes on in lines of its own belongs to the setting before it."""
    found: list[Setting] = []
    inside: list[tuple[int, str]] = []  # keys that the next line may be below
    for line in file.read_text(encoding="utf-8").splitlines():
        if found and re.match(r"^ +# ", line):
            found[-1] = found[-1]._replace(meaning=f"{found[-1].meaning} {line.strip(' #')}".strip())
        match = LINE.match(line)
        if match is None:
            continue
        indent = len(match["indent"])
        inside = [level for level in inside if level[0] < indent]
        key = ".".join([*(name for _, name in inside), match["key"]])
        inside.append((indent, match["key"]))
        found.append(Setting(key, match["value"] or "", match["meaning"] or ""))
    return found


def code(value: str) -> str:
    return f"`{value.replace('|', chr(92) + '|')}`" if value else ""


def plain(text: str) -> str:
    """A table's cell: no bar but inside code, where it is escaped too."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}\n")
