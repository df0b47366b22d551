"""Statistics of process runs. Pure: numbers in, numbers out. The unit is the run, one number each, never a step.

Steps of one process share its memory layout, its threads' placement and its minute on the machine; taking them for
independent samples makes identical runs look different (design 013). Times are compared as logarithms: they are
positive, their noise is a factor, and a change of them is a ratio.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

# Share of true changes of the size called "minimum detectable" that the interval would notice.
POWER = 0.80


@dataclass(frozen=True, kw_only=True)
class Interval:
    """From ``low`` to ``high``, in the unit of the values."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies inside, the ends included."""
        return self.low <= value <= self.high


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Runs of one cohort: ``relative_sd`` is the standard deviation of the logarithms, null below two runs."""

    runs: int
    median: float
    low: float
    high: float
    relative_sd: float | None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of B against A: ``ratio`` B/A with its interval, and the smallest ratio above 1 that could have been seen."""

    ratio: float
    interval: Interval | None
    detectable: float | None


def spread(values: Sequence[float]) -> Spread:
    """Median, range and relative standard deviation of positive ``values``, one a run."""
    _positive(values)
    logs = [math.log(v) for v in values]
    sd = stdev(logs) if len(logs) > 1 else None
    return Spread(runs=len(values), median=median(values), low=min(values), high=max(values), relative_sd=sd)


def within_run(runs: Sequence[Sequence[float]]) -> float | None:
    """Pooled standard deviation of the logarithms of the steps inside each run; None without two steps in one run."""
    squares, freedom = 0.0, 0
    for steps in runs:
        if len(steps) > 1:
            logs = [math.log(s) for s in steps]
            squares, freedom = squares + stdev(logs) ** 2 * (len(logs) - 1), freedom + len(logs) - 1
    return math.sqrt(squares / freedom) if freedom else None


def centre(values: Sequence[float], *, log: bool) -> float:
    """The mean, or with ``log`` the geometric mean: what ``prediction_interval`` is drawn around."""
    return math.exp(fmean(map(math.log, values))) if log else fmean(values)


def prediction_interval(values: Sequence[float], *, future: int, alpha: float, log: bool) -> Interval:
    """Where ``centre`` of ``future`` further runs of the same cohort falls, except with probability ``alpha``.

    ``values``: one number a run (the median of its steps), at least two, taken as normal or with ``log`` as
    log-normal: mean +- t(1 - alpha/2, n-1) * s * sqrt(1/n + 1/future). Hahn & Meeker, Statistical Intervals, ch. 4.
    """
    middle, half = _half_width(values, future, log, _quantile(len(values) - 1, 1 - alpha / 2))
    return _back(middle - half, middle + half, log)


def detectable(values: Sequence[float], *, future: int, alpha: float, log: bool, power: float = POWER) -> float:
    """The smallest true increase that ``prediction_interval`` would notice in a share ``power`` of the cases.

    With ``log`` as a ratio (1.04: four per cent), else in the unit of ``values``. The statistic is non-central t when
    the new runs are shifted, and the spread of the null runs is taken for the true one.
    """
    from scipy.special import nctdtrinc  # noqa: PLC0415 - see _quantile

    freedom = len(values) - 1
    shift = float(nctdtrinc(freedom, 1 - power, _quantile(freedom, 1 - alpha / 2)))
    _, distance = _half_width(values, future, log, shift)
    return _exp(distance) if log else distance


def difference(a: Sequence[float], b: Sequence[float], *, alpha: float) -> Difference:
    """Of positive ``b`` against ``a`` (one number a run), by Welch's t on logarithms.

    Welch (1947): degrees of freedom after Satterthwaite, no assumption that both sides vary equally. Where one side is
    a single run, the deviation of the other stands for both; with a single run on each side there is no interval.
    """
    ratio = centre(b, log=True) / centre(a, log=True)
    several = [side for side in (a, b) if len(side) > 1]
    if not several:
        return Difference(ratio=ratio, interval=None, detectable=None)
    squares = [stdev([math.log(v) for v in side]) ** 2 for side in several]
    if len(several) == 1:
        error, freedom = math.sqrt(squares[0] * (1 / len(a) + 1 / len(b))), len(several[0]) - 1.0
    else:
        parts = [square / len(side) for square, side in zip(squares, several, strict=True)]
        error = math.sqrt(sum(parts))
        spread_of_parts = sum(part**2 / (len(side) - 1) for part, side in zip(parts, several, strict=True))
        freedom = sum(parts) ** 2 / spread_of_parts if error else 1.0
    if error == 0:
        return Difference(ratio=ratio, interval=Interval(low=ratio, high=ratio), detectable=1.0)
    from scipy.special import nctdtrinc  # noqa: PLC0415 - see _quantile

    t = _quantile(freedom, 1 - alpha / 2)
    smallest = _exp(error * float(nctdtrinc(freedom, 1 - POWER, t)))
    low, high = ratio * math.exp(-t * error), ratio * _exp(t * error)
    return Difference(ratio=ratio, interval=Interval(low=low, high=high), detectable=smallest)


def agree(values: Sequence[object]) -> bool:
    """Zero spread: every run gave the same value, so the next one has to give it too."""
    return all(value == values[0] for value in values[1:])


def thirds(seconds: Sequence[float], least: int) -> tuple[float, float] | None:
    """Medians of the first and of the last third of the steps; None below ``least``: neither steady nor unsteady."""
    third = len(seconds) // 3
    return None if len(seconds) < least else (median(seconds[:third]), median(seconds[-third:]))


def _half_width(values: Sequence[float], future: int, log: bool, factor: float) -> tuple[float, float]:
    if len(values) < 2 or future < 1:
        raise ValueError(f"got {len(values)} null runs and {future} new ones, need at least 2 and 1: run more")
    if log:
        _positive(values)
        values = [math.log(v) for v in values]
    return fmean(values), factor * stdev(values) * math.sqrt(1 / len(values) + 1 / future)


def _back(low: float, high: float, log: bool) -> Interval:
    return Interval(low=math.exp(low), high=_exp(high)) if log else Interval(low=low, high=high)


def _exp(value: float) -> float:
    # Two or three noisy runs can ask for more than a float holds; such an interval holds everything.
    return math.exp(min(value, 700.0))


def _positive(values: Sequence[float]) -> None:
    if not values or not all(math.isfinite(v) and v > 0 for v in values):
        raise ValueError(f"got {list(values)}, need finite numbers above 0: a reading of 0 is a missing one")


def _quantile(freedom: float, probability: float) -> float:
    # scipy loads NumPy (0.2 s), which `cogbench check` must not pay for.
    from scipy.special import stdtrit  # noqa: PLC0415

    return float(stdtrit(freedom, probability))
