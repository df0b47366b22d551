"""Which ranks share a sample and which share nothing but weights: arithmetic, no processes and no MindSpore.

Ranks form a table of ``data`` rows and ``sequence`` columns. Neighbouring ranks share a sample's tokens, as they sit
on the fastest links: rank = row * sequence + column.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """``ranks`` processes, of which each ``sequence`` neighbours share a sample.

    Raises:
        UserError: ``sequence`` does not divide ``ranks``, or a number is below 1.
    """

    ranks: int
    sequence: int = 1

    def __post_init__(self):
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

    def world(self) -> tuple[int, ...]:
        """All ranks."""
        return tuple(range(self.ranks))

    def _known(self, rank: int) -> int:
        assert 0 <= rank < self.ranks, (rank, self.ranks)
        return rank


def share(total: int, parts: int) -> int:
    """Length of each of ``parts`` equal parts that together hold ``total``; the last ones may be padded."""
    return -(-total // parts)


def held(total: int, parts: int, index: int) -> range:
    """What part ``index`` holds of ``total`` beside its padding: ``share`` long, shorter or empty at the end."""
    length = share(total, parts)
    return range(min(index * length, total), min((index + 1) * length, total))
