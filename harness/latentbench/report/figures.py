"""Plots of a steering report, drawn by plotly and written as parts of one offline page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from latentbench.core.spec_model import Json

HEIGHT = 340
_COLOURS = ("#0b6b5d", "#c2701d", "#5b6ee1", "#a12a7a", "#7a8b1f", "#444444")
_SYMBOLS = ("circle", "diamond", "square")
_ABOVE = {"orientation": "h", "y": 1.12}


def library() -> str:
    """plotly's JavaScript, once per page."""
    return str(get_plotlyjs())


def shown(text: Json) -> str:
    """A label that stays text: plotly reads some HTML in labels. Spaces at the ends are made visible."""
    marked = str(text).replace("\n", "⏎")
    if marked != marked.strip(" "):
        marked = (
            "·" * (len(marked) - len(marked.lstrip(" ")))
            + marked.strip(" ")
            + "·" * (len(marked) - len(marked.rstrip(" "))) * bool(marked.strip(" "))
        )
    return html.escape(marked)


def lines(curves: Mapping[str, tuple[Sequence[Json], Sequence[Json]]], x: str, y: str, markers: bool = False) -> Markup:
    """Curves by name, each as (x, y); None leaves a gap."""
    figure = go.Figure()
    for number, (name, (xs, ys)) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        mode = "lines+markers" if markers or len(xs) < 12 else "lines"
        figure.add_scatter(x=list(xs), y=list(ys), name=shown(name), mode=mode, line={"color": colour})
    return _part(figure, x, y)


def bars(
    values: Mapping[str, float | None], y: str, intervals: Mapping[str, tuple[float, float]] | None = None
) -> Markup:
    """One bar per name, with intervals where they are known."""
    known = {name: value for name, value in values.items() if value is not None}
    spans = [(intervals or {}).get(name) for name in known]
    above = [span[1] - value if span else 0 for span, value in zip(spans, known.values(), strict=True)]
    below = [value - span[0] if span else 0 for span, value in zip(spans, known.values(), strict=True)]
    errors = {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "visible": any(spans)}
    figure = go.Figure()
    names = [shown(name) for name in known]
    figure.add_bar(x=names, y=list(known.values()), error_y=errors, marker_color=_COLOURS[0])
    figure.update_xaxes(type="category")
    return _part(figure, "", y)


def points(places: Mapping[str, tuple[float, float]], x: str, y: str) -> Markup:
    """One labelled point per name, each as (x, y)."""
    figure = go.Figure()
    for number, (name, (across, up)) in enumerate(places.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        marker = {"color": colour, "size": 11, "symbol": _SYMBOLS[number // len(_COLOURS) % len(_SYMBOLS)]}
        figure.add_scatter(x=[across], y=[up], name=shown(name), mode="markers", marker=marker)
    return _part(figure, x, y, {"x": 1.02, "y": 1})


def boxes(groups: Mapping[str, tuple[Sequence[str], Sequence[float]]], y: str) -> Markup:
    """Box plots side by side: group to (category of each value, values)."""
    figure = go.Figure()
    for number, (name, (categories, values)) in enumerate(groups.items()):
        labels = [shown(category) for category in categories]
        figure.add_box(x=labels, y=list(values), name=shown(name), marker_color=_COLOURS[number], boxpoints="outliers")
    figure.update_layout(boxmode="group")
    figure.update_xaxes(type="category")
    return _part(figure, "", y)


def heatmap(values: Sequence[Sequence[float | None]], x: str, y: str, labels: Sequence[Json] | None = None) -> Markup:
    """Rows of numbers; `labels` name rows and columns alike."""
    rows = [str(label) for label in labels or range(len(values))]
    columns = [str(label) for label in labels or range(max(map(len, values), default=0))]
    figure = go.Figure(go.Heatmap(z=[list(row) for row in values], x=columns, y=rows, colorscale="Teal"))
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category")
    return _part(figure, x, y)


def _part(figure: go.Figure, x: str, y: str, legend: Mapping[str, Json] = MappingProxyType(_ABOVE)) -> Markup:
    figure.update_layout(
        height=HEIGHT,
        margin={"l": 60, "r": 20, "t": 16, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "color": "#8a867e"},
        legend=dict(legend),
    )
    figure.update_xaxes(
        title=x, automargin=True, gridcolor="rgba(128,128,128,0.18)", zerolinecolor="rgba(128,128,128,0.35)"
    )
    figure.update_yaxes(title=y, gridcolor="rgba(128,128,128,0.18)", zerolinecolor="rgba(128,128,128,0.35)")
    # Drawn by the page's own script once its layout is known; `<` could end the element.
    data = str(figure.to_json()).replace("<", "\\u003c")
    return Markup(f'<div class="plot"><script type="application/json">{data}</script></div>')
