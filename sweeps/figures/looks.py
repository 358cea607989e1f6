"""The colour, mark and dash of a name, the same in all figures."""

import re
from collections.abc import Iterable
from typing import NamedTuple
from zlib import crc32

# Okabe and Ito's colours, for any kind of colour vision; without their yellow, too pale for a line
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B4E16")
INK, PALE, GREY, NO_CELL = "#333333", "#DDDDDD", "#808080", "#D5D5D5"
# of matplotlib, and of plotly: 13, so that no two of 91 names have both colour and mark
MARKERS = ("o", "s", "D", "v", "X", "p", "h", "^", "P", "<", ">", "d", "*")
SYMBOLS = (
    *("circle", "square", "diamond", "triangle-down", "x", "pentagon", "hexagon", "triangle-up", "cross"),
    *("triangle-left", "triangle-right", "diamond-tall", "star"),
)
DASHES = ("-", "--", ":", "-.")
PAGE_DASHES = ("solid", "dash", "dot", "dashdot")
N_LOOKS = len(COLOURS) * len(MARKERS)

# Names that figures share, each with its place among the looks. Those that stand together often come first.
SCORERS = (
    *("static", "unified", "few_taps", "layerwise", "teal", "cats", "unified_paper", "layerwise_paper"),
    *("dejavu", "prompt_activation", "ridge", "svd", "linear_heads", "unified_sequence"),
    *("unified_paper_global", "wina", "scap", "r_sparse", "larosa", "chess", "svdp", "d_countdown"),
    *("m_countdown", "teal_two_step", "two_step_head", "sparse_infer", "flap", "wanda_sp", "cfsp"),
    *("magnitude", "ftp"),
)
CRITERIA = (
    *("l2_deviation", "l2_norm", "plainact", "fisher", "snip", "grad_norm", "grasp", "griffin", "nwot"),
    *("l2_norm_pre", "plainact_weight", "grad_norm_weight", "jacov", "removal", "epenas"),
)
TASKS = ("mean", "geometric_mean", "arc_easy", "arc_challenge", "boolq", "copa", "openbookqa", "piqa", "rte")
PLACES = {name: place for names in (SCORERS, CRITERIA, TASKS) for place, name in enumerate(names)}
BOUNDS = {"random": GREY, "oracle": INK}  # what every other must beat, and what none can be expected to
KNOWN = frozenset({*PLACES, *BOUNDS})


class Look(NamedTuple):
    """dash, marker: numbers in the tuples above."""

    colour: str
    marker: int
    dash: int


def looks_of(names: Iterable[str]) -> dict[str, Look]:
    """Of the lines of a figure. What stands before a comma or a space gives colour and mark.

    Lines that have this in common differ in their dash. A name that is not known here has the look that its
    letters give, or the next one that no other line has.
    """
    looks: dict[str, Look] = {}
    variants: dict[str, int] = {}
    for name in sorted(dict.fromkeys(names), key=lambda name: first_word(name) not in PLACES):
        word = first_word(name)
        variant = variants.setdefault(word, 0)
        variants[word] += 1
        looks[name] = look(word, variant, set(looks.values()))
    return looks


def first_word(label: str) -> str:
    return re.split("[ ,/]", label, maxsplit=1)[0]


def look(word: str, variant: int, taken: set[Look]) -> Look:
    dash = variant % len(DASHES)
    if word in BOUNDS:
        return Look(BOUNDS[word], (4 if word == "random" else 0) + variant // len(DASHES), dash)
    known = PLACES.get(word)
    place = crc32(word.encode()) % N_LOOKS if known is None else known
    place += variant // len(DASHES) * len(COLOURS)  # its colour again, with another mark
    if known is None:
        used = {one.colour for one in taken}
        free = [n for n in range(place, place + len(COLOURS)) if COLOURS[n % len(COLOURS)] not in used]
        place = next(iter(free), place)
    while (found := Look(COLOURS[place % len(COLOURS)], place % len(MARKERS), dash)) in taken:
        place += len(COLOURS)
    return found
