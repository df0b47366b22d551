"""Achieved FLOP/s of a run, and its share of a rate of matrix products that the same run measured (MFU, HFU)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from bench.record_parts import Step
from bench.timer import EXCLUDED_TAGS

_NO_PEAK = "no peak was measured in this run: set runtime.measure_peak"
_UNITS = {
    "model_flops_per_step": "FLOP",
    "model_flops_per_second": "FLOP/s",
    "hardware_flops_per_second": "FLOP/s",
    "model_flops_per_second_per_card": "FLOP/s",
    "gemm_peak": "FLOP/s",
    "mfu": "1",
    "hfu": "1",
}


def metrics_of(
    steps: Sequence[Step], roofline: dict[str, Any] | None, *, cards: int | None
) -> dict[str, dict[str, Any]]:
    """Metrics by name, each null with its reason; empty for runs whose steps carry no FLOPs.

    Rates are medians over the counted steps. Model FLOPs give MFU, hardware FLOPs (with recomputation) HFU. The peak
    is that of one process; with several cards it counts for each.
    """
    if not any("model_flops" in step.extra for step in steps):
        return {}
    counted = [s for s in steps if not EXCLUDED_TAGS & set(s.tags) and s.seconds > 0 and "model_flops" in s.extra]
    values: dict[str, float | None] = dict.fromkeys(_UNITS)
    reasons = dict.fromkeys(_UNITS, "every step carries an excluded tag")
    peak = (roofline or {}).get("peak_flops_per_second")
    values["gemm_peak"], reasons["gemm_peak"] = peak, (roofline or {}).get("reason") or _NO_PEAK
    if counted:
        model = median(s.extra["model_flops"] / s.seconds for s in counted)
        hardware = median(s.extra["hardware_flops"] / s.seconds for s in counted)
        values |= {"model_flops_per_step": median(s.extra["model_flops"] for s in counted)}
        values |= {"model_flops_per_second": model, "hardware_flops_per_second": hardware}
        reasons["model_flops_per_second_per_card"] = "ran on the CPU: there is no card"
        reasons["mfu"] = reasons["hfu"] = reasons["gemm_peak"]
        if cards:
            values["model_flops_per_second_per_card"] = model / cards
        if peak:
            values |= {"mfu": model / (peak * (cards or 1)), "hfu": hardware / (peak * (cards or 1))}
    return {
        name: {"value": value, "unit": _UNITS[name], "reason": reasons[name] if value is None else None}
        for name, value in values.items()
    }
