"""Which parameters weight decay applies to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

DecayPolicy = Literal["all", "matrices"]


def decay_mask(parameters: Sequence[Any], policy: DecayPolicy) -> list[bool]:
    """Whether each parameter decays: ``all`` of them, or those of two or more dimensions (not biases and norms).

    Raises:
        ValueError: another policy.
    """
    if policy not in ("all", "matrices"):
        raise ValueError(f"weight decay policy {policy!r} is unknown; need one of all, matrices")
    return [policy == "all" or len(parameter.shape) >= 2 for parameter in parameters]
