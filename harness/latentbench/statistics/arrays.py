"""What statistics are made of, named without numpy: it takes a tenth of a second, and reading specs needs none of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[np.float64]"
Counts: TypeAlias = "NDArray[np.int64]"

Statistics = Mapping[str, Array]
"""Per-document statistics: name to float64 array [documents]."""
