"""How much signal is left at each time step, in float64. Letters: T training time steps, B batch.

``alphas_cumprod[t]`` is the variance of the signal at step t: x_t = sqrt(a) x_0 + sqrt(1 - a) noise.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from core.configs import SchedulerConfig
from core.errors import UserError


def betas(config: SchedulerConfig) -> np.ndarray:
    """Noise added at each step: float64 ``[T]``. ``squaredcos_cap_v2`` is arXiv:2102.09672, equation 17."""
    count = config.num_train_timesteps
    if config.trained_betas is not None:
        if len(config.trained_betas) != count:
            raise UserError(f"trained_betas: got {len(config.trained_betas)} values, need num_train_timesteps {count}")
        return np.asarray(config.trained_betas, np.float64)
    if config.beta_schedule == "linear":
        return np.linspace(config.beta_start, config.beta_end, count)
    if config.beta_schedule == "scaled_linear":
        return np.linspace(config.beta_start**0.5, config.beta_end**0.5, count) ** 2
    level = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1.0 - level[1:] / level[:-1], 0.999)


def shift_snr(alphas_cumprod: np.ndarray, scale: float) -> np.ndarray:
    """Divides the signal-to-noise ratio a / (1 - a) by ``scale`` at every step; 1 changes nothing."""
    return alphas_cumprod / (scale + (1.0 - scale) * alphas_cumprod)


def rescale_zero_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Moves sqrt(a) linearly so that the last step is pure noise (a = 0) and the first keeps its value.

    Source: arXiv:2305.08891, algorithm 1.
    """
    root = np.sqrt(alphas_cumprod)
    first, last = root[0], root[-1]
    return ((root - last) * (first / (first - last))) ** 2


def alphas_cumprod(config: SchedulerConfig) -> np.ndarray:
    """Table of the config: float64 ``[T]``, decreasing. The SNR shift comes before the zero-SNR rescale.

    Raises:
        UserError: betas or a shift that leave the range 0 <= a < 1.
    """
    noise, scale = betas(config), config.snr_shift_scale
    if not (np.all(noise > 0.0) and np.all(noise < 1.0) and scale > 0.0):
        raise UserError(
            f"scheduler: got betas {noise.min():.3g} to {noise.max():.3g} and snr_shift_scale {scale}, "
            "need betas between 0 and 1 and a positive scale"
        )
    table = shift_snr(np.cumprod(1.0 - noise), scale)
    return rescale_zero_snr(table) if config.rescale_betas_zero_snr and len(table) > 1 else table


def like(values: np.ndarray, sample: Any) -> Any:
    """``values`` as the kind (NumPy array or MindSpore tensor) and type of ``sample``."""
    if isinstance(sample, np.ndarray):
        return np.asarray(values).astype(sample.dtype)
    return type(sample)(np.asarray(values, np.float32)).astype(sample.dtype)


def mixing(table: np.ndarray, timesteps: Any, ndim: int) -> tuple[np.ndarray, np.ndarray]:
    """``timesteps [B]`` -> sqrt(a) and sqrt(1 - a), float64 ``[B, 1, ...]`` with ``ndim`` axes."""
    level = table[np.asarray(timesteps, np.int64).reshape(-1)].reshape((-1,) + (1,) * (ndim - 1))
    return np.sqrt(level), np.sqrt(1.0 - level)


def _host(timesteps: Any) -> np.ndarray:
    return timesteps.asnumpy() if hasattr(timesteps, "asnumpy") else np.asarray(timesteps)


def add_noise(table: np.ndarray, original_samples: Any, noise: Any, timesteps: Any) -> Any:
    """x_0 ``[B, ...]``, noise of that shape, ``timesteps [B]`` -> x_t of that shape."""
    signal, rest = mixing(table, _host(timesteps), original_samples.ndim)
    return like(signal, original_samples) * original_samples + like(rest, original_samples) * noise


def velocity(table: np.ndarray, sample: Any, noise: Any, timesteps: Any) -> Any:
    """The target of v-prediction, sqrt(a) noise - sqrt(1 - a) x_0: ``[B, ...]`` (arXiv:2202.00512, appendix D)."""
    signal, rest = mixing(table, _host(timesteps), sample.ndim)
    return like(signal, sample) * noise - like(rest, sample) * sample
