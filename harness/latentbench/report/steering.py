"""One offline page per steered cell: accuracy and its controls, the training curve, the cost, and the mechanism.

Everything comes from the record and from what its studies left in the store; neither the model nor the network is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from latentbench.core.errors import InvalidInput
from latentbench.core.protocols import model_name
from latentbench.core.spec_model import Json
from latentbench.leaderboard.row_details import page_path
from latentbench.metrics.value import MetricValue
from latentbench.records.record import Record
from latentbench.report import figures
from latentbench.report.cells import stored_study
from latentbench.report.frontier import Rows, accuracies, accuracy_against_cost, rows_beside
from latentbench.spec.project import Project
from latentbench.store.files import write_bytes
from latentbench.store.store import Store
from latentbench.study.storage import stored_content

BASE = "reasoning_accuracy.base"


@dataclass(frozen=True)
class Panel:
    """A titled part of the page."""

    title: str
    about: str
    """What is seen, in one sentence."""
    body: str
    """HTML made by this package; text from elsewhere in it is escaped."""


@dataclass(frozen=True)
class SteeredCell:
    """A steered cell and what is stored of it."""

    record: Record
    store: Store
    results: Path

    @cached_property
    def rows(self) -> Rows:
        """The cell and what it is compared with."""
        return rows_beside(self.record, self.results)

    def details(self, study: str) -> dict[str, Json] | None:
        """What a study left for reports; None where it was not asked for or is not in the store."""
        found = stored_study(self.store, self.record, study)
        return dict(found.details) if found else None

    def tasks(self) -> list[str]:
        """The tasks that accuracy was measured on."""
        start = "study/reasoning_accuracy/"
        return [name.removeprefix(start) for name in self.record.keys if name.startswith(start)]

    def subject(self) -> dict[str, Json]:
        """What making the vectors left; empty when it is not in the store."""
        content = stored_content(self.store, "subject", self.record.keys["subject"])
        return dict(content.meta) if content else {}

    def values(self, prefix: str) -> list[MetricValue]:
        """The record's numbers of one metric."""
        return [value for value in self.record.metrics if value.id.startswith(prefix + ".")]


def page(record: Record, project: Project) -> str:
    """The page. Raises InvalidInput for a cell that is not steered."""
    if "subject" not in record.keys or not record.resolved.get("steering"):
        raise InvalidInput(f"{record.spec.name} does not steer; `report steering` is for cells with `steering:`")
    cell = SteeredCell(record, Store(project.store), project.results)
    panels = [panel for make in _PANELS for panel in make(cell)]
    folder = files("latentbench.leaderboard.render"), files("latentbench.report")
    template = Environment(autoescape=True).from_string(folder[1].joinpath("steering.html").read_text("utf-8"))
    return template.render(
        title=record.spec.name + (f" [{record.label}]" if record.label else ""),
        seed=record.seed,
        facts=_facts(record),
        panels=[(panel.title, panel.about, Markup(panel.body)) for panel in panels],
        numbers=list(record.metrics),
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


def _accuracy(cell: SteeredCell) -> Iterator[Panel]:
    for task in cell.tasks():
        base = next(v for v in cell.values("reasoning_accuracy") if (v.id, v.domain) == (BASE, task))
        sides = {"base": base} | accuracies(cell.rows, task)
        spans = {name: (ci.low, ci.high) for name, side in sides.items() if (ci := side.ci)}
        body = figures.bars({name: side.value for name, side in sides.items()}, "accuracy", spans)
        about = "Without steering, with it, and the other rows of the spec: same temperature, same problems, same seed."
        yield Panel(f"Accuracy on {task}", about, body)
        if len(costs := accuracy_against_cost(cell.rows, task)) > 1:
            about = "What each row of the spec gains on the task, and what it changes in text that has nothing to do with it."
            body = figures.points(costs, "KL per token on neutral text (nats)", f"accuracy on {task}")
            yield Panel(f"Accuracy against cost, {task}", about, body)


def _receipts(cell: SteeredCell) -> Iterator[Panel]:
    studies = {f"accuracy on {task}": f"reasoning_accuracy/{task}" for task in cell.tasks()}
    details = {name: cell.details(study) or {} for name, study in studies.items()}
    details["capability cost"] = cell.details("capability_cost") or {}
    details["dose"] = cell.details("steering_dose") or {}
    # Studies that an earlier version stored left less of a receipt, or none.
    receipts = {name: found["receipt"] for name, found in details.items() if "calls" in found.get("receipt", ())}
    rows = "".join(_receipt(name, receipt) for name, receipt in receipts.items())
    if rows:
        names = (
            "",
            "hook calls",
            "tokens × layers",
            "of them changed",
            "mean |Δ|/|h|",
            "over ordinary tokens",
            "positions",
            "answers re-used",
        )
        head = "".join(f"<th>{name}</th>" for name in names)
        about = "What the hooks counted while the model ran; a cell whose counts do not add up fails."
        yield Panel("Receipt", about, f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>")


def _receipt(name: str, receipt: Json) -> str:
    first, last = receipt["first_position"], receipt["last_position"]
    shown = (
        f"{receipt['calls']:,}",
        f"{receipt['tokens']:,}",
        f"{receipt['steered']:,}",
        f"{receipt['relative_size']:.3g}",
        "–" if receipt.get("dose") is None else f"{receipt['dose']:.3g}",
        "–" if first is None else f"{first} to {last}",
        receipt.get("answers_from_cache", "–"),
    )
    return f"<tr><th>{_text(name)}</th>" + "".join(f"<td>{value}</td>" for value in shown) + "</tr>"


def _answers(cell: SteeredCell) -> Iterator[Panel]:
    for task in cell.tasks():
        details = cell.details(f"reasoning_accuracy/{task}") or {}
        if examples := details.get("examples"):
            yield Panel(f"Answers to {task}", "The same problem without and with steering.", _examples(examples))


def _examples(examples: list[Json]) -> str:
    rows = "".join(
        f"<tr><td><pre>{_text(e['prompt'][-600:])}</pre>{_text(e['answer'])}</td>"
        f"<td><pre>{_text(e['base']['text'])}</pre></td><td><pre>{_text(e['steered']['text'])}</pre></td></tr>"
        for e in examples
    )
    return f"<table class='answers'><thead><tr><th>problem and answer</th><th>base</th><th>steered</th></tr></thead><tbody>{rows}</tbody></table>"


def _training(cell: SteeredCell) -> Iterator[Panel]:
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


def _capability(cell: SteeredCell) -> Iterator[Panel]:
    details = cell.details("capability_cost")
    curves = {name: points for name, points in (details or {}).get("curve", {}).items() if points}
    if curves:
        for name, axis in (("kl", "KL per token (nats)"), ("ce_increase", "cross-entropy increase (nats)")):
            drawn = {d: ([p["scale"] for p in points], [p[name] for p in points]) for d, points in curves.items()}
            yield Panel(
                f"Cost: {axis}", "On text that has nothing to do with the task.", figures.lines(drawn, "scale", axis)
            )


def _lens(cell: SteeredCell) -> Iterator[Panel]:
    details = cell.details("logit_lens")
    if details:
        rows = "".join(
            f"<tr><th>{layer['layer']}</th><td>{_tokens(layer['top'])}</td><td>{_tokens(layer['bottom'])}</td></tr>"
            for layer in details["layers"]
        )
        head = "<tr><th>layer</th><th>top tokens (cosine)</th><th>bottom tokens</th></tr>"
        yield Panel(
            "Logit lens",
            "Tokens whose unembedding is nearest to and farthest from each layer's vector.",
            f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>",
        )


def _shift(cell: SteeredCell) -> Iterator[Panel]:
    details = cell.details("token_shift")
    if details and details["tokens"]:
        groups: dict[str, tuple[list[str], list[float]]] = {"first token": ([], []), "other tokens": ([], [])}
        for token in details["tokens"][:12]:
            for name, key in (("first token", "first"), ("other tokens", "later")):
                groups[name][0].extend([token["token"]] * len(token[key]))
                groups[name][1].extend(token[key])
        about = "Increase in probability of the most boosted tokens, at the first generated token and at all others."
        yield Panel("What steering boosts", about, figures.boxes(groups, "p steered − p plain"))
    test = cell.details("first_token_test")
    if test and "token" in test:
        values = {name: test[name] for name in ("base", "substituted", "steered")}
        values |= {f"“{_visible(text)}”": value for text, value in test.get("stated", {}).items()}
        about = f"Accuracy when the token “{_visible(test['token'])}” is appended to the prompt and the vector removed."
        yield Panel("First-token test", about, figures.bars(values, "accuracy"))


def _movement(cell: SteeredCell) -> Iterator[Panel]:
    details = cell.details("attention_shift")
    if details:
        about = "Total variation between steered and plain attention patterns, by layer and head."
        yield Panel("Attention", about, figures.heatmap(details["heads"], "head", "layer"))
        values = {str(layer): value for layer, value in enumerate(details["mlps"])}
        yield Panel("MLP outputs", "Relative change by layer.", figures.bars(values, "‖Δ‖ / ‖mlp‖"))
    found = cell.details("persistence")
    if found:
        curves = {name: (found["layers"], found[name]) for name in ("diff_diff", "diff_vector", "relative")}
        known = {name: curve for name, curve in curves.items() if any(y is not None for y in curve[1])}
        about = (
            f"{_PERSISTS} {_COMPARED[found.get('vectors')] if 'diff_vector' in known else 'No later vector is known.'}"
        )
        plot = figures.lines(known, "layer", "cosine or ratio", markers=True) if known else "<p>No later block.</p>"
        lens = f"<p>Mean change after the last block: {_tokens(found['lens']['top'])}</p>"
        yield Panel("Persistence", about, plot + lens)
    if found and "matrix" in found:
        about = "Cosines between the mean changes after the last block that single vectors make."
        plot = figures.heatmap(found["matrix"]["cosines"], "vector", "vector", found["matrix"]["vectors"])
        yield Panel("Single vectors", about, plot)


_PERSISTS = (
    "What steering at earlier blocks has made of each later block's output: cosine to its own mean over tokens "
    "(diff_diff) and size relative to the plain output."
)
_COMPARED = {
    "named": "diff_vector: its cosine to the separately trained vector of that block.",
    "own": "diff_vector: its cosine to the vector that this cell itself adds at that block.",
    None: "diff_vector: its cosine to this cell's own vector of that block (1 where it is added; an older definition).",
}


_WAYS = {"": "", "_residual": ", for the residual stream alone", "_mlp": ", for the MLP alone"}
"""Where patched attention goes, by the ending of the names of what was measured."""


def _paths(cell: SteeredCell) -> Iterator[Panel]:
    details = cell.details("path_patching")
    if details:
        about = "KL from the plain model when parts of the last block see the plain input."
        yield Panel("Path patching", about, figures.bars(details["modes"], "KL (nats)"))
        for part, about in (
            ("heads", "One head's output"),
            ("groups", "The output of heads that share keys and values"),
        ):
            for path, way in _WAYS.items():
                bars = {f"{part[:-1]} {n}": value for n, value in enumerate(details.get(f"{part}{path}", ()))}
                bars |= {f"only {n}": value for n, value in enumerate(details.get(f"only_{part}{path}", ()))}
                if bars:
                    said = f"{about} plain, or every other's{way}."
                    yield Panel(part.capitalize() + path.replace("_", ": "), said, figures.bars(bars, "KL (nats)"))
        if "entropies" in details:
            said = "Mean entropy of the distributions of the plain model and of every mode."
            yield Panel("Entropies", said, figures.bars(details["entropies"], "entropy (nats)"))
        positions = details["positions"]
        curve = {"no_patch": (list(range(len(positions))), positions)}
        yield Panel("By position", "KL at each generated token.", figures.lines(curve, "generated token", "KL (nats)"))
    found = cell.details("logit_attribution")
    if found and "layers" in found:
        curves = {name: (list(range(len(v))), v) for name, v in found["layers"].items()}
        about = f"Shares of the rise of “{_visible(found['token'])}” at the first generated token."
        yield Panel("Logit attribution", about, figures.lines(curves, "layer", "logits", markers=True))


def _pairs(cell: SteeredCell) -> Iterator[Panel]:
    details = cell.details("layer_pairs")
    if details:
        labels = [single["layer"] for single in details["alone"]]
        table: list[list[float | None]] = [[None] * len(labels) for _ in labels]
        for place, single in enumerate(details["alone"]):
            table[place][place] = single["accuracy"]
        for pair in details["pairs"]:
            first, second = (labels.index(layer) for layer in pair["layers"])
            table[first][second] = table[second][first] = pair["accuracy"]
        about = f"Accuracy with the vectors of two layers (diagonal: one); all together {details['together']:.3f}."
        yield Panel("Pairs of layers", about, figures.heatmap(table, "layer", "layer", labels))


_PANELS: tuple[Callable[[SteeredCell], Iterator[Panel]], ...] = (
    _accuracy,
    _receipts,
    _training,
    _capability,
    _lens,
    _shift,
    _movement,
    _paths,
    _pairs,
    _answers,
)


def _tokens(tokens: list[Json]) -> str:
    return " ".join(f"<code>{figures.shown(t['token'])}</code>&nbsp;{t['cosine']:.2f}" for t in tokens[:12])


def _text(text: Json) -> str:
    return str(Markup.escape(str(text)))


def _visible(token: Json) -> str:
    """A token in a sentence, its spaces visible; the template escapes it."""
    return str(token).replace(" ", "·").replace("\n", "⏎")
