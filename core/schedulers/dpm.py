"""DPM-Solver++ 2M in its stochastic form (arXiv:2211.01095), as CogVideoX defines it.

lambda = log(sqrt(a / (1 - a))) is half the log signal-to-noise ratio. It is -inf at zero SNR and +inf after the last
step; the coefficients below have finite limits there, and no limit needs a case of its own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from core.errors import UserError
from core.schedulers.base import Scheduler
from core.schedulers.noise import like


def half_log_snr(level: float) -> float:
    """lambda of the signal level ``a`` in [0, 1]; infinite at the ends."""
    if level <= 0.0:
        return -math.inf
    return math.inf if level >= 1.0 else math.log(math.sqrt(level / (1.0 - level)))


def first_order(now: float, after: float) -> tuple[float, float, float]:
    """Factors of the sample, the clean estimate and the noise in x_prev, from the levels at t and at its end."""
    h = half_log_snr(after) - half_log_snr(now)
    keep = math.sqrt((1.0 - after) / (1.0 - now)) * math.exp(-h)
    return keep, -math.expm1(-2.0 * h) * math.sqrt(after), math.sqrt(1.0 - after) * math.sqrt(1.0 - math.exp(-2.0 * h))


def extrapolation(back: float, now: float, after: float) -> float:
    """Weight w of the 2M correction: (1 + w) of the present clean estimate minus w of the one before."""
    h = half_log_snr(after) - half_log_snr(now)
    return 1.0 / (2.0 * ((half_log_snr(now) - half_log_snr(back)) / h))


class CogVideoXDPMScheduler(Scheduler):
    """Stochastic second-order sampler; same config and arithmetic as diffusers' class of this name."""

    def is_second_order(self, old_pred_original_sample: Any, timestep: int) -> bool:
        """True if the step at ``timestep`` uses the earlier estimate: not the first step, nor one that ends clean."""
        return old_pred_original_sample is not None and self.previous_timestep(int(timestep)) >= 0

    def needs_noise(self, timestep: int) -> bool:
        """False where a step's noise would be multiplied by 0: one that ends clean, the last with published configs."""
        timestep = int(timestep)
        return first_order(self.alpha(timestep), self.alpha(self.previous_timestep(timestep)))[2] > 0.0

    def reference_draws(self, old_pred_original_sample: Any, timestep: int) -> int:
        """How often the published code draws noise in this step, 1 or 2; only the last draw has an effect.

        A caller that repeats its bits draws as often and passes the last one as ``noise``.
        """
        return 2 if self.is_second_order(old_pred_original_sample, timestep) else 1

    def step(
        self,
        model_output: Any,
        old_pred_original_sample: Any,
        timestep: int,
        timestep_back: int | None,
        sample: Any,
        *,
        noise: Any = None,
        eta: float = 0.0,
    ) -> tuple[Any, Any]:
        """One step down: ``model_output``, ``sample [B, ...]`` -> ``(prev_sample, pred_original_sample)``.

        ``old_pred_original_sample`` and ``timestep_back`` are the estimate and the time step of the step before, None
        at the first. ``noise`` is an array of ``sample``'s kind and shape, or a NumPy generator from which exactly one
        float32 normal array is drawn; None only where its factor is 0 (a step that ends clean). ``eta`` is accepted
        and has no effect, as in the published code.

        Raises:
            UserError: no steps chosen, a time step not on an explicit list, no noise where some is needed,
                a ``timestep_back`` that is absent or does not lie above ``timestep``, noise prediction at zero SNR.
        """
        timestep = int(timestep)
        now, after = self.alpha(timestep), self.alpha(self.previous_timestep(timestep))
        pred_original = self.pred_original(model_output, timestep, sample)
        keep, gain, spread = first_order(now, after)
        estimate = pred_original
        if self.is_second_order(old_pred_original_sample, timestep):
            if timestep_back is None or int(timestep_back) <= timestep:
                raise UserError(f"timestep_back: got {timestep_back}, need the larger time step before {timestep}")
            w = extrapolation(self.alpha(int(timestep_back)), now, after)
            estimate = (1.0 + w) * pred_original - w * old_pred_original_sample
        prev_sample = keep * sample + gain * estimate
        if isinstance(noise, np.random.Generator):
            noise = like(noise.standard_normal(tuple(sample.shape), np.float32), sample)
        if noise is not None:
            prev_sample = prev_sample + spread * noise
        elif spread > 0.0:
            raise UserError(f"noise: got None at time step {timestep}, need an array like the sample or a generator")
        return prev_sample, pred_original
