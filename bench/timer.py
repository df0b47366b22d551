"""From steps to a summary: which steps count, their medians, and whether the steps had settled."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from bench.record_parts import Step, Summary
from bench.stats import thirds

# A step with one of these tags did more than a step's work: left out of the statistics, counted in steps_excluded.
EXCLUDED_TAGS = frozenset({"compile", "warmup", "gc", "checkpoint", "eval", "sample"})
# Medians of the first and the last third of the counted steps may differ by this share of the overall median.
MAX_DRIFT = 0.10
# Below three steps per third a median is one step's luck.
MIN_STEPS_FOR_STEADY = 9
_RATES = ("samples", "frames", "tokens")


def summarize(
    steps: Sequence[Step], *, cards: int | None, no_cards_reason: str, dealt: bool = False
) -> tuple[Summary, dict[str, str]]:
    """Summary of ``steps`` and the reason of each null in it, keyed ``summary.<field>``.

    ``cards`` divides the rates; None (no accelerator took part) makes the per-card rates null for ``no_cards_reason``.
    ``dealt``: each step is one rank's own, so that its rate is one card's and the run's is not known from steps.
    """
    counted = [s for s in steps if not EXCLUDED_TAGS & set(s.tags) and s.seconds > 0]
    values: dict = {"steps_counted": len(counted), "steps_excluded": len(steps) - len(counted)}
    reasons: dict[str, str] = {}
    if not counted:
        reason = "the run reported no steps" if not steps else "every step carries an excluded tag"
        fields = [f for f in Summary.model_fields if f not in values]
        return Summary(**values), {f"summary.{f}": reason for f in fields}
    seconds = [s.seconds for s in counted]
    values |= {
        "step_seconds_median": median(seconds),
        "step_seconds_min": min(seconds),
        "step_seconds_max": max(seconds),
    }
    for what in _RATES:
        found, why = _rate(counted, what, 1 if dealt and cards else cards, no_cards_reason)
        if dealt and found.pop(f"{what}_per_second", None):
            why[f"summary.{what}_per_second"] = "the steps were dealt to several ranks: each is one rank's own"
        values |= found
        reasons |= why
    _steadiness(seconds, values, reasons)
    return Summary(**values), reasons


def _rate(counted: list[Step], what: str, cards: int | None, no_cards_reason: str) -> tuple[dict, dict[str, str]]:
    """Rates of ``what`` that can be given, and reasons of those that can't."""
    per_second, per_card = f"{what}_per_second", f"{what}_per_second_per_card"
    amounts = [getattr(s, what) for s in counted]
    if not all(amounts):
        reason = f"{sum(map(bool, amounts))} of {len(amounts)} counted steps say how many {what} they processed"
        return {}, {f"summary.{per_second}": reason, f"summary.{per_card}": reason}
    rate = median(a / s.seconds for a, s in zip(amounts, counted, strict=True))
    if not cards:
        return {per_second: rate}, {f"summary.{per_card}": no_cards_reason}
    return {per_second: rate, per_card: rate / cards}, {}


def _steadiness(seconds: list[float], values: dict, reasons: dict) -> None:
    found = thirds(seconds, MIN_STEPS_FOR_STEADY)
    if found is None:
        reason = f"needs {MIN_STEPS_FOR_STEADY} counted steps, got {len(seconds)}"
        for field in ("first_third_seconds", "last_third_seconds", "drift", "steady"):
            reasons[f"summary.{field}"] = reason
        return
    first, last = found
    drift = (last - first) / values["step_seconds_median"]
    values |= {
        "first_third_seconds": first,
        "last_third_seconds": last,
        "drift": drift,
        "steady": abs(drift) <= MAX_DRIFT,
    }


def compile_seconds(steps: Sequence[Step], stages: Sequence) -> tuple[float | None, str | None]:
    """Seconds of steps tagged ``compile`` (their own work included) and stages named so, or why there are none."""
    total = sum(s.seconds for s in steps if "compile" in s.tags)
    total += sum(s.seconds for s in stages if s.name.rsplit("/", 1)[-1] == "compile")
    return (total, None) if total > 0 else (None, "no step or stage was tagged compile")


def first_not_finite(steps: Sequence[Step]) -> str | None:
    """``"loss is nan at step 3"`` for the first step whose loss is not a finite number, else None."""
    for step in steps:
        if step.loss is None and step.loss_hex is not None:
            return f"loss is {step.loss_hex} at step {step.index}"
    return None
