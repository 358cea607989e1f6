"""The page of a report needs nothing but itself, and a browser draws on it what the PNG shows."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from matplotlib.image import imread
from run_records import only_section, write_job, write_report
from shadow.sweeps.figures.panels import Axis, Figure, Line, Plot, Spot, looks_in
from shadow.sweeps.figures.png import draw
from shadow.sweeps.figures.web import drawn_panels

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = (1280, 420)
SHOTS = Path(__file__).parents[1] / "screenshots"  # taken anew with SHADOW_SHOTS=new, and looked at
BLOCK = 10  # pixels that are averaged
DARKER, DIFFERENT = 0.12, 0.003  # how far a block may differ, and how many of them may


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Without a network."""
    driver = pytest.importorskip("playwright.sync_api", reason="pip install -e .[pages]")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no browser on this machine: apt-get install chromium")
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with driver.sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=found, args=[*root, "--proxy-server=http://127.0.0.1:9"]
        )
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curve")
    write_job(folder / "dense", 0, "static")
    for n, (scorer, level, perplexity) in enumerate(
        [
            ("static", 0.3, 300),
            ("static", 0.5, 9e3),
            ("<b>odd</b>", 0.3, 200),
            ("teal", 0.3, 101),
            ("teal", 0.5, 140),
        ]
    ):
        accuracy = 0.9 - 0.05 * n
        metrics = {"perplexity": (perplexity, perplexity / 20), "choices/acc": (accuracy, 0.05)}
        write_job(folder / str(n), level, scorer, metrics=metrics)
    return write_report(folder).page


@pytest.fixture(scope="module")
def heats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    for level in (0, 0.5):
        for n, scorer in enumerate(["static", "unified"]):
            for m, criterion in enumerate(["l2_norm", "fisher", "snip"]):
                loss = {"perplexity": [4 + level * (1 + n + m / 2)] * 2}
                place = folder / f"{level}-{n}-{m}"
                write_job(place, level, scorer, samples=loss, criterion=criterion)
    return write_report(folder, "grid").page


# what a reader reads, of which nothing may lie on something else or outside the page
TEXTS = """[...document.querySelectorAll('.figure text, .figure h4, .figure button')]
    .filter(one => one.textContent.trim() && !one.closest('.modebar-container'))
    .map(one => { const at = one.getBoundingClientRect();
                  return [one.textContent, at.left, at.top, at.right, at.bottom]; })"""
DRAWN = """[...document.querySelectorAll('.panel')].every(panel =>
    Math.abs(panel.querySelector('svg.main-svg').getBoundingClientRect().width - panel.clientWidth) < 2)"""
CENTRES = """[...document.querySelectorAll('.panel')].map(panel => {
    const range = document.createRange(); range.selectNodeContents(panel.querySelector('h4'));
    const middle = box => (box.left + box.right) / 2;
    const plot = panel.querySelector('.bg').getBoundingClientRect();
    return middle(range.getBoundingClientRect()) - middle(plot); })"""


@pytest.mark.parametrize("which", ["page", "heats"])
def test_a_page_has_nothing_overprinted_and_looks_as_it_did_when_somebody_looked_at_it(
    request: pytest.FixtureRequest, browser: "Browser", tmp_path: Path, which: str
) -> None:
    """One page at both widths; pictures are compared block by block, as browsers differ in letters."""
    seen = browser.new_page()
    seen.set_default_timeout(0)  # a busy machine takes its time
    seen.goto(request.getfixturevalue(which).as_uri())
    for width in WIDTHS:
        seen.set_viewport_size({"width": width, "height": 1400})
        seen.wait_for_function(DRAWN)
        texts = seen.evaluate(TEXTS)
        assert len(texts) > 10
        assert not [(a[0], b[0]) for n, a in enumerate(texts) for b in texts[:n] if overlap(a, b)]
        assert not [text for text, left, _, right, _ in texts if left < 0 or right > width]
        assert seen.evaluate("document.documentElement.scrollWidth") <= width
        assert [off for off in seen.evaluate(CENTRES) if abs(off) > 1] == []
        known, taken = SHOTS / f"{which}-{width}.png", tmp_path / f"{width}.png"
        seen.locator(".figure").screenshot(path=taken, animations="disabled")
        if os.environ.get("SHADOW_SHOTS") == "new":
            shutil.copy(taken, known)
        then, now = blocks(known), blocks(taken)
        assert then.shape == now.shape
        share = (np.abs(then - now).max(-1) > DARKER).mean()
        assert share <= DIFFERENT, f"{share:.1%} of {taken} is not as in {known}"
    if which == "page":
        seen.evaluate("Plotly.Fx.hover('figure-0-1', [{curveNumber: 3, pointNumber: 2}], 'xy')")
        shown = seen.locator("#figure-0-1 g.hovertext").text_content() or ""
        assert re.search("static.*nominal level 0.5", shown)
        before = seen.locator("g.trace.scatter").count()
        seen.get_by_role("button", name="teal").click()  # hides it in both panels
        seen.wait_for_function(f"document.querySelectorAll('g.trace.scatter').length === {before - 2}")
    seen.close()


def overlap(one: list, other: list) -> bool:
    """By more than a pixel, which is air above a letter."""
    return all(min(one[n + 2], other[n + 2]) - max(one[n], other[n]) > 1 for n in (1, 2))


def blocks(file: Path) -> np.ndarray:
    """[H, W, 3] of a PNG -> [h, w, 3], the means of squares of BLOCK pixels."""
    pixels = imread(file)[..., :3]
    h, w = (size // BLOCK for size in pixels.shape[:2])
    return pixels[: h * BLOCK, : w * BLOCK].reshape(h, BLOCK, w, BLOCK, 3).mean((1, 3))


def test_a_page_asks_for_nothing_from_elsewhere(page: Path) -> None:
    text = page.read_text()
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?(?!data:)", text)
    assert text.count('id="figure-0"') == 1
    assert "measure.windows = 32" in text  # the settings
    assert "<td>static</td>" in text  # the table
    assert "<b>odd</b>" not in text  # a name is text, not markup


def test_the_page_and_the_png_have_the_same_axes_lines_bands_and_arrows(page: Path) -> None:
    figure = only_section(page.parent).figure
    drawing = draw(figure)
    assert drawing is not None
    axes = [ax for ax in drawing.axes if ax.get_visible()]
    for ax, drawn in zip(axes, drawn_panels(figure, figure.panels), strict=True):
        assert drawn is not None
        layout = drawn["layout"]
        for name, of_png in (("xaxis", ax.xaxis), ("yaxis", ax.yaxis)):
            assert layout[name]["tickvals"] == pytest.approx(list(of_png.get_majorticklocs()))
            assert layout[name]["ticktext"] == [text.get_text() for text in of_png.get_majorticklabels()]
            low, high = of_png.get_view_interval()
            ends = [10**end if layout[name]["type"] == "log" else end for end in layout[name]["range"]]
            assert ends == pytest.approx([low, high])
        assert layout["xaxis"]["title"]["text"] == ax.get_xlabel()
        colours = {trace["line"]["color"] for trace in drawn["data"] if "line" in trace}
        assert colours == {line.get_color() for line in ax.lines if line.get_linestyle() != "None"} | {
            "#333333"
        }
        assert len(layout["shapes"]) == 1  # the band of the dense model
        arrows = [
            one["x"][0] for one in drawn["data"] if one.get("marker", {}).get("symbol") == "triangle-up"
        ]
        of_png = [
            line.get_xdata()[0] for line in ax.lines if line.get_marker() == "^" and not line.get_clip_on()
        ]
        assert arrows == pytest.approx(of_png)
        assert len(arrows) == (ax is axes[1])


def test_ticks_are_numbers_that_people_read() -> None:
    def ticks(scale: str, values: list[float]) -> list[str]:
        spots = [Spot(n, value) for n, value in enumerate(values)]
        plot = Plot("", Axis("x"), Axis("y", scale), [Line("a", spots)])
        (drawn,) = drawn_panels(Figure("", [[plot]]), [plot])
        return drawn["layout"]["yaxis"]["ticktext"] if drawn else []

    assert ticks("log", [40, 700]) == ["50", "100", "200", "500"]
    assert ticks("log", [10.1, 12.2]) == ["10.5", "11", "11.5", "12"]
    assert ticks("log", [10.1, 11.1]) == ["10.2", "10.4", "10.6", "10.8", "11"]  # and no number twice
    assert ticks("log", [3, 4e5]) == ["10", "100", "1,000", "10,000", "100,000"]
    assert ticks("nats", [-0.02, 0.5]) == ["-0.01", "0", "0.01", "0.03", "0.1", "0.3"]
    assert ticks("percent", [0.31, 0.38]) == ["32 %", "34 %", "36 %", "38 %"]


def test_a_scorer_looks_the_same_whatever_stands_beside_it() -> None:
    def looks(*names: str) -> dict:
        return looks_in([Plot("", Axis("x"), Axis("y"), [Line(name, []) for name in names])])

    alone = looks("teal")
    many = looks("mine", "static", "random", "teal", "teal, block", "few_taps, threshold")
    assert many["teal"] == alone["teal"]
    assert (many["teal, block"].colour, many["teal, block"].marker) == many["teal"][:2]
    assert len(set(many.values())) == 6
    assert looks("few_taps")["few_taps"][:2] == many["few_taps, threshold"][:2]


def test_a_page_has_every_number_of_the_curves(tmp_path: Path) -> None:
    for n, level in enumerate((0, 0.3, 0.5)):
        write_job(tmp_path / str(n), level)
    section = only_section(tmp_path)
    (_, accuracy), (dense, perplexity) = (
        one["data"] for one in drawn_panels(section.figure, section.figure.panels)
    )
    assert accuracy["x"] == pytest.approx([0, 0.225, 0.375])  # weight bytes not read; from the dense model on
    assert accuracy["y"] == pytest.approx([0.8, 0.65, 0.55])
    assert dense["y"] == [100, 100]
    assert perplexity["text"][1].startswith("perplexity 135.0 ± 3.0<br>weight bytes not read 22.5 %")
    assert perplexity["text"][1].endswith("nats over dense +0.300")
    assert section.answer == "At 30 % of the weight bytes unread unified loses 0.40 nats."


def test_an_answer_says_nothing_of_a_line_from_dense_to_the_first_point(tmp_path: Path) -> None:
    for scorer, levels in {"static": (0, 0.3, 0.5), "teal": (0.3, 0.5), "late": (0.5,)}.items():
        for level in levels:
            write_job(tmp_path / f"{scorer}{level}", level, scorer)
    assert "late" not in only_section(tmp_path).answer
    assert "teal" in only_section(tmp_path).answer
