"""Tables and texts of a steering page; what comes from elsewhere stays text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from latentbench.core.spec_model import Json
from latentbench.report import figures

Cell = str | Markup
"""What stands in a table: text, or HTML that is marked as such."""


def table(name: str, head: Sequence[str], rows: Iterable[Sequence[Cell]], kind: str = "stack") -> Markup:
    """A table that a phone shows row by row, each cell under its heading; of kind `plain` it is scrolled there instead.

    `name` is what screen readers call it.
    """
    heads = "".join(f'<th scope="col">{_text(title)}</th>' for title in head)
    body = "".join(f"<tr>{_row(head, row)}</tr>" for row in rows)
    inner = f'<table class="{kind}"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
    return Markup(f'<div class="wide" tabindex="0" role="region" aria-label="{_text(name)}">{inner}</div>')


def _row(head: Sequence[str], row: Sequence[Cell]) -> str:
    # One element in each cell, so that a phone can put the heading beside all of it.
    cells = [f' data-head="{_text(title)}"><div>{_text(cell)}</div>' for title, cell in zip(head, row, strict=True)]
    return f'<th scope="row"{cells[0]}</th>' + "".join(f"<td{cell}</td>" for cell in cells[1:])


def _text(text: Json) -> str:
    return str(Markup.escape(text))


def paragraph(text: str, kind: str = "") -> Markup:
    """A paragraph; what stands in backticks is code."""
    opening = f'<p class="{kind}">' if kind else "<p>"
    return Markup(_CODE.sub(r"<code>\1</code>", f"{opening}{_text(text)}</p>"))


_CODE = re.compile(r"`([^`]+)`")


def written(text: str) -> Markup:
    """Text that a model read or wrote, with its line breaks."""
    # A browser drops a line break right behind the opening tag, which may be the text's own.
    return Markup("<pre>\n{}</pre>").format(text)


def tokens(found: Sequence[Json], most: int = 12) -> Markup:
    """Tokens with their cosines."""
    shown = (f"<code>{figures.shown(t['token'])}</code>&nbsp;{t['cosine']:.2f}" for t in found[:most])
    return Markup(" ".join(shown))


def visible_token(token: Json) -> str:
    """A token in a sentence, its spaces visible; the template escapes it."""
    return str(token).replace(" ", "·").replace("\n", "⏎")


def number(value: float | None) -> str:
    """Four significant digits; a dash for what is not known."""
    return "–" if value is None else f"{value:.4g}".replace("-", "−")


def amount(value: float, unit: str, sign: str = "+") -> str:
    """A difference with its unit, shares in points; `sign` as in format specifications."""
    return f"{bare(value, unit, sign)} {'points' if unit == 'fraction' else unit}"


def bare(value: float, unit: str, sign: str = "-") -> str:
    """A difference without its unit; `sign` as in format specifications."""
    shown = f"{100 * value:{sign}.1f}" if unit == "fraction" else f"{value:{sign}.3g}"
    return shown.replace("-", "−")


def level(value: float, unit: str) -> str:
    """A number that is no difference: shares in per cent."""
    return f"{100 * value:.1f} %" if unit == "fraction" else f"{bare(value, unit)} {unit}"
