"""The stages of a cell as a tree: what has to exist before its row can be written, each named by what determines it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from latentbench.activations.site import Site
from latentbench.canonical import digest
from latentbench.sae.options import Variant
from latentbench.sae.options.loaded import LoadedSae
from latentbench.section import Json
from latentbench_adapters.protocols import DatasetAdapter

Kind = Literal["tokens", "sae", "loaded_sae", "baseline", "measurement", "subject", "study", "shared"]


@dataclass(frozen=True)
class Stage:
    """One piece of content to be made or re-used."""

    kind: Kind
    title: str
    """For people; not part of the identity."""
    payload: Json
    parents: tuple[Stage, ...] = ()

    @cached_property
    def key(self) -> str:
        """sha256 of everything that determines the content."""
        return digest(self.kind, self.made_from)

    @property
    def made_from(self) -> Json:
        """What the key is computed from."""
        return {"payload": self.payload, "parents": [parent.key for parent in self.parents]}

    @property
    def ref(self) -> tuple[str, str]:
        """What the store calls it: kind and key."""
        return self.kind, self.key

    @property
    def stored(self) -> bool:
        """Whether the content is kept in the store (a loaded SAE stays where it is)."""
        return self.kind != "loaded_sae"


@dataclass(frozen=True)
class DomainStages:
    """What is measured on one evaluation domain."""

    tokens: Stage
    baseline: Stage | None = None
    """None where no metric needs the pass that all SAEs share."""
    measurements: dict[int | None, Stage] = field(default_factory=dict)
    """By budget; None is the SAE as it was trained."""


@dataclass(frozen=True)
class SaeStages:
    """How an SAE comes to be: trained on texts, perhaps on top of other SAEs, or loaded."""

    section: Variant | LoadedSae
    stage: Stage
    site: Site
    """Where it reads."""
    data: DatasetAdapter | None = None
    """What it is trained on; None when it is loaded."""
    tokens: Stage | None = None
    """The training tokens of `data`."""
    bases: tuple[SaeStages, ...] = ()

    def all(self) -> list[Stage]:
        """In an order in which they can be made."""
        below = [stage for base in self.bases for stage in base.all()]
        return [*below, *([self.tokens] if self.tokens else []), self.stage]

    def levels(self) -> Iterator[tuple[int, SaeStages]]:
        """This SAE and those below it with the level at which each can be made; level 0 needs no other."""
        below = [pair for base in self.bases for pair in base.levels()]
        yield from below
        yield max((level + 1 for level, _ in below), default=0), self


@dataclass(frozen=True)
class CellStages:
    """All stages of one cell."""

    model: Json
    """Identity of the language model."""
    saes: tuple[SaeStages, ...]
    """One per site of the spec, in its order."""
    subject: Stage | None
    """Steering vectors or flow maps."""
    domains: dict[str, DomainStages]
    studies: dict[str, Stage]
    """By the metric's name."""

    def all(self) -> list[Stage]:
        """In an order in which they can be made, each once."""
        found = [stage for sae in self.saes for stage in sae.all()]
        found += [self.subject] if self.subject else []
        for domain in self.domains.values():
            found += [domain.tokens, *([domain.baseline] if domain.baseline else []), *domain.measurements.values()]
        return list({stage.key: stage for stage in [*found, *self.studies.values()]}.values())
