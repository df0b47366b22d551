"""How a tensor is cut into equal parts between its rows, one for each of several processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import mint

from core.parallel.mesh import held, part_shape, part_size, rows_shape


@dataclass(frozen=True)
class Cut:
    """How a tensor of ``shape`` is cut into ``parts``."""

    shape: tuple[int, ...]
    parts: int

    @property
    def rows_shape(self) -> tuple[int, ...]:
        """The shape without leading ones, two dimensions at least where there were."""
        return rows_shape(self.shape)

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Shape of a part, padding included."""
        return part_shape(self.shape, self.parts)

    @property
    def part_size(self) -> int:
        """Elements of a part, padding included."""
        return part_size(self.shape, self.parts)

    @property
    def padded(self) -> bool:
        """Whether the last parts have rows of padding."""
        return self.part_shape[0] * self.parts != self.rows_shape[0]

    def valid(self, index: int) -> np.ndarray:
        """``[rows of a part]``: 1 for the rows that part ``index`` holds, 0 for padding."""
        count = len(held(self.rows_shape[0], self.parts, index))
        return (np.arange(self.part_shape[0]) < count).astype(np.float32)

    def part(self, whole: np.ndarray, index: int) -> np.ndarray:
        """Part ``index`` of an array, padded with zeros."""
        rows = np.asarray(whole).reshape(self.rows_shape)
        return self.part_of(lambda start, stop: rows[start:stop], index)

    def part_of(self, rows: Callable[[int, int], np.ndarray], index: int) -> np.ndarray:
        """The same where ``rows(start, stop)`` gives rows of ``rows_shape``."""
        mine = held(self.rows_shape[0], self.parts, index)
        out = np.zeros(self.part_shape, np.float32)
        if len(mine):
            out[: len(mine)] = rows(mine.start, mine.stop)
        return out

    def spread(self, whole: Any) -> Any:
        """A tensor -> ``[parts, part_size]``, row i for process i."""
        rows, padded = self.rows_shape[0], self.part_shape[0] * self.parts
        flat = whole.reshape(rows, -1)
        if padded != rows:
            flat = mint.cat((flat, mint.zeros((padded - rows, flat.shape[1]), dtype=flat.dtype)), dim=0)
        return flat.reshape(self.parts, self.part_size)

    def assembled(self, parts: Any) -> Any:
        """``[parts, part_size]`` -> the tensor."""
        return parts.reshape(self.part_shape[0] * self.parts, -1)[: self.rows_shape[0]].reshape(self.shape)
