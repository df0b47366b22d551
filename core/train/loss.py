"""The training objective of CogVideoX: predict the velocity of noised latents."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np

from core import draws
from core.schedulers.base import Scheduler


def draw_timesteps(seed: int, step: int, samples: list[int], total: int) -> np.ndarray:
    """Uniform time steps ``[B]`` in [0, total), one stream for each (step, sample)."""
    return np.array([draws.generator(seed, "timestep", step, s).integers(total) for s in samples], np.int64)


def noised(
    scheduler: Scheduler, latents: np.ndarray, seed: int, step: int, samples: list[int]
) -> tuple[np.ndarray, ...]:
    """Clean scaled latents ``[B, F, C, H, W]`` -> ``(noisy, target velocity, time steps [B])``, fp32 but the last."""
    timesteps = draw_timesteps(seed, step, samples, scheduler.config.num_train_timesteps)
    noise = np.stack([draws.normal(latents.shape[1:], seed, "noise", step, s) for s in samples])
    noisy = scheduler.add_noise(latents, noise, timesteps)
    return noisy, scheduler.get_velocity(latents, noise, timesteps), timesteps


def velocity_loss(
    transformer: Any, noisy: ms.Tensor, text: ms.Tensor, timesteps: ms.Tensor, target: ms.Tensor
) -> ms.Tensor:
    """Mean squared error of the predicted velocity, a scalar in fp32 (half precision would lose small errors)."""
    error = transformer(noisy, text, timesteps).astype(ms.float32) - target
    return (error * error).mean()
