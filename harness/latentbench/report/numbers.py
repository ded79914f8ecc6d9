"""Numbers of a page: few digits, because they are shown and many."""

from __future__ import annotations

import math
from typing import overload


@overload
def short(value: float) -> float: ...
@overload
def short(value: float | None) -> float | None: ...
def short(value: float | None) -> float | None:
    """Three significant digits; None for what is missing or not finite, which JSON cannot hold."""
    if value is None or not math.isfinite(value):
        return None
    return int(value) if value == int(value) and abs(value) < 1000 else float(f"{value:.3g}")
