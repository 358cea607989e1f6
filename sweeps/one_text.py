"""The page of one text: both continuations, tokens coloured by what they lost, units that stayed."""

import html
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .figures.panels import Cell, Figure, Heat, Panel
from .figures.web import to_html
from .files import writing
from .reports.page import document

if TYPE_CHECKING:
    from shadow.measures.one_text import OneText

LOSES, GAINS = "213, 94, 0", "0, 114, 178"  # red, green and blue of a token's ground
FULL = 2.0  # nats; a token that lost so much has the whole colour
DARKEST = 0.75  # of a ground, so that letters are read on it
TITLES = {
    "head": "attention heads",
    "neuron": "neurons",
    "qkv": "inputs of queries, keys and values",
    "o": "inputs of the attention's output",
    "gate_up": "inputs of the FFN",
    "down": "inputs of the FFN's output",
    "lm_head": "inputs of the lm_head",
    "vocabulary": "words of the lm_head",
}
KEPT = "share of units that stay"
WHAT_STAYED = (
    "Layers from top to bottom, each head on its own; tokens from left to right. What loses nothing, or the "
    "same share at every token, is left out."
)
LONGEST = 12  # letters of a token below a heat map
STYLE = """
.beside { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.5em; }
.beside h3 { margin: 0 0 .3em; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.prompt { color: #808080; }
.tokens span { border-radius: 2px; }
.tokens .added { border-bottom: 1px solid #808080; }
@media (max-width: 760px) { .beside { grid-template-columns: minmax(0, 1fr); } }
"""


class Names(NamedTuple):
    model: str
    method: str


def write_page(found: "OneText", names: Names, file: Path) -> None:
    title = f"{names.model}: dense, and {names.method}"
    counted = f"{100 * found.skipped:.1f} % of the weight bytes unread cost {found.nats:.3f} nats a token"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p><b>{counted}</b>, over {len(found.lost)} tokens.</p>",
        beside(found, names),
        "<h2>What each token lost</h2>",
        f"<p>{legend()}</p>",
        f'<div class="text tokens">{tokens(found)}</div>',
    ]
    figure = Figure(title, in_twos(heats(found)))
    if not figure.empty:
        parts += ["<h2>What stayed</h2>", f"<p>{WHAT_STAYED}</p>", to_html(figure, "figure-0")]
    with writing(file) as unfinished:
        page = document(title, "\n".join(parts), has_figures=not figure.empty, style=STYLE)
        unfinished.write_text(page, encoding="utf-8")


def beside(found: "OneText", names: Names) -> str:
    """Each with the prompt before it."""
    prompt = f'<span class="prompt">{html.escape("".join(found.tokens[: found.prompt]))}</span>'
    columns = [
        f'<div><h3>{html.escape(head)}</h3><div class="text">{prompt}{html.escape(text.rstrip())}</div></div>'
        for head, text in (("dense", found.dense), (names.method, found.sparse))
    ]
    return f'<div class="beside">{"".join(columns)}</div>'


def tokens(found: "OneText") -> str:
    """The first one is predicted by none."""
    return "".join(
        token(text, None if n == 0 else found.lost[n - 1], n >= found.prompt)
        for n, text in enumerate(found.tokens)
    )


def token(text: str, lost: float | None, added: bool) -> str:
    told = "the first token, which nothing predicts" if lost is None else in_words(lost)
    ground = "" if lost is None else f' style="background: {colour(lost)}"'
    of = ' class="added"' if added else ""
    return f'<span title="{told}"{of}{ground}>{html.escape(text)}</span>'


def in_words(lost: float) -> str:
    return f"lost {lost:.3f} nats" if lost >= 0 else f"gained {-lost:.3f} nats"


def colour(lost: float) -> str:
    """Of a token's ground; pale where little changed."""
    if not math.isfinite(lost):
        return f"rgba({LOSES}, {DARKEST})"
    return f"rgba({LOSES if lost > 0 else GAINS}, {DARKEST * min(abs(lost) / FULL, 1.0):.3f})"


def legend() -> str:
    shown = (-FULL, -FULL / 2, 0.0, FULL / 2, FULL)
    grounds = "".join(token(f" {nats:g} ", nats, added=False) for nats in shown)
    words = "Nats that the sparse model gives a token less than the dense one: "
    return f'{words}<span class="tokens text">{grounds}</span>. What the dense model added is underlined.'


def heats(found: "OneText") -> list[Heat]:
    """One for each slot: heads one by one, of other units their share in each layer, where tokens differ."""
    columns = [f"{n} {shown(text)}" for n, text in enumerate(found.tokens)]
    panels = []
    for slot in dict.fromkeys(slot for _, slot in found.stays):
        layers = sorted(layer for layer, of in found.stays if of == slot)
        rows: dict[str, list[float]] = {}
        for layer in layers:
            stays = found.stays[layer, slot].float()
            if slot == "head":
                rows |= {f"{layer}.{n}": head for n, head in enumerate(stays.T.tolist())}
            else:
                rows[f"{layer}"] = stays.mean(-1).tolist()
        if len({share for shares in rows.values() for share in shares}) > 1:
            panels.append(heat(TITLES.get(slot, slot), rows, columns))
    return panels


def heat(title: str, rows: Mapping[str, list[float]], columns: list[str]) -> Heat:
    """rows: by name, a share for each column."""
    cells = [
        Cell(name, column, share, f"{100 * share:.0f} % stay")
        for name, shares in rows.items()
        for column, share in zip(columns, shares, strict=True)
    ]
    return Heat(title, list(rows), columns, cells, KEPT, low_is_bad=True, numbers=False)


def shown(text: str) -> str:
    """A token as a name: what cannot be seen has a sign."""
    seen = text.replace("\n", "\u23ce").replace(" ", "\u00b7")
    return seen if len(seen) <= LONGEST else f"{seen[: LONGEST - 1]}\u2026"


def in_twos(panels: list[Heat]) -> list[list[Panel | None]]:
    return [[*panels[n : n + 2]] for n in range(0, len(panels), 2)]
