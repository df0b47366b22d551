"""The vocabulary of a judgement: verdicts, what is judged how strictly, one check, and the verdict of many. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from bench.codes import FAILED, MISMATCH, NO_BASELINE, PASS, UNSTEADY
from bench.readings import FAMILIES


class Verdict(StrEnum):
    """What a check or a whole gate says; ``SHOWN`` is for readings that are reported and not judged."""

    PASS = "PASS"
    REGRESSION = "REGRESSION"
    IMPROVED = "IMPROVED"
    CALIBRATION_NEEDED = "CALIBRATION_NEEDED"
    RECIPE_MISMATCH = "RECIPE_MISMATCH"
    FAILED = "FAILED"
    UNSTEADY = "UNSTEADY"
    SHOWN = "SHOWN"


# The first of these that any check has is the verdict of the gate.
_PRECEDENCE = (
    Verdict.FAILED,
    Verdict.RECIPE_MISMATCH,
    Verdict.REGRESSION,
    Verdict.CALIBRATION_NEEDED,
    Verdict.UNSTEADY,
    Verdict.IMPROVED,
    Verdict.PASS,
)
EXIT_CODES = {
    Verdict.PASS: PASS,
    Verdict.REGRESSION: MISMATCH,
    # The baseline no longer describes the code, so the next loss of what was gained would pass unseen.
    Verdict.IMPROVED: MISMATCH,
    Verdict.RECIPE_MISMATCH: MISMATCH,
    Verdict.CALIBRATION_NEEDED: NO_BASELINE,
    Verdict.FAILED: FAILED,
    Verdict.UNSTEADY: UNSTEADY,
}


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What is judged and how strictly.

    ``alpha``: chance that a gate with nothing wrong fires in one of its interval checks, which share it evenly.
    A change must leave the interval AND exceed both the percentage and the absolute excess of its family.
    ``max_detectable_percent``: a time check that could not see less than this is underpowered.
    """

    families: frozenset[str] = frozenset(FAMILIES)
    alpha: float = 0.01
    min_percent: Mapping[str, float] = field(default_factory=lambda: {"time": 2.0, "bytes": 0.5, "rss": 1.0})
    min_excess: Mapping[str, float] = field(default_factory=lambda: {"time": 0.002, "bytes": 2**20, "rss": 16 * 2**20})
    require_steady: bool = False
    max_detectable_percent: float | None = None


@dataclass(frozen=True, kw_only=True)
class Check:
    """One judged reading. ``low``/``high``: the interval; ``detectable``: the smallest increase it would notice."""

    name: str
    family: str
    unit: str
    verdict: Verdict
    rule: str
    reason: str | None = None
    baseline: Any = None
    current: Any = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    detectable: float | None = None


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The verdict, every check, and how many null and new runs it rests on."""

    verdict: Verdict
    reason: str
    checks: tuple[Check, ...] = ()
    null_runs: int = 0
    new_runs: int = 0
    alpha: float = 0.0
    interval_checks: int = 0


def conclude(
    checks: Sequence[Check], *, null_runs: int, new_runs: int, policy: Policy, interval_checks: int = 0
) -> Judgement:
    """The gate's verdict from its checks: the gravest; CALIBRATION_NEEDED when nothing was judged at all."""
    verdict = next((v for v in _PRECEDENCE if any(c.verdict is v for c in checks)), Verdict.CALIBRATION_NEEDED)
    having = [check for check in checks if check.verdict is verdict]
    if not having:
        reason = "nothing could be judged: no reading of the gated families is in both the baseline and the runs"
    elif verdict is Verdict.PASS:
        reason = f"{len(having)} checks"
    else:
        named = [f"{c.name} ({c.reason})" if c.reason else c.name for c in having[:3]]
        reason = "; ".join(named) + (f"; and {len(having) - 3} more" if len(having) > 3 else "")
    return Judgement(
        verdict=verdict, reason=reason, checks=tuple(checks), null_runs=null_runs, new_runs=new_runs,
        alpha=policy.alpha, interval_checks=interval_checks,
    )  # fmt: skip
