"""Autointerp as a section of a spec: budgets, options, identity, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from latentbench.autointerp.metric import Autointerp
from latentbench.core.errors import InvalidInput
from latentbench.core.paths import Roots
from latentbench_adapters.judges.openai import OpenAIJudge
from tests.support.autointerp import LOG, Scripted, asked
from tests.support.labs import fires_on, lab_of, token_sets

pytestmark = pytest.mark.usefixtures("one_thread")


CHAT = {"adapter": "openai", "base_url": "http://localhost:1/v1", "model": "m"}


def limited(tmp_path: Path, **limits: Any) -> str:
    LOG.clear()
    metric = asked(Scripted(), latents=4, **limits)
    with pytest.raises(InvalidInput) as caught:
        metric.run(lab_of(tmp_path, 4, fires_on(token_sets(4))))
    return str(caught.value)


@pytest.mark.parametrize("limit", [1, 4, 20, 35])
def test_a_budget_of_requests_stops_before_the_first_one_over_it(tmp_path: Path, limit: int) -> None:
    assert f"stopped after {limit} requests" in limited(tmp_path, max_requests=limit)
    assert len(LOG) == limit


def test_a_budget_that_suffices_is_no_obstacle(tmp_path: Path) -> None:
    LOG.clear()
    asked(Scripted(), latents=4, max_requests=36).run(lab_of(tmp_path, 4, fires_on(token_sets(4))))
    assert len(LOG) == 36


def test_a_budget_of_money_is_never_exceeded(tmp_path: Path) -> None:
    prices = {"prompt": 0.0, "reply": 1e6}  # one unit per token of reply; the judge may write 1024
    assert "max_cost: 2000.0" in limited(tmp_path, max_cost=2000.0, prices=prices)
    assert len(LOG) * 10 + 1024 > 2000 - 1024
    assert len(LOG) * 10 <= 2000


@pytest.mark.parametrize(
    "options",
    [
        {"max_cost": 1.0},
        {"latents": 0},
        {"hard_negatives": "some"},
        {"test_examples": 2},
        {"judge": {"adapter": "oracle"}},
        {"prices": {"prompt": 1.0}},
        {"from_quantile": 0.96},
        {"explainer": {"adapter": "lexical"}},
        {"explainer": CHAT},
        {"judge": CHAT, "explainer": {"adapter": "lexical"}},
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Autointerp.model_validate(options)


def test_numbers_of_different_judges_and_protocols_are_told_apart() -> None:
    chat = OpenAIJudge(base_url="http://localhost:1/v1", model="m")
    params = [
        dict(metric.numbers()[0].params)
        for metric in (Autointerp(), Autointerp(judge=chat), Autointerp(hard_negatives="same_token", latents=5))
    ]
    assert params == [
        {"judge": "lexical"},
        {"judge": "m@localhost:1"},
        {"judge": "lexical", "hard_negatives": "same_token"},
    ]
    assert all(number.units == "latents" and not number.paired for number in Autointerp().numbers())


def test_who_explains_and_from_which_quantile_stands_where_it_is_said_and_nowhere_else(tmp_path: Path) -> None:
    newer = {"explainer", "from_quantile"}
    plain = Autointerp.model_validate({"judge": CHAT})
    told = Autointerp.model_validate({"judge": CHAT, "explainer": {**CHAT, "model": "n"}, "from_quantile": 0.5})
    assert not newer & {*plain.plain(), *plain.determining()}
    assert newer <= told.determining().keys()
    assert Autointerp.model_validate(told.plain()) == told
    assert dict(told.numbers()[0].params) == {
        "judge": "m@localhost:1",
        "explainer": "n@localhost:1",
        "from_quantile": 0.5,
    }
    assert told.identity(experiment(), Roots(tmp_path)) != plain.identity(experiment(), Roots(tmp_path))
    assert (
        (told.preview(experiment(), Roots(tmp_path)) or "")
        .split(", about")[0]
        .endswith("m@localhost:1, explained by n@localhost:1")
    )


def experiment(**domains: None) -> Any:
    return SimpleNamespace(sites=("one",), dataset=SimpleNamespace(eval=domains or {"lab": None, "law": None}))


def test_it_reads_one_domain_and_refuses_an_unknown_one(tmp_path: Path) -> None:
    roots = Roots(tmp_path)
    assert Autointerp().domains(experiment()) == ("lab",)
    assert Autointerp(domain="law").domains(experiment()) == ("law",)
    assert Autointerp().problems_in(experiment(), roots) == ()
    assert "no domain 'sea'" in Autointerp(domain="sea").problems_in(experiment(), roots)[0]


def test_the_preview_counts_requests(tmp_path: Path) -> None:
    chat = OpenAIJudge(base_url="http://localhost:1/v1", model="m")
    metric = Autointerp(judge=chat, latents=10, budgets=(4,), prices={"prompt": 1.0, "reply": 2.0}, max_requests=99)
    said = metric.preview(experiment(), Roots(tmp_path)) or ""
    assert said.startswith("at most 180 requests to m@localhost:1 (limit 99), about ")
    assert "in the unit of `prices`" in said
    assert Autointerp().preview(experiment(), Roots(tmp_path)) is None


def test_the_judge_is_part_of_the_identity(tmp_path: Path) -> None:
    judges = [OpenAIJudge(base_url="http://localhost:1/v1", model=name) for name in "ab"]
    identities = [Autointerp(judge=judge).identity(experiment(), Roots(tmp_path)) for judge in judges]
    assert identities[0] != identities[1]


def test_an_sae_that_is_broken_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="not finite"):
        Autointerp().run(lab_of(tmp_path, 2, lambda tokens, noise: torch.full((len(tokens), 2), float("nan"))))


def test_several_saes_are_refused(tmp_path: Path) -> None:
    two = SimpleNamespace(**{**vars(experiment()), "sites": ("one", "two")})
    assert "this spec has 2" in Autointerp().problems_in(two, Roots(tmp_path))[0]
    lab = lab_of(tmp_path, 4, fires_on(token_sets(4)))
    object.__setattr__(lab, "saes", dict)
    with pytest.raises(InvalidInput, match="one SAE"):
        Autointerp().run(lab)
