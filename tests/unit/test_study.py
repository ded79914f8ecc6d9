"""Studies: where what they do comes from."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import pytest

from latentbench.core.errors import NotAvailable
from latentbench.core.plugins import implementation, plugins
from latentbench.study.study import Findings, Study


def answer(study: Study, context: Any) -> Findings:
    return Findings(details={"study": study.label, "context": context})


class Named(Study):
    """Says which function measures."""

    implementation: ClassVar[str] = f"{__name__}:answer"
    metric: Literal["named"] = "named"


class Misnamed(Study):
    """Says which, wrongly."""

    implementation: ClassVar[str] = "latentbench.flow.no_such_study:run"
    metric: Literal["misnamed"] = "misnamed"


def test_a_study_runs_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentbench.study.study.implementation", lambda reference: globals()[reference.split(":")[1]])
    assert Named().run("given").details == {"study": "named", "context": "given"}  # type: ignore[arg-type]


def test_a_study_whose_implementation_is_not_there_says_which() -> None:
    with pytest.raises(NotAvailable, match="no_such_study"):
        Misnamed().run(None)  # type: ignore[arg-type]


def test_every_registered_study_measures_by_itself_or_names_what_does() -> None:
    studies = [kind for kind in plugins("metrics").values() if issubclass(kind, Study)]
    assert studies
    for kind in studies:
        assert kind.run is not Study.run or callable(implementation(kind.implementation)), kind
