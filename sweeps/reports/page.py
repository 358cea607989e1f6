"""From a Markdown report and its figures to one HTML file that needs nothing else."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererProtocol
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from ..figures.panels import Figure
from ..figures.web import SCRIPT, to_html
from ..figures.web import STYLE as FIGURES
from ..files import writing

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #333; }
body { max-width: 1200px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 13px; margin: 1em 0; }
th, td { border: 1px solid #ddd; padding: 3px 8px; text-align: left; font-variant-numeric: tabular-nums; }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto; font-size: 12px; }
img { max-width: 100%; }
"""


def write_page(report: Path, figures: Mapping[str, Figure], file: Path) -> None:
    """figures: by the name of an image in the report, what takes its place; other images are embedded."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")

    def image(
        renderer: RendererProtocol,
        tokens: Sequence[Token],
        index: int,
        options: OptionsDict,
        env: EnvType,
    ) -> str:
        source = unquote(str(tokens[index].attrs["src"]))
        figure = figures.get(source)
        if figure:
            return to_html(figure, f"figure-{list(figures).index(source)}")
        if Path(source).name != source or not source.endswith(".png"):  # a name that looks like an image
            return html.escape(f"![{tokens[index].content}]({source})")
        content = base64.b64encode((report.parent / source).read_bytes()).decode()
        return f'<img alt="{html.escape(tokens[index].content)}" src="data:image/png;base64,{content}">'

    markdown.add_render_rule("image", image)
    body = markdown.render(report.read_text(encoding="utf-8"))
    title = report.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
    with writing(file) as unfinished:
        unfinished.write_text(document(title, body, bool(figures)), encoding="utf-8")


def document(title: str, body: str, has_figures: bool, style: str = "") -> str:
    """A whole page; its figures come from `to_html`."""
    from plotly.offline import get_plotlyjs  # 5 MB

    wide = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    styles = f"<style>{STYLE}{FIGURES}{style}</style>"
    library = f"<script>{get_plotlyjs()}</script>" if has_figures else ""
    head = f'<meta charset="utf-8">{wide}<title>{html.escape(title)}</title>{styles}{library}'
    inside = f"<head>{head}</head>\n<body>\n{body}<script>{SCRIPT}</script></body>"
    return f'<!DOCTYPE html>\n<html lang="en">{inside}</html>\n'
