"""What statistics are made of, named without numpy: it takes a tenth of a second, and reading specs needs none of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[np.float64]"
Counts: TypeAlias = "NDArray[np.int64]"

Statistics = Mapping[str, Array]
"""Per-document statistics: name to float64 array [documents]."""
T = TypeVar("T")


class KeptArrays:
    """Arrays by what they were made from: those last used, within a number of bytes, and always the last one."""

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._arrays: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The array, made if it is not kept."""
        if key not in self._arrays:
            self._arrays[key] = make()
            self._bytes += self._arrays[key].nbytes
            while len(self._arrays) > 1 and self._bytes > self._limit:
                self._bytes -= self._arrays.popitem(last=False)[1].nbytes
        self._arrays.move_to_end(key)
        found: T = self._arrays[key]
        return found
