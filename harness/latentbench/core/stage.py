"""A stage: one piece of content, named by the sha256 of everything that determines it, so that the same key means the same
content on any machine.

Which stages a cell needs is planned in `harness/latentbench/plan/stages.py`; an adapter whose model has to be made first says
so with one (`ModelAdapter.conversion`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from latentbench.core.hashing import digest
from latentbench.core.spec_model import Json

Kind = Literal["model", "tokens", "sae", "loaded_sae", "baseline", "measurement", "subject", "sweep", "study", "shared"]


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
