"""From what a run found out to what a study hands in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from latentbench.lab import Lab
from latentbench.metrics.autointerp.details import AutointerpDetails, BudgetDetails
from latentbench.metrics.autointerp.ledger import Ledger
from latentbench.metrics.autointerp.protocol import Protocol
from latentbench.metrics.autointerp.run import run
from latentbench.metrics.autointerp.scoring import statistics
from latentbench.metrics.study import Findings
from latentbench_adapters.protocols import Judge

_FEW, _MANY_FAILURES = 0.2, 0.05
"""Shares of alive latents that a score speaks for, and of failed requests, from which on readers are warned."""


def findings(
    lab: Lab, judge: Judge, protocol: Protocol, domain: str, ledger: Ledger, budgets: Sequence[int | None]
) -> Findings:
    """Runs the study at every budget."""
    details = run(lab, judge, protocol, domain, ledger, budgets)
    rows = max(len(budget.latents) for budget in details.budgets)
    sums = [statistics(budget, rows, judge.graded) for budget in details.budgets]
    return Findings(
        statistics={domain: {name: values for part in sums for name, values in part.items()}},
        details=details.plain(),
        warnings=tuple(_warnings(details)),
    )


def _warnings(details: AutointerpDetails) -> Iterator[str]:
    for budget in details.budgets:
        where = "autointerp" if budget.budget is None else f"autointerp at {budget.budget} active latents"
        scored = sum(latent.score is not None for latent in budget.latents)
        coverage = _share(budget.eligible, budget.alive) * _share(scored, len(budget.latents))
        if coverage < _FEW:
            yield (
                f"{where}: the score speaks for {coverage:.0%} of the alive latents only "
                f"({_reasons(budget) or 'no latent is alive'}); more documents help"
            )
        failures = sum(latent.failures for latent in budget.latents)
        requests = sum(latent.requests for latent in budget.latents)
        if _share(failures, requests) > _MANY_FAILURES:
            yield f"{where}: {failures} of {requests} requests to {details.judge} failed or could not be read"


def _reasons(budget: BudgetDetails) -> str:
    return "; ".join(f"{count}: {reason}" for reason, count in budget.excluded.items())


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
