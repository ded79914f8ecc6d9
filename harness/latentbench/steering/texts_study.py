"""Writes the texts of `steered_texts`, each with whether it came to its end."""

from __future__ import annotations

from collections.abc import Sequence

from latentbench.core.errors import InvalidInput
from latentbench.core.spec_model import Json
from latentbench.interventions.intervention import Intervention, Layout, Receipt, Untouched
from latentbench.interventions.rollouts import Sampling, answers
from latentbench.steering.capability_cost_study import rescaled
from latentbench.steering.grading import read_problems
from latentbench.steering.texts import NAME, SteeredTexts
from latentbench.study.context import Content, StageContext
from latentbench.study.study import Findings


def write_texts(study: SteeredTexts, context: StageContext) -> Findings:
    """The texts, in `details`: `prompts`, `unsteered`, and `steered` by scale, the spec's own (null) first.

    Raises InvalidInput where there are no problems, CellFailed where the model was not steered as asked.
    """
    prompts, own = _prompts(study, context), context.subject()
    payload = {"version": study.version, "prompts": prompts, "new_tokens": study.new_tokens}
    plain = context.shared(f"{NAME}_base", payload, lambda: _unsteered(study, context, prompts))
    steered: list[Json] = []
    receipt = Receipt()
    scales = (None, *dict.fromkeys(study.scales))
    for done, scale in enumerate(scales):
        context.progress(done * len(prompts), len(scales) * len(prompts), "texts")
        texts, noted = _written(study, context, own if scale is None else rescaled(own, scale), prompts)
        receipt = noted if scale is None else receipt  # as elsewhere it is about the spec's own scale
        steered.append({"scale": scale, "texts": texts})
    details = {"prompts": prompts, "unsteered": plain.meta["texts"], "steered": steered, "receipt": vars(receipt)}
    return Findings(details=details)


def _prompts(study: SteeredTexts, context: StageContext) -> list[str]:
    if study.problems_from is None:
        return list(study.prompts)
    if found := read_problems(study.problems_from, context, study.count):
        return [problem.prompt for problem in found]
    raise InvalidInput(f"{NAME}: there are no problems to read")


def _unsteered(study: SteeredTexts, context: StageContext, prompts: Sequence[str]) -> Content:
    return Content(meta={"texts": _written(study, context, Untouched(), prompts)[0]})


def _written(
    study: SteeredTexts, context: StageContext, intervention: Intervention, prompts: Sequence[str]
) -> tuple[list[Json], Receipt]:
    """`{text, ended}` of every prompt, and what was done to the model."""
    lm, layout = context.model(), Layout()
    with intervention.applied(lm, layout) as receipt:
        prefixed = [prompt + intervention.prefix for prompt in prompts]
        found = answers(lm, prefixed, Sampling(study.new_tokens), layout=layout)
    return [{"text": answer.text, "ended": not answer.truncated} for answer in found], receipt
