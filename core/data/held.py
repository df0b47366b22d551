"""Files that stay in memory once they were read, up to a number of bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

_T = TypeVar("_T")


class Held:
    """What ``read(path)`` returned, a dataclass with arrays, as long as all that is held has at most ``budget`` bytes.

    What came first stays: samples come in a new order in each epoch, so whichever files are held serve an equal share.
    """

    def __init__(self, budget: int):
        self.budget, self.bytes = budget, 0
        self._found: dict[Path, Any] = {}

    def __call__(self, read: Callable[[Path], _T], path: Path) -> _T:
        found = self._found.get(path)
        if found is None:
            found = read(path)
            size = _bytes_of(found)
            if self.bytes + size <= self.budget:
                self.bytes += size
                self._found[path] = found
        return found


def _bytes_of(found: Any) -> int:
    values = (getattr(found, field.name) for field in fields(found))
    return sum(value.nbytes for value in values if isinstance(value, np.ndarray))
