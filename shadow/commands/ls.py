"""`shadow ls`: artifacts, and what was run."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shadow.artifacts.files import points_in
from shadow.commands.root import root
from shadow.commands.shelves import WHOLE, Artifact, artifacts_in

KINDS = (*WHOLE, "runs")
EPILOG = """examples:
  shadow ls                  all artifacts, and how many points were measured
  shadow ls predictors       trained predictors alone
  shadow ls runs             what was run, when, and how it ended
"""


def ls(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="shadow ls",
        description="Tell what lies under SHADOW_ROOT: name, size, when it was made, quality, and the "
        "settings that are not as in conf/.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kinds", nargs="*", choices=[[], *KINDS], metavar="KIND", help=", ".join(KINDS))
    asked = parser.parse_args(list(words)).kinds or list(WHOLE)
    artifacts = [artifact for artifact in artifacts_in(root() / "artifacts") if artifact.kind in asked]
    for kind in WHOLE:
        told = [artifact for artifact in artifacts if artifact.kind == kind]
        if told:
            print(
                "\n".join(
                    [f"{kind} ({len(told)}, {in_words(sum(one.size for one in told))})", *map(row, told), ""]
                )
            )
    if "runs" in asked:
        print("\n".join(runs(root() / "logs")))
    elif not artifacts:
        what = "nothing is" if asked == list(WHOLE) else f"no {' or '.join(asked)} are"
        print(f"{what} made yet in {root() / 'artifacts'}: `shadow train` makes what a method learns")
    else:
        points = points_in(root() / "artifacts")
        print(f"{len(points)} measured points, which no job measures again")


def row(artifact: Artifact) -> str:
    told = f"  {artifact.name}\n      {artifact.made}  {in_words(artifact.size):>8}  {artifact.quality}"
    return told + (f"\n      {artifact.differs}" if artifact.differs else "")


def in_words(size: int) -> str:
    """size: in bytes."""
    number = float(size)
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


def runs(logs: Path) -> list[str]:
    """A line a job: its folder, how it ended, and its figures as a sweep tells them."""
    found = sorted(logs.glob("*/*runs/**/run.json"))
    records = [file for file in found if "looked_up" not in file.parts]  # copies beside those that ask
    return [run_row(file, logs, json.loads(file.read_text(encoding="utf-8"))) for file in records] or [
        f"nothing was run yet in {logs}"
    ]


def run_row(file: Path, logs: Path, record: dict[str, Any]) -> str:
    from shadow.sweeps.progress_callback import figures  # brings Hydra, which no other shelf needs

    metrics = record.get("metrics") or {}
    found = figures(metrics) if metrics else (record.get("error") or "")
    lines = [
        str(file.parent.relative_to(logs)),
        f"{record['status']}  {found}",
        " ".join(record["overrides"]),
    ]
    return "\n      ".join(line for line in lines if line)
