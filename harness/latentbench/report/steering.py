"""One offline page per steered cell: the verdict first, then texts, vectors, cost, curves and mechanism, receipts at the end.

Everything comes from the record, those it is compared with, and what its studies left in the store; neither the model nor the
network is needed. What a metric of another package wants seen it says itself (`Metric.panels`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from latentbench.core.errors import InvalidInput
from latentbench.core.protocols import model_name
from latentbench.leaderboard.row_details import page_path
from latentbench.records.record import Record
from latentbench.report import figures, texts_panel
from latentbench.report import mechanism_panels as mechanism
from latentbench.report import steering_panels as parts
from latentbench.report.contributed_panels import contributed
from latentbench.report.steered_cell import Panel, SteeredCell
from latentbench.report.tables import number, paragraph, table
from latentbench.report.verdict_text import verdict
from latentbench.spec.project import Project
from latentbench.store.files import write_bytes
from latentbench.store.store import Store


def page(record: Record, project: Project) -> str:
    """The page. Raises InvalidInput for a cell that is not steered."""
    if "subject" not in record.keys or not record.resolved.get("steering"):
        raise InvalidInput(f"{record.spec.name} does not steer; `report steering` is for cells with `steering:`")
    cell = SteeredCell(record, Store(project.store), project.results)
    panels = [panel for make in _PANELS for panel in make(cell)]
    folder = files("latentbench.leaderboard.render"), files("latentbench.report")
    environment = Environment(autoescape=True)
    environment.filters["paragraph"] = paragraph
    return environment.from_string(folder[1].joinpath("steering.html").read_text("utf-8")).render(
        title=record.spec.name + (f" [{record.label}]" if record.label else ""),
        seed=record.seed,
        facts=_facts(record),
        verdict=verdict(cell),
        panels=panels,
        numbers=_numbers(record),
        style=Markup(folder[0].joinpath("style.css").read_text("utf-8")),
        plotly=Markup(figures.library()),
    )


def write(record: Record, project: Project) -> Path:
    """Writes the page of a cell where the leaderboard beside it finds it. Raises InvalidInput and StoreError."""
    target = page_path(project.results, record.cell, "steering")
    write_bytes(target, page(record, project).encode())
    return target


def _facts(record: Record) -> dict[str, str]:
    steering = record.resolved["steering"]
    names = ("method", "layers", "place", "scale", "dose", "relative", "scope", "positions", "keep_norm")
    return {
        "model": model_name(record.resolved["model"]),
        **{name: str(steering[name]) for name in names if name in steering},
        "cell": record.cell[:16],
        "made": record.created,
    }


def _numbers(record: Record) -> Markup:
    rows = []
    for value in record.metrics:
        params = "".join(f" · {name}={said}" for name, said in value.params.items())
        span = f"{number(value.ci.low)} to {number(value.ci.high)}" if value.ci else "–"
        shown = value.null_reason or "–" if value.value is None else number(value.value)
        rows.append((value.id + params, value.domain or "–", shown, span, "–" if value.n is None else f"{value.n:,}"))
    found = table("All numbers", ("number", "domain", "value", "95 % interval", "n"), rows)
    return Markup("<details><summary>{} numbers of the record</summary>{}</details>").format(len(rows), found)


_PANELS: tuple[Callable[[SteeredCell], Iterator[Panel]], ...] = (
    texts_panel.texts,
    texts_panel.answers,
    parts.vectors,
    parts.frontier,
    parts.accuracy,
    contributed,
    parts.training,
    mechanism.shift,
    mechanism.movement,
    mechanism.paths,
    mechanism.pairs,
    parts.receipts,
)
