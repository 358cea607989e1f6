"""All that is to be seen on a GPU, in some eight minutes and without a network, into one folder.

    python benchmarks/gpu_day.py FOLDER            # every part, each in a process of its own, within its time
    python benchmarks/gpu_day.py FOLDER --dry      # the same code with tiny models on a CPU: shows no speed
    python benchmarks/gpu_day.py FOLDER --part same times

Writes gpu_day.md, gpu_day.json and gpu_day.png. A part that fails or takes too long says so below what it had
found, the others go on, and the exit code is 1.
"""

import argparse
import importlib
import json
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Part(NamedTuple):
    """module: of this folder, with COLUMNS and run(dry) -> rows; seconds: what it may take."""

    module: str
    seconds: int
    title: str


PARTS = {
    "tests": Part("gpu_tests", 120, "The kernels' tests"),
    "same": Part("gpu_same", 90, "Masked, gathered and dense"),
    "times": Part("gpu_times", 150, "Milliseconds a token"),
    "fit": Part("gpu_fit", 110, "Traces and a predictor"),
}


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--alone", action="store_true", help="the one part in this process; writes its rows")
    asked = parser.parse_args(words)
    if not asked.dry and not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu_day.py needs CUDA, which torch does not find here: give --dry")
    asked.folder.mkdir(parents=True, exist_ok=True)
    if asked.alone:
        file = asked.folder / f"{asked.part[0]}.json"
        write(file, in_this_process(asked.part[0], asked.dry, file))
        return 0
    found = {
        name: in_this_process(name, True) if asked.dry else in_its_own(name, asked.folder)
        for name in asked.part
    }
    tell(asked.folder, found, asked.dry)
    return int(any(row.get("broken") for part in found.values() for row in part["rows"]))


def in_this_process(name: str, dry: bool, file: Path | None = None) -> dict[str, Any]:
    """file: is written again with each row, for whoever must end this."""
    module, start = importlib.import_module(PARTS[name].module), time.monotonic()
    rows: list[dict[str, Any]] = []
    found: dict[str, Any] = {"seconds": 0.0, "columns": list(module.COLUMNS), "rows": rows}
    try:
        for row in module.run(dry):
            rows.append(row)
            found["seconds"] = time.monotonic() - start
            if file is not None:
                write(file, found)
    except Exception as error:  # whatever it is: the table says it, and the other parts go on
        traceback.print_exc()
        rows.append(broken(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))
    return found | {"seconds": time.monotonic() - start}


def in_its_own(name: str, folder: Path) -> dict[str, Any]:
    """So that a part which hangs, or takes the device down, leaves what it has found, and others go on."""
    start, file, why = time.monotonic(), folder / f"{name}.json", None
    file.unlink(missing_ok=True)
    command = [sys.executable, __file__, str(folder), "--part", name, "--alone"]
    with (folder / f"{name}.log").open("w") as log:
        try:
            code = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, timeout=PARTS[name].seconds, check=False
            ).returncode
            if code:
                why = f"ended with exit code {code}, see {name}.log"
        except subprocess.TimeoutExpired:
            why = f"took more than its {PARTS[name].seconds} s"
    seconds = time.monotonic() - start
    print(f"{name}: {seconds:.0f} s", flush=True)
    found = {"columns": ["why"], "rows": []} if not file.is_file() else json.loads(file.read_text())
    return found | {"seconds": seconds, "rows": [*found["rows"], *([broken(why)] if why else [])]}


def broken(why: str) -> dict[str, Any]:
    return {"why": why, "broken": True}


def write(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n")


def tell(folder: Path, found: dict[str, dict[str, Any]], dry: bool) -> None:
    from gpu_models import markdown

    machine = {
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or "CPU",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "dry": dry,
    }
    write(folder / "gpu_day.json", {"machine": machine, "parts": found})
    lines = ["# A GPU day" + (", dry: tiny models on a CPU, and no speed" if dry else ""), ""]
    lines += [", ".join(f"{name} {value}" for name, value in machine.items()), ""]
    for name, part in found.items():
        notes = sorted({row["note"] for row in part["rows"] if "note" in row})
        lines += [f"## {PARTS[name].title}", "", *notes, *([""] if notes else [])]
        lines += [markdown(part["columns"], part["rows"]), "", f"{part['seconds']:.0f} s", ""]
    (folder / "gpu_day.md").write_text("\n".join(lines))
    timed = [row for row in found.get("times", {"rows": []})["rows"] if "ms a token" in row]
    if timed:
        draw(timed, folder / "gpu_day.png")


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """A bar for each row of the table of times, with its quartiles and its roofline."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.3 * len(rows) + 1.2), layout="constrained")
    axes, places = figure.subplots(), range(len(rows))
    ends = [
        [row["ms a token"] - row["from"] for row in rows],
        [row["to"] - row["ms a token"] for row in rows],
    ]
    axes.barh(places, [row["ms a token"] for row in rows], xerr=ends, color="0.75")
    axes.plot([row["roofline, ms"] for row in rows], places, "k|", label="what memory alone would allow")
    names = [f"{row['model']}, {row['rows']} rows, {row['plan']} {row['level']:g}" for row in rows]
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds a token: median and quartiles")
    axes.legend(loc="lower right")
    figure.savefig(file)


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))  # train.py
    sys.exit(main())
