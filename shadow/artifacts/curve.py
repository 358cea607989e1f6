"""A predictor's own curve: the measured points that lie beside it, and the card that shows them."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shadow.artifacts import learnt_policies as policies
from shadow.artifacts.card import COLUMNS, NAMES, card
from shadow.artifacts.files import writing

CARD, CURVE = "README.md", "curve.csv"
FIRST = [*COLUMNS, *NAMES]
FORMAT = "2"  # of rows: those of another one have other columns, and are left out

Row = Mapping[str, str]


def read(folder: Path) -> list[Row]:
    if not (folder / CURVE).is_file():
        return []
    with (folder / CURVE).open(newline="", encoding="utf-8") as stream:
        return [row for row in csv.DictReader(stream) if row.get("format") == FORMAT]


def add(folder: Path, config: Mapping[str, Any], row: Mapping[str, object]) -> None:
    """Write curve.csv with this row, in place of another of the same point, and the card anew."""
    text = {name: "" if value is None else str(value) for name, value in row.items()} | {"format": FORMAT}
    rows = [*(known for known in read(folder) if known["point"] != text["point"]), text]
    rows.sort(
        key=lambda row: (
            *(row.get(name, "") for name in ("data", "decided_at", "scope", "tokens", "stand_in")),
            float(row["level"]),
            row["point"],
        )
    )
    metrics = sorted({name for row in rows for name in row} - set(FIRST))
    with writing(folder / CURVE) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [*FIRST, *metrics], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_card(folder, config, read(folder))


def write_card(folder: Path, config: Mapping[str, Any], rows: Sequence[Row]) -> None:
    with writing(folder / CARD) as unfinished:
        unfinished.write_text(card(config, rows, list(policies.load(folder))), encoding="utf-8")
