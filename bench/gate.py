"""The judgement: new runs against the null runs of an accepted baseline, one check a reading. Pure.

Exact where a machine can be exact (status, counts, bits; bytes when all null runs agree), by prediction interval where
it can't (times; bytes that vary). Two-sided: less memory or time is a finding too, it asks for a new baseline.
A reading that is missing, null, zero or not finite never passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench import stats
from bench.readings import EXACT, Family
from bench.run_set import Run
from bench.verdict import Check, Judgement, Policy, Verdict, conclude

# Below this number of null runs neither "they all agree" nor a standard deviation means much.
MIN_NULL_RUNS = 5


@dataclass(frozen=True, kw_only=True)
class Series:
    """One reading over the null runs: ``values`` one a run, None where a run lacks it."""

    family: Family
    unit: str
    values: tuple[Any, ...]
    reason: str | None = None


def series_of(runs: Sequence[Run]) -> dict[str, Series]:
    """Every reading of any run, over all of them."""
    tables = [run.readings for run in runs]
    names = dict.fromkeys(name for table in tables for name in table)
    found = {}
    for name in names:
        readings = [table.get(name) for table in tables]
        first = next(reading for reading in readings if reading is not None)
        reason = next((r.reason for r in readings if r is not None and r.value is None), None)
        values = tuple(None if r is None else r.value for r in readings)
        found[name] = Series(family=first.family, unit=first.unit, values=values, reason=reason)
    return found


def unusable(runs: Sequence[Run]) -> list[Check]:
    """A FAILED check for each run that is not ok and for each record that contradicts itself."""
    found = []
    for run in runs:
        if run.record.status != "ok":
            reason = f"{run.path.name}: {run.record.status}: {run.record.reason}"
            found.append(_failed("run", "status", reason))
        found += [_failed("record", "counts", f"{run.path.name}: {text}") for text in run.problems]
    return found


def _failed(name: str, family: str, reason: str) -> Check:
    return Check(name=name, family=family, unit="", verdict=Verdict.FAILED, rule="valid", reason=reason)


def judge(null: Mapping[str, Series], null_runs: int, runs: Sequence[Run], policy: Policy) -> Judgement:
    """The judgement of ``runs`` of the baseline's cohort against ``null`` (``series_of`` its runs)."""
    broken = unusable(runs)
    if broken:
        return conclude(broken, null_runs=null_runs, new_runs=len(runs), policy=policy)
    new = series_of(runs)
    intervals = [name for name, series in null.items() if _by_interval(series, policy)]
    alpha = policy.alpha / max(1, len(intervals))
    names = dict.fromkeys([*null, *new])
    checks = [_check(name, null.get(name), new.get(name), runs, policy, alpha) for name in names]
    return conclude(checks, null_runs=null_runs, new_runs=len(runs), policy=policy, interval_checks=len(intervals))


def _by_interval(series: Series, policy: Policy) -> bool:
    if series.family in EXACT or series.family not in policy.families or any(v is None for v in series.values):
        return False
    return series.family == "time" or not stats.agree(series.values)


def _check(
    name: str, null: Series | None, new: Series | None, runs: Sequence[Run], policy: Policy, alpha: float
) -> Check:
    """The check of one reading; at least one of ``null`` and ``new`` is there."""
    known = null or new
    assert known is not None
    family, unit = known.family, known.unit
    base: dict[str, Any] = {"name": name, "family": family, "unit": unit}
    if (new is None or _absent(new)) and (null is None or _absent(null)):
        return Check(**base, verdict=Verdict.SHOWN, rule="none", reason=f"not measured: {known.reason}")
    if new is None or (null is not None and not _absent(null) and _bad(new)):
        reason = (new.reason if new else None) or "not in the new runs"
        values = None if null is None else _shown(null.values)
        return _gated(policy, Check(**base, verdict=Verdict.FAILED, rule="present", reason=reason, baseline=values))
    if null is None or _bad(null) or _bad(new):
        reason = "not in the baseline" if null is None or _absent(null) else "missing in some of the null runs"
        check = Check(**base, verdict=Verdict.CALIBRATION_NEEDED, rule="present", reason=reason)
        return _gated(policy, check)
    if family in EXACT:
        return _gated(policy, _exact(base, null, new))
    return _gated(policy, _number(base, null, new, runs, policy, alpha))


def _gated(policy: Policy, check: Check) -> Check:
    """The check as it is, or only shown when its family is not gated; what it would have said stays in the reason."""
    if check.family in policy.families:
        return check
    would = "" if check.verdict in (Verdict.PASS, Verdict.SHOWN) else f"not gated, would be {check.verdict}"
    reason = "; ".join(text for text in (would, check.reason) if text) or "not gated"
    return replace(check, verdict=Verdict.SHOWN, reason=reason)


def _absent(series: Series) -> bool:
    return all(value is None for value in series.values)


def _bad(series: Series) -> bool:
    """Whether a value is missing, or a zero or not finite where only a positive number can be a reading."""
    if series.family in EXACT or series.family == "shown":
        return any(value is None for value in series.values)
    return any(value is None or not math.isfinite(value) or value <= 0 for value in series.values)


def _exact(base: dict[str, Any], null: Series, new: Series) -> Check:
    if not stats.agree(null.values):
        reason = "varies between null runs: not reproducible, so not judged"
        return Check(**base, verdict=Verdict.SHOWN, rule="equal", reason=reason, current=_shown(new.values))
    if len(null.values) < MIN_NULL_RUNS:
        return _too_few(base, null)
    wanted = null.values[0]
    other = next((value for value in new.values if value != wanted), None)
    verdict = Verdict.PASS if other is None else Verdict.REGRESSION
    reason = None if other is None else first_difference(wanted, other)
    return Check(
        **base, verdict=verdict, rule="equal", reason=reason, baseline=_shown(null.values), current=_shown(new.values)
    )  # fmt: skip


def first_difference(wanted: Any, got: Any) -> str:
    """Where two values part: the first entry of lists that differs, else both values."""
    if isinstance(wanted, list | tuple) and isinstance(got, list | tuple):
        for index, (a, b) in enumerate(zip(wanted, got, strict=False)):
            if a != b:
                return f"entry {index}: {a} -> {b}"
        return f"{len(wanted)} entries -> {len(got)}"
    return f"{_short(wanted)} -> {_short(got)}"


def _too_few(base: dict[str, Any], null: Series) -> Check:
    reason = f"{len(null.values)} null runs, need {MIN_NULL_RUNS}"
    return Check(**base, verdict=Verdict.CALIBRATION_NEEDED, rule="null runs", reason=reason)


def _number(
    base: dict[str, Any], null: Series, new: Series, runs: Sequence[Run], policy: Policy, alpha: float
) -> Check:
    if base["family"] == "shown":
        middle = stats.centre(null.values, log=False), stats.centre(new.values, log=False)
        return Check(**base, verdict=Verdict.SHOWN, rule="none", baseline=middle[0], current=middle[1])
    if len(null.values) < MIN_NULL_RUNS:
        return _too_few(base, null)
    if base["family"] != "time" and stats.agree(null.values):
        return _equal_bytes(base, null.values[0], new)
    return _interval(base, null, new, runs, policy, alpha)


def _equal_bytes(base: dict[str, Any], wanted: Any, new: Series) -> Check:
    """Null runs without any spread: one byte more or less is a change of the program."""
    worst = max(new.values, key=lambda value: abs(value - wanted))
    change = float(worst - wanted)
    verdict = Verdict.PASS if change == 0 else Verdict.REGRESSION if change > 0 else Verdict.IMPROVED
    reason = None if change == 0 else f"{change:+,.0f} B where all null runs agree"
    return Check(
        **base, verdict=verdict, rule="equal bytes", reason=reason, baseline=wanted, current=worst, change=change,
        low=wanted, high=wanted, detectable=1.0,
    )  # fmt: skip


def _interval(
    base: dict[str, Any], null: Series, new: Series, runs: Sequence[Run], policy: Policy, alpha: float
) -> Check:
    log, family, future = base["family"] == "time", base["family"], len(new.values)
    middle, current = stats.centre(null.values, log=log), stats.centre(new.values, log=log)
    interval = stats.prediction_interval(null.values, future=future, alpha=alpha, log=log)
    seen = stats.detectable(null.values, future=future, alpha=alpha, log=log)
    smallest = middle * (seen - 1) if log else seen
    percent, least = policy.min_percent.get(family, 0.0), policy.min_excess.get(family, 0.0)
    floor = max(middle * percent / 100, least)
    change = current - middle
    fires = not interval.holds(current) and abs(change) > floor
    verdict = Verdict.PASS if not fires else Verdict.REGRESSION if change > 0 else Verdict.IMPROVED
    reason = f"{100 * change / middle:+.1f} %, outside the interval" if fires else None
    detect = max(smallest, floor)
    if log:
        verdict, reason = _trusted(base["name"], verdict, reason, runs, policy, 100 * detect / middle)
    return Check(
        **base, verdict=verdict, rule="interval", reason=reason, baseline=middle, current=current, change=change,
        low=interval.low, high=interval.high, detectable=detect,
    )  # fmt: skip


def _trusted(
    name: str, verdict: Verdict, reason: str | None, runs: Sequence[Run], policy: Policy, detectable_percent: float
) -> tuple[Verdict, str | None]:
    """Verdict and reason of a time, UNSTEADY where the clock can't be believed."""
    label, _, what = name.rpartition(": ")
    if what == "step":
        summaries = [r.summary for run in runs for own, r in run.parts if own == label]
        if moved := [s.drift for s in summaries if s.steady is False and s.drift is not None]:
            return Verdict.UNSTEADY, f"steps moved by {100 * moved[0]:+.0f} % from the first to the last third"
        if policy.require_steady and any(s.steady is None for s in summaries):
            return Verdict.UNSTEADY, "too few steps to prove that they are steady"
    disturbed = next((lines[0] for run in runs if (lines := run.disturbed)), None)
    if verdict is Verdict.REGRESSION and disturbed:
        return Verdict.UNSTEADY, f"{reason}, but the machine was not ours ({disturbed})"
    limit = policy.max_detectable_percent
    if limit is not None and detectable_percent > limit and verdict is Verdict.PASS:
        return Verdict.UNSTEADY, f"underpowered: could not see less than {detectable_percent:.1f} %, need {limit:g} %"
    return verdict, reason


def _shown(values: Sequence[Any]) -> Any:
    """What a table shows of equal or different values: short ones as they are, long ones by their length."""
    first = values[0]
    if isinstance(first, list | tuple):
        return f"{len(first)} entries"
    return _short(first)


def _short(value: Any) -> Any:
    return value[:12] if isinstance(value, str) and len(value) > 24 else value
