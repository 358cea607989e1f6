"""The page of a report needs nothing but itself, and a browser draws its curves."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from run_records import only_section, write_job, write_report
from shadow.sweeps.figures.interactive import traces

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# as a reader's mouse does
POINT_AT = "<script>Plotly.Fx.hover('figure-0', [{curveNumber: 0, pointNumber: 1}], 'xy')</script>"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    for n, (scorer, level) in enumerate(
        [("static", 0), ("static", 0.3), ("static", 0.5), ("<b>odd</b>", 0.3)]
    ):
        write_job(tmp_path / str(n), level, scorer)
    return write_report(tmp_path).page


def dom(page: Path, folder: Path) -> str:
    """What a headless browser without a network makes of the page."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no browser on this machine: apt-get install chromium")
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    no_network = "--proxy-server=http://127.0.0.1:9"
    more = [
        f"--user-data-dir={folder / 'profile'}",
        "--disable-gpu",
        no_network,
        "--virtual-time-budget=5000",
    ]
    done = subprocess.run(
        [browser, "--headless", *root, *more, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_browser_draws_every_curve_and_names_the_point_under_the_mouse(page: Path, tmp_path: Path) -> None:
    page.write_text(page.read_text().replace("</body>", f"{POINT_AT}</body>"))
    seen = dom(page, tmp_path)
    assert seen.count('class="trace scatter') == 6  # two scorers and dense, for accuracy and perplexity
    shown = re.findall(r'<g class="hoverlayer">.*?</g></g>', seen)
    assert shown
    assert "nominal level 0.5" in shown[0]
    assert "seed 1234" in shown[0]


def test_a_page_asks_for_nothing_from_elsewhere(page: Path) -> None:
    text = page.read_text()
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?(?!data:)", text)
    assert text.count('id="figure-0"') == 1
    assert "measure.windows = 32" in text  # the settings
    assert "<td>static</td>" in text  # the table


def test_a_name_from_a_record_is_text_not_markup(page: Path) -> None:
    assert "<b>odd</b>" not in page.read_text()


def test_a_page_has_every_number_of_the_curves(tmp_path: Path) -> None:
    for n, level in enumerate((0, 0.3, 0.5)):
        write_job(tmp_path / str(n), level)
    accuracy, dense, perplexity, _ = traces(only_section(tmp_path).figure.rows)
    assert accuracy["x"] == pytest.approx([0.225, 0.375])  # weight bytes not read
    assert accuracy["y"] == pytest.approx([0.65, 0.55])
    assert dense["y"] == [0.8, 0.8]
    assert perplexity["text"][0].startswith("perplexity 135.0 ± 3.0<br>weight bytes not read 22.5 %")
    assert perplexity["text"][0].endswith("nats over dense +0.300")
