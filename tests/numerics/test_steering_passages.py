"""The texts that studies of a mechanism read: greedy or drawn, all of them or those that ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from latentbench.core.errors import InvalidInput
from latentbench.interventions.injection import VectorInjection
from latentbench.interventions.intervention import Layout
from latentbench.interventions.rollouts import Sampling, answers
from latentbench.interventions.vectors import SteeringVectors
from latentbench.mechanism.metrics.ablations import FirstTokenTest, LayerPairs
from latentbench.mechanism.metrics.output_tokens import TokenShift
from latentbench.mechanism.metrics.paths import LogitAttribution, PathPatching
from latentbench.mechanism.metrics.propagation import AttentionShift, Persistence
from latentbench.mechanism.metrics.study import DOMAIN, MechanismStudy
from latentbench.mechanism.output_tokens import probability_shift
from latentbench.mechanism.passages import Passages, continuations, passages_of
from latentbench.study.context import StageContext
from tests.support.steering import LAYERS, WIDTH, WordProblems, lab, language_model

pytestmark = pytest.mark.usefixtures("one_thread")

STUDIES = [TokenShift, FirstTokenTest, AttentionShift, Persistence, PathPatching, LogitAttribution]
END = 1


@pytest.fixture
def made(tmp_path: Path) -> StageContext:
    """A lab whose subject makes the end of a text so likely that some of them end soon."""
    lm = language_model("llama")
    lm.model.get_output_embeddings().weight[END] *= 15
    vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))
    way = VectorInjection(SteeringVectors({LAYERS - 2: vector}))
    return replace(lab(lm, tmp_path), subject=lambda: way)


def study(kind: Any = TokenShift, **options: Any) -> Any:
    section = {"problems_from": {"adapter": "pocket"}, "prompts": 12, "new_tokens": 6, **options}
    return kind.model_validate(section).model_copy(update={"problems_from": WordProblems()})


def texts(passages: Passages) -> list[list[int]]:
    return [row[real].tolist() for row, real in zip(passages.ids, passages.real, strict=True)]


def test_drawn_texts_are_those_of_a_generator_with_the_seed_of_the_key(made: StageContext) -> None:
    asked = study(temperature=1.0)
    lm, prompts, layout = made.model(), [problem.prompt for problem in asked.asked(made)], Layout()
    generator = torch.Generator().manual_seed(made.seed("passages"))
    with made.subject().applied(lm, layout):
        written = answers(lm, prompts, Sampling(6, 1.0), generator=generator, layout=layout)
    found = passages_of(asked, made)
    starts = found.prompt_lengths.tolist()
    assert [row[start:] for row, start in zip(texts(found), starts, strict=True)] == [answer.ids for answer in written]
    assert texts(passages_of(asked, made)) == texts(found)
    assert texts(passages_of(asked, replace(made, key="another"))) != texts(found)
    assert texts(passages_of(study(), made)) != texts(found)


def test_only_those_that_ended_are_read_and_the_others_counted(made: StageContext) -> None:
    every, ended = (passages_of(study(temperature=1.0, only_ended=only), made) for only in (False, True))
    assert (every.numbers, every.left_out) == (None, 0)
    whole = texts(every)
    assert ended.numbers == tuple(number for number, row in enumerate(whole) if row[-1] == END)
    assert 0 < len(ended) < len(every) == 12 == len(ended) + ended.left_out
    assert texts(ended) == [whole[number] for number in ended.numbers]


@pytest.mark.parametrize("kind", STUDIES)
def test_every_study_reads_them_with_the_problems_that_they_belong_to(
    kind: type[MechanismStudy], made: StageContext
) -> None:
    asked = study(kind, temperature=1.0, only_ended=True)
    passages, found = passages_of(asked, made), asked.run(made)
    rows = {len(values) for values in found.statistics[DOMAIN].values()}
    assert rows == {12 if kind is FirstTokenTest else len(passages)}
    assert found.units[DOMAIN].summed(found.statistics[DOMAIN])  # as many labels as rows
    said = f"{asked.metric}: {passages.left_out} of 12 continuations did not end within 6 tokens and are left out"
    assert said in found.warnings


def test_the_numbers_of_what_ended_are_those_of_the_same_texts_among_all(made: StageContext) -> None:
    lm, way = made.model(), made.subject()
    every, ended = (passages_of(study(temperature=1.0, only_ended=only), made) for only in (False, True))
    assert ended.numbers is not None
    whole, part = probability_shift(lm, way, every), probability_shift(lm, way, ended)
    np.testing.assert_allclose(part.first, whole.first[list(ended.numbers)], rtol=1e-9)
    np.testing.assert_allclose(part.rest, whole.rest[list(ended.numbers)], rtol=1e-9)


def test_where_nothing_ends_there_is_nothing_to_study(made: StageContext) -> None:
    made.model().model.get_output_embeddings().weight[END] = 0
    with pytest.raises(InvalidInput, match=r"token_shift: none of 12 continuations ended within 6 tokens; raise `new"):
        study(only_ended=True).run(made)
    none = continuations(made.model(), made.subject(), ["w3"], 3, only_ended=True)
    assert (len(none), none.left_out, none.numbers) == (0, 1, ())


@pytest.mark.parametrize("kind", STUDIES)
def test_how_texts_are_drawn_is_written_only_where_it_is_said(kind: type[MechanismStudy]) -> None:
    plain = kind.model_validate({"problems_from": {"adapter": "pocket"}}).plain()
    assert not {"temperature", "only_ended"} & plain.keys()
    drawn = kind.model_validate({"problems_from": {"adapter": "pocket"}, "temperature": 1, "only_ended": True}).plain()
    assert drawn == {**plain, "temperature": 1.0, "only_ended": True}


def test_a_study_that_reads_no_texts_takes_none_of_this() -> None:
    for options in ({"temperature": 1.0}, {"only_ended": True}):
        with pytest.raises(ValidationError, match="reads no texts and grades greedy answers"):
            study(LayerPairs, **options)
