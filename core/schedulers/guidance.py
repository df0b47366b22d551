"""Classifier-free guidance (arXiv:2207.12598) and CogVideoX's dynamic scale."""

from __future__ import annotations

import math
from typing import Any


def dynamic_guidance_scale(guidance_scale: float, timestep: int, num_inference_steps: int) -> float:
    """Scale at one step: 1 + s (1 - cos(pi ((n - t) / n)^5)) / 2, between 1 and 1 + s.

    Published code puts the time step t (999 ... 0) where a step number (0 ... n - 1) would be expected, so the base is
    negative while t > n and the scale jumps about instead of rising; reproduced as it is, because published videos
    were made so (docs/design/004).
    """
    base = (num_inference_steps - int(timestep)) / num_inference_steps
    return 1.0 + guidance_scale * (1.0 - math.cos(math.pi * base**5.0)) / 2.0


def guided(unconditional: Any, conditional: Any, guidance_scale: float) -> Any:
    """``unconditional + scale (conditional - unconditional)``; shapes unchanged."""
    return unconditional + guidance_scale * (conditional - unconditional)
