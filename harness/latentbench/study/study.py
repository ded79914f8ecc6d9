"""Metrics that measure on their own instead of sharing the pass over the evaluation documents.

A study still ends in sums over independent units (latents, problems, documents), so its numbers get intervals and tests
exactly like those of every other metric: it returns statistics per unit, and its `numbers()` are formulas over their sums.

How one comes about: a spec names it, and `problems_in` says without torch what is wrong with that. Its key is computed from
its fields without their `handling`, `version`, `identity`, the language model, the sites, the fields of the subject, and the
keys of the SAEs, of the subject's content and of the tokens of its `domains`. Unless the store has the findings under that
key, one worker calls `run`, and keeps what it returns. The record of every cell that needs it then gets its numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from latentbench.core.plugins import implementation
from latentbench.core.spec_model import Json
from latentbench.metrics.base import Metric
from latentbench.metrics.value import MetricValue
from latentbench.statistics.arrays import Statistics

if TYPE_CHECKING:
    from torch import Tensor

    from latentbench.core.paths import Roots
    from latentbench.statistics.units import Units
    from latentbench.study.context import ExperimentView, Longest, StageContext


@dataclass(frozen=True)
class Findings:
    """What a study found."""

    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    """Domain to name to float64 [things]: one number per document (or problem, latent, …). The numbers of the metric are
    computed on every domain in it. Names start with the metric's own (`autointerp.hits`), because several studies may fill one
    domain; statistics of one study on one domain have one length."""
    values: tuple[MetricValue, ...] = ()
    """Further numbers that are no formula over units; they are written into the record as they stand."""
    details: Mapping[str, Json] = field(default_factory=dict)
    """Everything a report shows, as JSON data without NaN and infinity; it stays in the store and is in no record."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """Larger arrays for reports, kept as `details` are."""
    warnings: tuple[str, ...] = ()
    """What a reader must know before trusting the numbers; written into the record."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why a statistic is not there, by its name: the reason of the numbers that are null for want of it."""
    units: Mapping[str, Units] = field(default_factory=dict)
    """Domain to which of its documents (problems) repeat each other and count as one unit, `context.units(domains)` for
    statistics per document; the things of a domain that is not in it all differ."""

    def summed(self) -> dict[str, Statistics]:
        """The statistics [units], those of things that are one unit added up."""
        return {d: self.units[d].summed(found) if d in self.units else found for d, found in self.statistics.items()}


class Study(Metric):
    """A metric with a stage of its own. It plugs in through `latentbench.metrics` like any other.

    Its fields, `numbers()` and `needs` are those of a metric; `version` is raised when the same fields and parents give other
    findings. Importing it must not import torch: what measures stands in another module, which `implementation` names.
    """

    implementation: ClassVar[str]
    """`module:function` of what measures, called as `function(study, context)`; needless where `run` is overridden."""
    reads_states: ClassVar[bool] = False
    """Whether it reads the hidden states of all documents of its `domains` where the cell's SAEs read, through
    `StageContext.states`: plans then say what storing them takes."""

    gain: ClassVar[str | None] = None
    """Id of its number that says what steering has gained over the model without it: what `auto` chooses by unless told."""

    def domains(self, experiment: ExperimentView) -> tuple[str, ...]:
        """The evaluation domains of the spec whose tokens it reads; by default all. Their tokens are parents of its stage."""
        return tuple(experiment.dataset.eval)

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        """What determines its findings besides its fields, the model, the SAEs, the subject and the domains it reads.

        What a field only names (a file, a task, a judge) stands in it with its own `identity`.
        """
        return {}

    def comparability(self, experiment: ExperimentView, roots: Roots) -> Mapping[str, Mapping[str, Json]]:
        """Domains it brings that are not in the spec's `dataset.eval` (a task), with the facts that must agree for two
        rows to be ranked together there."""
        return {}

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        """What is wrong with asking for this study in this experiment, found without torch; shown by `validate`."""
        return ()

    def after(self, experiment: ExperimentView) -> tuple[Study, ...]:
        """Studies of the same cell whose findings it reads (`StageContext.findings`): their stages are parents of its own."""
        return ()

    def asked_digests(self, context: StageContext) -> frozenset[str]:
        """Digests of the documents, problems or whatever it measures on; by default of the documents of its `domains`.

        Two studies that share none measure on data of their own. Whatever is not known to be told apart is left out.
        """
        return frozenset(
            digest for domain in self.domains(context.experiment) for digest in context.tokens(domain).digests
        )

    def longest_answer(self, roots: Roots) -> Longest | None:
        """The longest text that the model writes for it; None where it writes none, or that is not known here."""
        return None

    def preview(self, experiment: ExperimentView, roots: Roots) -> str | None:
        """What it will cost beyond compute (requests, tokens, money, room), for `plan`; None where nothing."""
        return None

    def run(self, context: StageContext) -> Findings:
        """Measures; by default what `implementation` names does.

        Called by one worker at a time, and again after a kill: what it puts into `context.scratch` is still there then. A
        LatentbenchError fails the cell with its message, and nothing is stored, so that the next run tries anew; what should
        not be paid for twice is kept in `context.cache`.
        """
        measure: Any = implementation(self.implementation)
        found: Findings = measure(self, context)
        return found
