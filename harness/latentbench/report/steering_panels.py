"""The panels of a steering page about what the cell is, gains and costs: vectors, frontier, curves, texts, receipts."""

from __future__ import annotations

from collections.abc import Iterator

from latentbench.core.spec_model import Json
from latentbench.report import figures
from latentbench.report.frontier import accuracies, accuracy_against_cost
from latentbench.report.steered_cell import LayerVector, Panel, SteeredCell
from latentbench.report.tables import number, table, tokens

BASE = "reasoning_accuracy.base"


def vectors(cell: SteeredCell) -> Iterator[Panel]:
    """The vectors: how long they are, and which tokens they point to."""
    lens = {layer["layer"]: layer for layer in (cell.details("logit_lens") or {}).get("layers", ())}
    known = {vector.layer for vector in cell.vectors}
    lost = [LayerVector(layer, 0.0, 0.0, None) for layer in lens if layer not in known] if not known else []
    if not (found := [*cell.vectors, *lost]):
        return
    head = ["layer", "‖v‖", "‖Δ‖", "mean ‖h‖", "‖Δ‖ / mean ‖h‖", *(("top tokens", "bottom tokens") if lens else ())]
    rows = []
    for vector in found:
        sizes = (vector.norm, vector.added, vector.residual, _share(vector)) if known else (None,) * 4
        near = lens.get(vector.layer)
        ends = (tokens(near["top"]), tokens(near["bottom"])) if near else ("–", "–")
        rows.append([str(vector.layer), *map(number, sizes), *(ends if lens else ())])
    yield Panel("Vectors", _ABOUT_VECTORS, table("Vectors", head, rows), wide=True)


_ABOUT_VECTORS = (
    "Length of each vector as it was made, of what is added, and of the residual stream it is added to, where the method "
    "measured that; tokens whose unembedding is nearest to and farthest from it, with cosines (`logit_lens`)."
)


def _share(vector: LayerVector) -> float | None:
    return vector.added / vector.residual if vector.residual else None


def frontier(cell: SteeredCell) -> Iterator[Panel]:
    """What each row of the spec gains and costs."""
    for task in cell.tasks():
        if len(costs := accuracy_against_cost(cell.rows, task)) > 1:
            about = "What each row of the spec gains on the task, and what it changes in text that has nothing to do with it."
            body = figures.points(costs, "KL per token on neutral text (nats)", f"accuracy on {task}")
            rows = [(label, number(cost), number(accuracy)) for label, (cost, accuracy) in costs.items()]
            body += table(f"Accuracy against cost, {task}", ("row", "KL per token (nats)", "accuracy"), rows)
            yield Panel(f"Accuracy against cost, {task}", about, body)


def accuracy(cell: SteeredCell) -> Iterator[Panel]:
    """Accuracy of the unsteered model and of every row of the spec."""
    for task in cell.tasks():
        base = next(v for v in cell.values("reasoning_accuracy") if (v.id, v.domain) == (BASE, task))
        sides = {"base": base} | accuracies(cell.rows, task)
        spans = {name: (ci.low, ci.high) for name, side in sides.items() if (ci := side.ci)}
        body = figures.bars({name: side.value for name, side in sides.items()}, "accuracy", spans)
        about = "Without steering, with it, and the other rows of the spec: same temperature, same problems, same seed."
        yield Panel(f"Accuracy on {task}", about, body)


def training(cell: SteeredCell) -> Iterator[Panel]:
    curve = cell.subject().get("curve")
    if not curve:
        return
    steps = [point["step"] for point in curve]
    for name, title, about in (
        ("reward", "Training reward", "Mean verifiable reward of the sampled answers, per step."),
        (
            "selection",
            "Selection accuracy",
            "Greedy accuracy on held-out training problems, which chooses the checkpoint.",
        ),
        ("length", "Answer length", "Mean generated tokens per step."),
        ("norm", "Vector norm", "Mean norm of the vectors."),
    ):
        points = [(step, point[name]) for step, point in zip(steps, curve, strict=True) if point.get(name) is not None]
        if points:
            xs, ys = zip(*points, strict=True)
            yield Panel(title, about, figures.lines({title: (xs, ys)}, "step", title.lower()))


def receipts(cell: SteeredCell) -> Iterator[Panel]:
    """What the hooks counted, study by study."""
    studies = {f"accuracy on {task}": f"reasoning_accuracy/{task}" for task in cell.tasks()}
    studies |= {"capability cost": "capability_cost", "dose": "steering_dose", "texts": "steered_texts"}
    details = {name: cell.details(study) or {} for name, study in studies.items()}
    # Studies that an earlier version stored left less of a receipt, or none.
    found = {name: left["receipt"] for name, left in details.items() if "calls" in left.get("receipt", ())}
    if found:
        about = "What the hooks counted while the model ran; a cell whose counts do not add up fails."
        rows = [_receipt(name, receipt) for name, receipt in found.items()]
        yield Panel("Receipt", about, table("Receipt", _COUNTED, rows), wide=True)


_COUNTED = (
    "study",
    "hook calls",
    "tokens × layers",
    "of them changed",
    "mean |Δ|/|h|",
    "over ordinary tokens",
    "positions",
    "answers re-used",
)


def _receipt(name: str, receipt: Json) -> tuple[str, ...]:
    first, last = receipt["first_position"], receipt["last_position"]
    return (
        name,
        f"{receipt['calls']:,}",
        f"{receipt['tokens']:,}",
        f"{receipt['steered']:,}",
        f"{receipt['relative_size']:.3g}",
        "–" if receipt.get("dose") is None else f"{receipt['dose']:.3g}",
        "–" if first is None else f"{first} to {last}",
        str(receipt.get("answers_from_cache", "–")),
    )
