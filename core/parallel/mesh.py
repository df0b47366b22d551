"""Which ranks share a sample and which share nothing but weights: arithmetic, no processes and no MindSpore.

Ranks form a table of ``data`` rows and ``sequence`` columns. Neighbouring ranks share a sample's tokens, as they sit
on the fastest links: rank = row * sequence + column.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """``ranks`` processes, of which each ``sequence`` neighbours share a sample, and each ``zero`` what ZeRO cuts.

    The two are independent: gradients are summed over all processes, whoever shares a sample. ``zero`` None is all.

    Raises:
        UserError: ``sequence`` or ``zero`` does not divide ``ranks``, or a number is below 1.
    """

    ranks: int
    sequence: int = 1
    zero: int | None = None

    def __post_init__(self):
        if self.zero is not None and (self.zero < 1 or self.ranks % self.zero):
            raise UserError(
                f"parallel.zero_ranks: got {self.zero} for {self.ranks} processes, need a divisor of runtime.workers"
            )
        if self.ranks < 1 or self.sequence < 1 or self.ranks % self.sequence:
            raise UserError(
                f"parallel.sequence_parallel: got {self.sequence} for {self.ranks} processes, need a divisor of "
                "runtime.workers"
            )

    @property
    def data(self) -> int:
        """Number of sequence groups: that many samples are worked on at a time."""
        return self.ranks // self.sequence

    def row(self, rank: int) -> int:
        """The sequence group of ``rank``, which is its number as a data-parallel rank."""
        return self._known(rank) // self.sequence

    def column(self, rank: int) -> int:
        """The place of ``rank`` in its sequence group: which part of the tokens it holds."""
        return self._known(rank) % self.sequence

    def sequence_group(self, rank: int) -> tuple[int, ...]:
        """Ranks that work on the same sample as ``rank``, in the order of its tokens."""
        first = self.row(rank) * self.sequence
        return tuple(range(first, first + self.sequence))

    def data_group(self, rank: int) -> tuple[int, ...]:
        """Ranks that hold the same part of the tokens as ``rank``, of other samples."""
        return tuple(range(self.column(rank), self.ranks, self.sequence))

    def zero_group(self, rank: int) -> tuple[int, ...]:
        """Neighbours of ``rank`` that together hold every part once."""
        size = self.zero or self.ranks
        first = self._known(rank) // size * size
        return tuple(range(first, first + size))

    def replica_group(self, rank: int) -> tuple[int, ...]:
        """Ranks, one of each ``zero_group``, that hold the same parts as ``rank``."""
        size = self.zero or self.ranks
        return tuple(range(self._known(rank) % size, self.ranks, size))

    def world(self) -> tuple[int, ...]:
        """All ranks."""
        return tuple(range(self.ranks))

    def _known(self, rank: int) -> int:
        assert 0 <= rank < self.ranks, (rank, self.ranks)
        return rank


def share(total: int, parts: int) -> int:
    """Length of each of ``parts`` equal parts that together hold ``total``; the last ones may be padded."""
    return -(-total // parts)


def rows_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a tensor that is cut between rows: without leading ones, as long as there are two dimensions."""
    shape = shape or (1,)
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return shape


def part_shape(shape: tuple[int, ...], parts: int) -> tuple[int, ...]:
    """Shape of one of ``parts`` equal parts of a tensor, rows of padding included."""
    rows, *rest = rows_shape(shape)
    return (share(rows, parts), *rest)


def part_size(shape: tuple[int, ...], parts: int) -> int:
    """Elements of such a part."""
    return math.prod(part_shape(shape, parts))


def held(total: int, parts: int, index: int) -> range:
    """What part ``index`` holds of ``total`` beside its padding: ``share`` long, shorter or empty at the end."""
    length = share(total, parts)
    return range(min(index * length, total), min((index + 1) * length, total))
