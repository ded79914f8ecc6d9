"""How many problems an intervention solves, for tests that compare several on the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np

from latentbench.core.errors import InvalidInput
from latentbench.core.paths import Roots
from latentbench.core.protocols import LanguageModel, Problem, ProblemSet
from latentbench.interventions.generation import Sampling, answers
from latentbench.interventions.intervention import Intervention, Layout
from latentbench.statistics.arrays import Array
from latentbench.steering.rewards import Grader


def problems_of(problems: ProblemSet, count: int, roots: Roots) -> list[Problem]:
    """The first `count` problems. Raises InvalidInput where there are none."""
    stop = problems.skip + min(count, problems.limit or count)
    found = list(islice(problems.problems(roots), problems.skip, stop))
    if not found:
        raise InvalidInput("there are no problems to read")
    return found


def solved(
    lm: LanguageModel,
    intervention: Intervention,
    problems: Sequence[Problem],
    sampling: Sampling,
    right: Grader,
    ending: Sequence[int] = (),
) -> Array:
    """[problems] 1 where the greedy answer after the prompt and the tokens of `ending` is right."""
    layout = Layout()
    prompts = [problem.prompt + intervention.prefix for problem in problems]
    with intervention.applied(lm, layout):
        written = answers(lm, prompts, sampling, layout=layout, ending=ending)
    return np.array([float(right(a.text, p.answer)) for a, p in zip(written, problems, strict=True)])
