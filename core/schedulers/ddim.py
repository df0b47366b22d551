"""DDIM as CogVideoX uses it (arXiv:2010.02502 with no added noise)."""

from __future__ import annotations

import math
from typing import Any

from core.schedulers.base import Scheduler


class CogVideoXDDIMScheduler(Scheduler):
    """Deterministic sampler; same config and arithmetic as diffusers' class of this name."""

    def step(self, model_output: Any, timestep: int, sample: Any, *, eta: float = 0.0) -> tuple[Any, Any]:
        """One step down: ``model_output``, ``sample [B, ...]`` -> ``(prev_sample, pred_original_sample)``.

        ``eta`` is accepted and has no effect, as in the published code.

        Raises:
            UserError: no steps chosen, a time step that is not on an explicit list, noise prediction at zero SNR.
        """
        timestep = int(timestep)
        now, after = self.alpha(timestep), self.alpha(self.previous_timestep(timestep))
        pred_original = self.pred_original(model_output, timestep, sample)
        keep = math.sqrt((1.0 - after) / (1.0 - now))
        prev_sample = keep * sample + (math.sqrt(after) - math.sqrt(now) * keep) * pred_original
        return prev_sample, pred_original
