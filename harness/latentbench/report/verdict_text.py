"""The verdict on a steered cell in words, and the table of its controls: how the page begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import yaml
from markupsafe import Markup

from latentbench.core.spec_model import Json
from latentbench.metrics.value import MetricValue
from latentbench.report.steered_cell import Panel, SteeredCell
from latentbench.report.tables import amount, bare, level, paragraph, table
from latentbench.report.verdict import AgainstControl, Judged, control_of, controls_of, judged, layers_text


def verdict(cell: SteeredCell) -> Panel:
    """The panel that opens the page."""
    found = judged(cell)
    gains, costs, doses = ([one for one in found if one.role.kind == kind] for kind in ("gain", "cost", "dose"))
    sentences = [*_gains(cell, gains), " ".join((*_costs(costs), _dose(cell, doses)))]
    body = Markup("").join(paragraph(sentence) for sentence in sentences)
    body += Markup("").join(paragraph(f"Mind: {warning}.") for warning in cell.record.warnings)
    held = [one for one in (*gains, *costs) if one.controls]
    body += table("Controls", _HEAD, (row for one in held for row in _rows(one))) if held else _missing(cell)
    return Panel(_title(cell, gains), _ABOUT, body, wide=True)


_ABOUT = "From the record and its controls: same seed, same problems, same texts, paired."
_HEAD = ("number", "control", "this cell", "the control", "difference", "95 % interval", "p (Holm)")


def _title(cell: SteeredCell, gains: Sequence[Judged]) -> str:
    """The verdict in a few words."""
    if kind := control_of(cell.loaded):
        return f"A control: {kind}"
    if not gains:
        return "Whether steering helps was not measured"
    return "; ".join(dict.fromkeys(headline(gain) for gain in gains))


def headline(gain: Judged) -> str:
    """What a gain comes to, in a few words."""
    where = f"in {gain.role.words} on {gain.value.domain}"
    if gain.sign < 0:
        return f"A loss {where}"
    if gain.sign == 0:
        return f"No gain {where} can be told"
    if not any(control.difference for control in gain.controls):
        return f"A gain {where}, and no control to hold it against"
    if larger := gain.against(-1):
        return f"A gain {where}, less than that of {_names(larger)}"
    if alike := gain.against(0):
        return f"A gain {where}, not to be told from that of {_names(alike)}"
    return f"A gain {where}, more than that of {_names(gain.against(1))}"


def _gains(cell: SteeredCell, gains: Sequence[Judged]) -> Iterator[str]:
    if not gains:
        yield (
            "No metric of this cell compares it with the unsteered model on what steering is for; `reasoning_accuracy` "
            "does so on a task."
        )
    for gain in gains:
        yield " ".join((gain_sentence(gain), *_controls(gain)))
    if gains and not control_of(cell.loaded) and not any(c.difference for gain in gains for c in gain.controls):
        yield "No control was measured alike, so nothing is concluded about what makes the difference."


def gain_sentence(gain: Judged) -> str:
    """A gain with its interval and what it rests on."""
    value, unit = gain.value, gain.value.unit
    what, basis = f"{gain.role.words} on {value.domain}", f"{value.n:,} {gain.units}" if value.n else "no problems"
    if value.value is None:
        return f"The gain in {what} is not known: {value.null_reason}."
    levels = ""
    if gain.levels:
        before, after = (level(found.value or 0.0, unit) for found in gain.levels)
        levels = f", from {before} to {after}"
    if value.ci is None:
        return f"{what[0].upper()}{what[1:]} changes by {amount(value.value, unit)}{levels}; {basis} are too few to tell a gain from chance."
    span = f"95 % interval {bare(value.ci.low, unit)} to {bare(value.ci.high, unit)}, {basis}"
    if gain.sign == 0:
        return f"No gain in {what} can be told: {amount(value.value, unit)}{levels} ({span})."
    verb = "gains" if gain.sign > 0 else "loses"
    return f"Steering {verb} {amount(abs(value.value), unit, '-')} in {what}{levels} ({span})."


def _controls(gain: Judged) -> Iterator[str]:
    """One sentence for each outcome that some controls have."""
    better, worse = ("gains more", "gains less") if gain.sign > 0 else ("does better", "does worse")
    said = (
        (1, f"It {better} than {{}}."),
        (0, "No difference can be told from {}."),
        (-1, f"It {worse} than {{}}."),
    )
    for side, sentence in said:
        if found := gain.against(side):
            yield sentence.format(_listed([_held(control) for control in found]))
    for control in gain.controls:
        if control.difference is None:
            yield f"It cannot be held against {control.label}: {control.reason}."


def _held(control: AgainstControl) -> str:
    assert control.difference is not None  # it has a side
    unit, found = control.value.unit, control.difference
    span = "" if found.low is None or found.high is None else f", {bare(found.low, unit)} to {bare(found.high, unit)}"
    size = f", {control.size}" if control.size else ""
    return f"{control.kind} ({amount(found.value, unit)}{span}{size})"


def _costs(costs: Sequence[Judged]) -> Iterator[str]:
    if not costs:
        yield "What it costs on other text is not measured; `capability_cost` does so."
    for cost in costs:
        value = cost.value
        known = f"costs {level(value.value, value.unit)} of" if value.value is not None else "has no known"
        reason = f": {value.null_reason}" if value.value is None else ""
        yield f"It {known} {cost.role.words} on {value.domain}{_span(value)}{reason}."


def _dose(cell: SteeredCell, doses: Sequence[Judged]) -> str:
    """How strongly the cell steers: as measured, else as stated."""
    stated = _strength(cell)
    known = [
        f"{bare(dose.value.value, 'ratio')} on {dose.value.domain}{_span(dose.value)}"
        for dose in doses
        if dose.value.value is not None
    ]
    if known:
        return f"The dose ‖Δ‖/‖h‖ is {_listed(known)}{f', at {stated}' if stated else ''}."
    if doses:
        return f"It has no dose: {doses[0].value.null_reason}."
    if getattr(cell.method, "adds_vectors", True):
        used = f"It steers at {stated}. " if stated else ""
        return f"{used}Its dose ‖Δ‖/‖h‖ is not measured; `steering_dose` does so."
    return ""


def _strength(cell: SteeredCell) -> str:
    """The scale or dose that the spec states, or that was chosen for it."""
    dose, chosen = getattr(cell.method, "dose", None), getattr(cell.method, "auto", None) is not None
    if chosen:  # what was chosen is no longer in the store
        return "a point that was chosen on selection data"
    said = f"a stated dose of {dose:g}" if dose is not None else "" if cell.scale is None else f"scale {cell.scale:g}"
    points = next((value.value for value in cell.values("steering_choice") if value.id.endswith(".points")), None)
    if points is None:
        return said
    layers = [vector.layer for vector in cell.vectors]
    where = f" and {layers_text(layers)}" if layers else ""
    return f"{said.replace('a stated', 'a')}{where}, chosen of {points:g} points on selection data"


def _span(value: MetricValue) -> str:
    if value.ci is None:
        return ""
    return f" ({bare(value.ci.low, value.unit)} to {bare(value.ci.high, value.unit)})"


def _names(controls: Sequence[AgainstControl]) -> str:
    return _listed(list(dict.fromkeys(control.kind for control in controls)))


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _rows(one: Judged) -> Iterator[Sequence[str]]:
    for control in one.controls:
        unit, found = one.value.unit, control.difference
        name = f"{control.label}: {control.kind}" + (f", {control.size}" if control.size else "")
        low, high = (None, None) if found is None else (found.low, found.high)
        yield (
            f"{one.role.words}, {one.value.domain}",
            name,
            _own(one.value),
            _own(control.value),
            control.reason or "–" if found is None else amount(found.value, unit),
            "–" if low is None or high is None else f"{bare(low, unit)} to {bare(high, unit)}",
            control.reason or "–" if control.p is None else "< 0.0001" if control.p < 1e-4 else f"{control.p:.2g}",
        )


def _own(value: MetricValue) -> str:
    return value.null_reason or "–" if value.value is None else amount(value.value, value.unit)


def _missing(cell: SteeredCell) -> Markup:
    """What to add to the spec for a control."""
    if control_of(cell.loaded):
        return Markup("")
    case = yaml.safe_dump([_suggested(cell)], sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)
    unlike = "Rows that are controls have none of these numbers. " if controls_of(cell) else ""
    about = f"{unlike}A case that would be a control, with the same `metrics`:"
    return paragraph(about) + Markup("<pre>{}</pre>").format(case)


def _suggested(cell: SteeredCell) -> Json:
    layers = [vector.layer for vector in cell.vectors]
    if layers and len(set(layers)) == len(layers):  # a stack may add several at one layer
        norms = [float(f"{vector.added:.4g}") for vector in cell.vectors]
        return {"label": "random-vectors", "steering": {"method": "random", "layers": layers, "norm": norms}}
    if getattr(cell.method, "reward", None) is not None:
        return {"label": "random-reward", "steering": {"reward": "random", "selection": 0}}
    if getattr(cell.method, "method", None) == "ablate":
        return {"label": "random-direction", "steering": {"directions": [{"method": "random", "like": 1}]}}
    return {"label": "random-vectors", "steering": {"method": "random", "layers": "all", "like": 0.1}}
