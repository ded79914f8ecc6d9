"""The leaderboard as LaTeX: one booktabs table per group, for a paper."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from latentbench.core.text import visible
from latentbench.leaderboard.board import BEYOND, Board, Column, Row, RowGroup
from latentbench.leaderboard.render.text import BEYOND_LEGEND, chosen_columns, decimals_of, number, spread

_SPECIAL = re.compile(r"[\\{}$&#^_%~<>|\"]")
_ESCAPES = {
    "\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
}  # fmt: skip
HEADER = r"""% Needs \usepackage{booktabs}. Written by latentbench.
% Bold is the best of its column, $\approx$ what cannot be told from it (Holm-adjusted over all pairs, 5 %);
% $\pm$ is half the width of the 95 % interval over the units named in the caption."""


def page(board: Board, columns: Sequence[str] | None = None) -> str:
    """All groups; the same records give the same bytes."""
    marked = any(group.beyond(chosen_columns(group, columns)) for group in board.groups)
    header = f"{HEADER}\n% {escaped(BEYOND_LEGEND)}" if marked else HEADER
    return "\n\n".join([header, *(_table(group, chosen_columns(group, columns)) for group in board.groups)]) + "\n"


def escaped(text: str) -> str:
    """Text from a record that LaTeX sets as it stands."""
    shown = _SPECIAL.sub(lambda found: _ESCAPES.get(found[0], "\\" + found[0]), visible(text).replace("\n", " "))
    return (
        shown.replace("±", r"$\pm$")
        .replace("≈", r"$\approx$")
        .replace("–", "--")
        .replace("·", r"$\cdot$")
        .replace(BEYOND, r"$^\dagger$")
    )


def _table(group: RowGroup, columns: Sequence[Column]) -> str:
    units = "; ".join(f"{domain}: {counted}" for domain, counted in group.counts.items())
    caption = escaped(f"{group.title}. {units}" if units else group.title)
    heads = _heads(group, columns)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{caption}.}}",
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
    ]
    body = [" & ".join(_cells(group, row, columns)) + r" \\" for row in group.rows]
    return "\n".join([*lines, *heads, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def _heads(group: RowGroup, columns: Sequence[Column]) -> Iterator[str]:
    domains: list[tuple[str, int]] = []
    for column in columns:
        name = column.domain or ""
        same = domains and domains[-1][0] == name
        domains[-1:] = [(name, domains[-1][1] + 1)] if same else [*domains[-1:], (name, 1)]
    if any(name for name, _ in domains):
        yield " & ".join(["", *(rf"\multicolumn{{{n}}}{{c}}{{{escaped(name)}}}" for name, n in domains)]) + r" \\"
    yield " & ".join(["", *(escaped(group.heading(column)) for column in columns)]) + r" \\"


def _cells(group: RowGroup, row: Row, columns: Sequence[Column]) -> Iterator[str]:
    partial = "" if row.complete and row.measured else r"\textsuperscript{*}"
    yield escaped(f"{row.spec} {row.label}".rstrip()) + partial
    for column in columns:
        value = row.values.get(column.key)
        if value is None or value.value is None:
            yield "--"
            continue
        places = decimals_of(group, column)
        standing, shown = group.verdict(row, column).standing, number(value.value, column.unit, places)
        shown += escaped(value.mark)
        shown = rf"\textbf{{{shown}}}" if standing == "best" else rf"$\approx$ {shown}" if standing == "tied" else shown
        directed = column.higher_is_better is not None and value.low is not None and value.high is not None
        half = escaped(spread((value.high - value.low) / 2, column.unit, places)) if directed else ""  # type: ignore[operator]
        yield shown + (rf" {{\scriptsize $\pm$ {half}}}" if half else "")
