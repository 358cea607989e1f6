"""From accuracy and speed to latency.csv, latency.png and latency.md."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from sweeps.files import write_csv
from sweeps.latency import COLUMNS, HIGH, LOW, ROOFLINE, TIMES, TOKEN, Race, find_races, rows_of, told
from sweeps.markdown import aligned
from sweeps.points import is_accuracy
from sweeps.rebuild import AGAINST, Part, Rebuilt, read_some, write_parts
from sweeps.records import Records
from sweeps.report import closing, opening, titled
from sweeps.table import unfinished

LEGEND = (
    "Of each plan its quality and its speed, by the same executor in the same process. Times dense: a token "
    "of dense transformers over a token of this, by turns; the median over rounds, and their quartiles. "
    "Roofline: bytes of weights that a dense token reads over those of this one, predictor included. "
    "Where everything stays, what is faster is the executor alone."
)


def find(folders: Iterable[Path]) -> tuple[Records, list[Race]]:
    """Everything but the files: quick, and without matplotlib."""
    records = read_some(folders)
    return records, find_races(records.done)


def rebuild(folders: Iterable[Path], out: Path, against: str = AGAINST) -> Rebuilt:
    """The same records give the same files."""
    from sweeps.latency_plot import draw  # matplotlib takes a second

    records, races = find(folders)
    write_csv(COLUMNS, (row for race in races for row in rows_of(race)), out / "latency.csv")
    parts = [
        Part(race.chart, draw(race), partial(section, race, folder=out, against=against)) for race in races
    ]
    return write_parts("latency", "Accuracy against speed", records, parts, out)


def summary(folders: Iterable[Path]) -> str:
    records, races = find(folders)
    lines: list[str] = []
    for race in races:
        lines += ["", race.chart.name, *race.chart.notes, *aligned(table(race))]
    return "\n".join([*lines, *unfinished(records)])


def section(race: Race, figure: Path | None, folder: Path, against: str) -> list[str]:
    lines = opening(race.chart, "latency", LEGEND, figure, folder)
    return [*lines, *titled([("Points", table(race))]), *closing(race.chart, against)]


def table(race: Race) -> list[list[str]]:
    """The header, then every point that was timed."""
    rows = [
        ["scorer", "level", "heads %", "neurons %", *race.qualities, "ms a token", "times dense", "roofline"]
    ]
    for one in race.timed:
        gone = [f"{100 * one.mark.achieved.get(kind, 0):.1f}" for kind in ("head", "neuron")]
        quality = [told(one.mark.metrics.get(name), 3 if is_accuracy(name) else 2) for name in race.qualities]
        times = f"{one.value(TIMES):.2f} ({one.value(LOW):.2f} to {one.value(HIGH):.2f})"
        speed = [f"{one.value(TOKEN):.1f}", times, f"{one.value(ROOFLINE):.2f}"]
        rows.append([one.label, f"{one.mark.level:g}", *gone, *quality, *speed])
    return rows
