"""How an autointerp score is made, as numbers that travel together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HardNegatives = Literal["none", "same_token", "neighbours"]


@dataclass(frozen=True)
class Protocol:
    """Sizes of everything asked about one latent."""

    latents: int
    explain: int
    """Windows with the latent that it is explained from; as many without it are there for judges that learn."""
    test: int
    """Windows with the latent that are asked about, and as many without it."""
    radius: int
    """Tokens on either side of the strongest."""
    quantiles: int
    """Equal parts of the activation distribution that examples are taken from evenly."""
    hard_negatives: HardNegatives

    @property
    def window(self) -> int:
        """Tokens of a window."""
        return 2 * self.radius + 1

    @property
    def fuzzed(self) -> int:
        """Wrongly marked windows in the fuzzing test; as many are without the latent, twice as many rightly marked."""
        return self.test // 3

    @property
    def reservoir(self) -> int:
        """Windows kept per latent and side: several times what is used, because equal and overlapping texts are left out."""
        return 4 * max(self.explain, self.test)
