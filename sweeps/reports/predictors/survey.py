"""From records to predictors by their size: nats, weight bytes, parameters and taps of each."""

from dataclasses import dataclass, replace

from ...curves.chart import Chart, by_label, chart
from ...curves.curve import mean_bytes
from ...differences.nats import lacking_nats, over_dense
from ...differences.paired import Difference
from ...files import Cell
from ...records.merging import by_place, one_per_point_and_word
from ...records.record import Record
from ...records.variants import without_word

ONE_PASS, DENSE_FED = "one pass", "dense-fed"
# overrides that a point and its word tell already
IN_WORD = ("contender", "criterion", "predictor", "predictor.taps", "predictor.rank", "predictor.dense_fed")
COLUMNS = (
    *("model", "data", "criterion", "scorer", "feeding", "decided_at", "scope", "tokens", "scored", "level"),
    *("bytes_skipped", "taps", "rank", "parameters", "share_of_model", "seeds"),
    *("nats_over_dense", "stderr", "lowest_seed", "highest_seed", "on_front"),
)


@dataclass(frozen=True)
class Net:
    taps: int
    rank: int
    parameters: int
    share_of_model: float
    feeding: str  # what its taps read: the sparse pass itself, or a dense one beside it


@dataclass(frozen=True)
class Entry:
    """What decides, at one level. family: its name without its size, for those are drawn alike."""

    label: str
    family: str
    level: float
    net: Net | None
    over: Difference  # nats over dense
    records: list[Record]  # one for each seed

    @property
    def bytes_skipped(self) -> float:
        return mean_bytes(self.records).skipped


@dataclass(frozen=True)
class Survey:
    """All predictors on one model and data set."""

    chart: Chart
    entries: list[Entry]

    @property
    def levels(self) -> list[float]:
        return sorted({entry.level for entry in self.entries})

    def nets(self, level: float) -> list[Entry]:
        return [entry for entry in self.entries if entry.net and entry.level == level]

    def others(self, level: float) -> list[Entry]:
        """Scorers without a net: they bound what nets can do."""
        return [entry for entry in self.entries if not entry.net and entry.level == level]


def find_surveys(records: list[Record]) -> list[Survey]:
    """Records as they were read -> a survey for each model and data set."""
    return [survey(group) for group in by_place(one_per_point_and_word(word_of, records, IN_WORD))]


def survey(records: list[Record]) -> Survey:
    found = chart(records)
    perplexity = found.perplexity
    if perplexity is None:
        return Survey(found, [])
    found = replace(found, notes=[*found.notes, *lacking_nats(records, perplexity)])
    entries = []
    for label, levels in by_label(records).items():
        for level in sorted(levels):
            over = over_dense(levels[level], records, perplexity)
            if over:
                first = levels[level][0]
                family = label.replace(f" {word_of(first)}", "", 1) if word_of(first) else label
                entries.append(Entry(label, family, level, net_of(first), over, levels[level]))
    return Survey(found, entries)


def net_of(record: Record) -> Net | None:
    if record.predictor is None:
        return None
    dense_fed = record.settings["predictor"].get("dense_fed", False)
    size = {name: record.predictor[name] for name in ("taps", "rank", "parameters", "share_of_model")}
    return Net(**size, feeding=DENSE_FED if dense_fed else ONE_PASS)


def word_of(record: Record) -> str:
    """What tells nets of one scorer apart: <taps>x<rank>, and how they are fed if not in one pass."""
    net = net_of(record)
    if net is None:
        return ""
    return f"{net.taps}x{net.rank}" + (f" {DENSE_FED}" if net.feeding == DENSE_FED else "")


def front(entries: list[Entry], by: str) -> list[Entry]:
    """The nets in one pass that no other beats in nats and in `by`, `parameters` or `taps`; by that."""
    best: list[Entry] = []
    fair = [entry for entry in entries if entry.net and entry.net.feeding == ONE_PASS]
    for entry in sorted(fair, key=lambda entry: (getattr(entry.net, by), entry.over.mean)):
        if not best or entry.over.mean < best[-1].over.mean:
            best.append(entry)
    return best


def rows_of(found: Survey) -> list[list[Cell]]:
    """The values of COLUMNS."""
    rows: list[list[Cell]] = []
    for level in found.levels:
        best = front(found.nets(level), "parameters")
        for entry in [*found.nets(level), *found.others(level)]:
            record, net, over = entry.records[0], entry.net, entry.over
            point = without_word(record, word_of(record)).point
            size: list[Cell] = [None] * 4
            if net:
                size = [net.taps, net.rank, net.parameters, net.share_of_model]
            rows.append(
                [
                    *(point.model, point.data, point.criterion, point.scorer),
                    *(net.feeding if net else None, point.decided_at, point.scope),
                    *(point.tokens, point.scored, level, entry.bytes_skipped),
                    *(*size, len(over.values), over.mean, over.stderr),
                    *(min(over.values), max(over.values), int(entry in best) if net else None),
                ]
            )
    return rows
