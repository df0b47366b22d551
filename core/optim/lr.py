"""Learning-rate schedules as pure functions of the step. No MindSpore here."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def learning_rate(step: int, *, base: float, schedule: Schedule, warmup_steps: int, total_steps: int) -> float:
    """Rate of optimiser step ``step`` (from 0): linear warm-up to ``base``, then constant or decay to 0 at the end.

    The first step of a warm-up of n has rate base/n, the n-th has ``base``.
    """
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    if schedule == "constant":
        return base
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "linear":
        return base * max(0.0, 1.0 - progress)
    return base * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
