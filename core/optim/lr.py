"""Learning-rate schedules as pure functions of the step: a resumed run needs no state for them. No MindSpore here."""

from __future__ import annotations

import math
from typing import Literal, get_args

Schedule = Literal["constant", "linear", "cosine", "polynomial", "cosine_restarts"]


def learning_rate(
    step: int,
    *,
    base: float,
    schedule: Schedule,
    warmup_steps: int,
    total_steps: int,
    end: float = 0.0,
    power: float = 1.0,
    cycles: int = 1,
) -> float:
    """Rate of optimiser step ``step`` (from 0): linear warm-up to ``base``, then ``schedule`` down to ``end``.

    The first step of a warm-up of n has rate base/n, the n-th has ``base`` (diffusers begins with a step of rate 0).
    ``end`` is reached at step ``total_steps``, the first that is not taken, and kept from there on.

    Args:
        step: optimiser step from 0.
        base: rate after the warm-up.
        schedule: ``constant`` stays at base; ``linear`` and ``cosine`` (half a period) fall to ``end``;
            ``polynomial`` falls as (1 - progress)^power; ``cosine_restarts`` falls ``cycles`` times from base.
        warmup_steps: steps of the warm-up.
        total_steps: steps of the whole run.
        end: rate at the end; not of ``constant``.
        power: of ``polynomial``.
        cycles: of ``cosine_restarts``.

    Raises:
        ValueError: another schedule.
    """
    if schedule not in get_args(Schedule):
        raise ValueError(f"schedule {schedule!r} is unknown; need one of {', '.join(get_args(Schedule))}")
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    if schedule == "constant":
        return base
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if progress >= 1.0:
        return end
    return end + (base - end) * _remaining(progress, schedule, power, cycles)


def _remaining(progress: float, schedule: Schedule, power: float, cycles: int) -> float:
    """Share of the way from ``end`` up to ``base`` that is left at ``progress`` in [0, 1)."""
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "polynomial":
        return (1.0 - progress) ** power
    phase = progress if schedule == "cosine" else (progress * cycles) % 1.0
    return 0.5 * (1.0 + math.cos(math.pi * phase))
