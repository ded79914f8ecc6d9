"""Whether texts fit into the model. A model with learned positions has none beyond its last; one with rotary positions goes on,
but what it says there is not what its authors measured, so both are refused alike."""

from __future__ import annotations

from collections.abc import Iterator

from latentbench.errors import InvalidInput
from latentbench.lab import Longest, Subject
from latentbench.metrics.study import Study
from latentbench.spec.experiment import Experiment
from latentbench.spec.nodes import Path_
from latentbench_adapters.protocols import DatasetAdapter, Roots


def too_long(experiment: Experiment, room: int, roots: Roots) -> Iterator[tuple[Path_, str]]:
    """Every text of an experiment that is longer than the `room` tokens its model has positions for."""
    for path, data in texts_of(experiment).items():
        if data.context > room:
            yield (*path, "context"), beyond(data.context, room)
    for path, longest in _answers(experiment, roots):
        if longest.tokens >= room:
            yield (
                (*path, longest.field),
                f"answers of {longest.tokens} tokens leave no room for a question in the model's context of {room}; "
                f"set a smaller `{longest.field}`",
            )


def texts_of(experiment: Experiment) -> dict[Path_, DatasetAdapter]:
    """All texts of an experiment by their place in the spec."""
    found: dict[Path_, DatasetAdapter] = {("dataset", "eval", n): d for n, d in experiment.dataset.eval.items()}
    return found | {("dataset", *place): data for place, data in experiment.dataset.trained_on.items()}


def beyond(context: int, room: int) -> str:
    """What is wrong with a context that the model has no positions for."""
    return f"texts of {context} tokens are longer than the model's {room} positions; set `context: {room}` or less"


def _answers(experiment: Experiment, roots: Roots) -> Iterator[tuple[Path_, Longest]]:
    sections: dict[Path_, Study | Subject] = {("steering",): experiment.steering} if experiment.steering else {}
    sections |= {
        ("metrics", n, metric.metric): metric
        for n, metric in enumerate(experiment.metrics)
        if isinstance(metric, Study)
    }
    for path, section in sections.items():
        try:
            longest = section.longest_answer(roots)
        except (InvalidInput, ValueError, OSError):
            continue  # what cannot be read is said by the section itself
        if longest is not None:
            yield path, longest
