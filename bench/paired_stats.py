"""The ratio of a pair and its interval, without assuming how times are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Median of paired ratios and an interval that holds the true median with at least ``confidence``.

    ``count``: pairs, or sessions where there are several.
    """

    median: float
    low: float
    high: float
    confidence: float
    count: int


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Ours over theirs, call by call: below 1, ours is the faster one.

    The interval is between two order statistics of the ratios, chosen so that a fair coin's tosses lie between them
    with at least 95 % (the sign test turned round); six pairs are the fewest that have one.

    Raises:
        ValueError: different numbers of calls, fewer than six, or a time that is not positive.
    """
    if len(ours) != len(theirs) or len(ours) < 6:
        raise ValueError(f"got {len(ours)} and {len(theirs)} calls, need the same number from 6")
    if min(*ours, *theirs) <= 0:
        raise ValueError("got a time of 0 or less")
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    rank, confidence = interval_rank(len(ratios))
    return Ratio(
        median=median(ratios), low=ratios[rank], high=ratios[-1 - rank], confidence=confidence, count=len(ratios)
    )


def interval_rank(count: int, confidence: float = CONFIDENCE) -> tuple[int, float]:
    """How many values to leave out at each end of ``count``, and the confidence that leaves (12 -> 2, 0.961...)."""
    best = (0, 1.0 - 2.0 * 0.5**count)
    tail = 0.0
    for rank in range(count // 2):
        tail += comb(count, rank) * 0.5**count
        if 1.0 - 2.0 * tail < confidence:
            break
        best = (rank, 1.0 - 2.0 * tail)
    return best


def over_sessions(ratios: Sequence[Ratio]) -> Ratio:
    """One session's ratio as it is; of several the median of their medians and the whole range.

    Processes differ by more than the calls of one process do (memory layout, where threads landed), so sessions are
    the unit where there are several; their number is too small for a confidence, which is the range's chance of
    covering the median.
    """
    if len(ratios) == 1:
        return ratios[0]
    medians = [r.median for r in ratios]
    return Ratio(
        median=median(medians), low=min(medians), high=max(medians), confidence=1.0 - 2.0 * 0.5 ** len(medians),
        count=len(medians),
    )  # fmt: skip
