"""What the model writes, side by side: unsteered, steered at every scale, and controls after the same prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup

from latentbench.core.spec_model import Json
from latentbench.report.steered_cell import Panel, SteeredCell
from latentbench.report.tables import Cell, table, written
from latentbench.report.verdict import control_of, controls_of
from latentbench.steering.texts import NAME

SHOWN = 4
"""Problems whose answers are open; the others unfold."""
PROMPT = 600
"""Characters of a long prompt that are shown, its last ones."""
Texts = Mapping[tuple[float | None, str], Json]
"""Of a row by scale (None: its own) and prompt: what was written, and whether it came to its end."""


def texts(cell: SteeredCell) -> Iterator[Panel]:
    """The texts of `steered_texts`, prompt by prompt."""
    details = cell.details(NAME)
    if not details:
        return
    own, controls = _texts(details), _of_controls(cell)
    scale = cell.scale
    scales = [found["scale"] for found in details["steered"]]
    # The spec's own scale may be stated among the others; it is one row.
    shown = [None, *(other for other in scales if other is not None and other != scale)]
    shown.sort(key=lambda other: (scale or 0.0) if other is None else other)
    body = Markup("")
    for place, (prompt, plain) in enumerate(zip(details["prompts"], details["unsteered"], strict=True)):
        rows = [_row(other, scale, plain, prompt, own, controls) for other in shown]
        head = ("scale", "unsteered", "steered", *controls)
        body += Markup("<h3>Prompt {}</h3>{}").format(place + 1, written(prompt[-PROMPT:]))
        body += table(f"Texts after prompt {place + 1}", head, rows, "stack texts")
    about = "Greedy texts after the same prompts, at every scale that was asked for; … is text that went on."
    yield Panel("Texts", about, body, wide=True)


def _texts(details: Mapping[str, Json]) -> Texts:
    return {
        (found["scale"], prompt): text
        for found in details["steered"]
        for prompt, text in zip(details["prompts"], found["texts"], strict=True)
    }


def _of_controls(cell: SteeredCell) -> dict[str, Texts]:
    """The texts of the controls that wrote some, by a heading."""
    rows = {label: (row, cell.beside(row.record).details(NAME)) for label, row in controls_of(cell).items()}
    return {f"{label}: {control_of(row)}": _texts(found) for label, (row, found) in rows.items() if found}


def _row(
    scale: float | None, own: float | None, plain: Json, prompt: str, steered: Texts, controls: Mapping[str, Texts]
) -> Sequence[Cell]:
    said = f"{scale:g}" if scale is not None else "own" if own is None else f"{own:g} (the spec's)"
    columns = (plain, steered.get((scale, prompt)), *(found.get((scale, prompt)) for found in controls.values()))
    return (said, *(_shown(text) for text in columns))


def _shown(text: Json) -> Cell:
    return "–" if text is None else written(text["text"] + ("" if text["ended"] else " …"))


def answers(cell: SteeredCell) -> Iterator[Panel]:
    """Answers to a task at the cell's own scale: without steering, with it, and of controls that show the same problem."""
    for task in cell.tasks():
        study = f"reasoning_accuracy/{task}"
        examples = (cell.details(study) or {}).get("examples", ())
        if not examples:
            continue
        asked = {example["prompt"] for example in examples}
        found = {label: cell.beside(row.record).details(study) or {} for label, row in controls_of(cell).items()}
        theirs = {label: {e["prompt"]: e for e in left.get("examples", ())} for label, left in found.items()}
        controls = {label: answered for label, answered in theirs.items() if asked & answered.keys()}
        head, title = ("problem and answer", "unsteered", "steered", *controls), f"Answers to {task}"
        rows = [_answered(example, controls) for example in examples]
        body = table(title, head, rows[:SHOWN], "stack texts answers")
        if rest := rows[SHOWN:]:
            more = table(f"More {title.lower()}", head, rest, "stack texts answers")
            body += Markup("<details><summary>{} more</summary>{}</details>").format(len(rest), more)
        about = (
            "The same problem without and with steering, at the spec's own scale: gained, lost and unchanged in turn."
        )
        yield Panel(title, about, body, wide=True)


def _answered(example: Json, controls: Mapping[str, Mapping[str, Json]]) -> Sequence[Cell]:
    problem = Markup("{}{}").format(written(example["prompt"][-PROMPT:]), example["answer"])
    others = (found.get(example["prompt"]) for found in controls.values())
    return (
        problem,
        _marked(example["base"]),
        _marked(example["steered"]),
        *("–" if other is None else _marked(other["steered"]) for other in others),
    )


def _marked(answer: Json) -> Markup:
    """An answer, and whether it is right."""
    mark = (
        "right" if answer["correct"] >= 1 else "wrong" if answer["correct"] <= 0 else f"{answer['correct']:.2g} right"
    )
    return Markup('<span class="badge">{}</span>{}').format(mark, written(answer["text"]))
