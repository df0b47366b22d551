"""Two sets of runs side by side: ratios with intervals by Welch's t, exact readings by equality. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench import stats
from bench.cohort import Cohort, differences
from bench.gate import Series, first_difference, series_of, unusable
from bench.readings import EXACT
from bench.run_set import Run
from bench.verdict import Check, Judgement, Policy, Verdict, conclude

_NUMBERS = ("time", "bytes", "rss")


def compare(a: Sequence[Run], b: Sequence[Run], across: Sequence[str], policy: Policy) -> Judgement:
    """The judgement of ``b`` against ``a``.

    ``across`` names the parts of the cohort (recipe, hardware, software) that differ on purpose; any other difference
    is RECIPE_MISMATCH, since a ratio over it would be credited to the wrong cause. Across recipes counts and bits are
    only shown: another experiment has others.
    """
    broken = unusable([*a, *b])
    checks = broken or cohort_checks(a[0].cohort, b[0].cohort, across)
    intervals = 0
    if not broken:
        first, second = series_of(a), series_of(b)
        intervals = sum(_by_interval(series, second.get(name)) for name, series in first.items())
        alpha = policy.alpha / max(1, intervals)
        names = dict.fromkeys([*first, *second])
        checks += [_check(name, first.get(name), second.get(name), "recipe" in across, policy, alpha) for name in names]
    return conclude(checks, null_runs=len(a), new_runs=len(b), policy=policy, interval_checks=intervals)


def cohort_checks(a: Cohort, b: Cohort, across: Sequence[str]) -> list[Check]:
    """One RECIPE_MISMATCH for each part of the cohort that differs and is not in ``across``."""
    found = differences(a, b)
    checks = []
    for part in ("recipe", "hardware", "software"):
        lines = [line for line in found if line.split(":")[0].split(".")[0] == part]
        if lines and part not in across:
            reason = f"{'; '.join(lines[:3])}: if that is meant, give --across {part}"
            checks.append(
                Check(
                    name=part, family="status", unit="", verdict=Verdict.RECIPE_MISMATCH, rule="cohort", reason=reason
                )
            )
    return checks


def _by_interval(a: Series, b: Series | None) -> bool:
    if a.family not in _NUMBERS or b is None or None in a.values or None in b.values:
        return False
    return a.family == "time" or not stats.agree((*a.values, *b.values))


def _check(name: str, a: Series | None, b: Series | None, other_recipe: bool, policy: Policy, alpha: float) -> Check:
    known = a or b
    assert known is not None
    base: dict[str, Any] = {"name": name, "family": known.family, "unit": known.unit}
    there = [side is not None and all(value is not None for value in side.values) for side in (a, b)]
    if not all(there) or a is None or b is None:
        return _missing(base, a, b, there, other_recipe)
    if known.family in EXACT:
        return _exact(base, a, b, other_recipe)
    if known.family not in _NUMBERS:
        return _shown(base, a, b)
    return _number(base, a, b, policy, alpha)


def _missing(base: dict[str, Any], a: Series | None, b: Series | None, there: list[bool], other: bool) -> Check:
    reason = next((side.reason for side in (a, b) if side is not None and side.reason), "not in all runs")
    if not any(there) or other:
        return Check(**base, verdict=Verdict.SHOWN, rule="none", reason=f"not measured: {reason}")
    side = "A" if not there[0] else "B"
    return Check(**base, verdict=Verdict.FAILED, rule="present", reason=f"missing in {side}: {reason}")


def _exact(base: dict[str, Any], a: Series, b: Series, other_recipe: bool) -> Check:
    wanted, got = a.values[0], next((v for v in b.values if v != a.values[0]), b.values[0])
    if not stats.agree(a.values):
        return Check(**base, verdict=Verdict.SHOWN, rule="equal", reason="differs among the runs of A")
    if wanted == got:
        return Check(**base, verdict=Verdict.PASS, rule="equal")
    verdict = Verdict.SHOWN if other_recipe else Verdict.REGRESSION
    return Check(**base, verdict=verdict, rule="equal", reason=first_difference(wanted, got))


def _shown(base: dict[str, Any], a: Series, b: Series) -> Check:
    middles = stats.centre(a.values, log=False), stats.centre(b.values, log=False)
    return Check(**base, verdict=Verdict.SHOWN, rule="none", baseline=middles[0], current=middles[1])


def _number(base: dict[str, Any], a: Series, b: Series, policy: Policy, alpha: float) -> Check:
    if base["family"] != "time" and stats.agree((*a.values, *b.values)):
        return Check(**base, verdict=Verdict.PASS, rule="equal bytes", baseline=a.values[0], current=b.values[0])
    found = stats.difference(a.values, b.values, alpha=alpha)
    middle, current = stats.centre(a.values, log=True), stats.centre(b.values, log=True)
    change = current - middle
    base |= {"baseline": middle, "current": current, "change": change, "rule": "interval"}
    if found.interval is None or found.detectable is None:
        reason = f"{len(a.values)} and {len(b.values)} runs, need 2 on one side for an interval"
        return Check(**base, verdict=Verdict.UNSTEADY, reason=reason)
    floor = max(middle * policy.min_percent[base["family"]] / 100, policy.min_excess[base["family"]])
    differs = not found.interval.holds(1.0) and abs(change) > floor
    verdict = Verdict.PASS if not differs else Verdict.REGRESSION if change > 0 else Verdict.IMPROVED
    shown = f"ratio {found.ratio:.3f}, interval {found.interval.low:.3f} to {found.interval.high:.3f}"
    return Check(
        **base, verdict=verdict, reason=shown, low=middle * found.interval.low, high=middle * found.interval.high,
        detectable=max(middle * (found.detectable - 1), floor),
    )  # fmt: skip
