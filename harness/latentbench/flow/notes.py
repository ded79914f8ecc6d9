"""What people read beside a latent: an explanation and the tokens it fires on most."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Note:
    """About one latent."""

    explanation: str | None = None
    tokens: tuple[str, ...] = ()
    """Texts of the tokens it is most active on, strongest first."""
