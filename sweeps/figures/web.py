"""From a figure's panels to HTML, to point at: a drawing for each panel, which find their own rows."""

import html
from collections.abc import Sequence

from .panels import Figure, Heat, Panel, Plot, looks_in
from .shades import shades_of
from .web_heat import bar, heat
from .web_keys import keys
from .web_plot import Drawing, drawing

WIDEST = 4  # panels side by side, where the figure has a place for each
STYLE = """
.figure { margin: 1em 0; }
.panels { display: grid; gap: 1.2em 1em; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); }
.panels.one { max-width: 860px; }
.panel h4 { margin: 0; text-align: center; font-size: 13px; font-weight: 600; overflow-wrap: anywhere; }
.keys { display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 0 0 .8em; }
.key { border: 0; background: none; padding: 2px 0; font: 13px system-ui, sans-serif; color: inherit; }
.key { display: inline-flex; align-items: center; gap: 5px; cursor: pointer; text-align: left; }
.key.off { opacity: .35; }
.shades { display: flex; align-items: center; gap: 8px; font-size: 13px; margin: 0 0 .8em; flex-wrap: wrap; }
.bar { width: 220px; }
.bar div { height: 12px; }
.bar span { display: flex; justify-content: space-between; font-size: 12px; }
.bar b { font-weight: 400; }
@media (max-width: 760px) { .panels { grid-template-columns: minmax(0, 1fr); } .none { display: none; } }
"""
# a click on a name hides its lines in all panels of the figure
SCRIPT = """
document.querySelectorAll('.figure').forEach(figure => figure.querySelectorAll('.key').forEach(key => {
  key.onclick = () => {
    const visible = !key.classList.toggle('off');
    figure.querySelectorAll('.js-plotly-plot').forEach(plot => {
      const of = plot.data.flatMap((trace, n) => trace.legendgroup === key.dataset.name ? [n] : []);
      if (of.length) Plotly.restyle(plot, {visible}, of);
    });
  };
}));
"""


def to_html(figure: Figure, name: str) -> str:
    """name: that elements of the page begin with."""
    panels = figure.panels
    n_columns = max(map(len, [*figure.rows, *figure.on_page]))
    placed = [one for row in [*figure.rows, *figure.on_page] for one in padded(row, n_columns)]
    if n_columns > WIDEST:
        placed, n_columns = [panel for panel in placed if panel], WIDEST - 1
    bars = [bar(unit, shades) for unit, shades in shades_of(heats_in(panels)).items()]
    parts = [
        part(panel, f"{name}-{n}", drawn)
        for n, (panel, drawn) in enumerate(zip(placed, drawn_panels(figure, placed)))
    ]
    one = " one" if len(panels) == 1 else ""
    inside = f'<div class="panels{one}" style="--columns: {n_columns}">{"".join(parts)}</div>'
    return f'<div class="figure" id="{name}">{keys(panels)}{"".join(bars)}{inside}</div>'


def padded(row: Sequence[Panel | None], n_columns: int) -> list[Panel | None]:
    return [*row, *[None] * (n_columns - len(row))]


def heats_in(panels: Sequence[Panel]) -> list[Heat]:
    return [panel for panel in panels if isinstance(panel, Heat)]


def drawn_panels(figure: Figure, placed: Sequence[Panel | None]) -> list[Drawing | None]:
    looks, shades = looks_in(figure.panels), shades_of(heats_in(figure.panels))
    plots = [panel for panel in placed if isinstance(panel, Plot)]
    found: list[Drawing | None] = []
    for panel in placed:
        if isinstance(panel, Plot):
            found.append(drawing(panel, looks, plots if figure.shared else [panel]))
        else:
            found.append(heat(panel, shades[panel.unit]) if panel else None)
    return found


def part(panel: Panel | None, name: str, drawn: Drawing | None) -> str:
    from plotly.io import to_html as written  # takes a second

    if panel is None or drawn is None:
        return '<div class="none"></div>'
    config = {"displaylogo": False, "responsive": True}
    plot = written(drawn, config, include_plotlyjs=False, full_html=False, div_id=name, validate=False)
    margin = drawn["layout"]["margin"]  # the title is over what is drawn, not over the numbers beside it
    inside = f"padding: 0 {margin['r']}px 0 {margin['l']}px"
    return f'<section class="panel"><h4 style="{inside}">{html.escape(panel.title)}</h4>{plot}</section>'
