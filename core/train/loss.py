"""The training objective of CogVideoX: predict the velocity of noised latents.

Letters: B samples, F latent frames, C channels, H and W latent height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import mindspore as ms
import numpy as np

from core import draws
from core.schedulers.base import Scheduler

LossKind = Literal["velocity", "x0_weighted"]
TimestepKind = Literal["uniform", "uniform_per_rank"]


def draw_timesteps(
    seed: int, step: int, samples: Sequence[int], total: int, *, kind: TimestepKind = "uniform", count: int = 1
) -> np.ndarray:
    """Time steps ``[B]`` in [0, total) of these samples of optimizer step ``step``, which has ``count`` samples.

    ``uniform`` draws each sample by itself. ``uniform_per_rank`` cuts [0, total) into ``count`` equal intervals, deals
    them to the samples in an order drawn anew each step, and draws each sample inside its own (explicit uniform
    sampling, CogVideoX paper section 3.3): over a step the levels of noise are spread evenly, and each sample's time
    step is still uniform. Depends on the sample's number only, so any number of ranks sees the same.
    """
    if kind == "uniform":
        return np.array([draws.generator(seed, "timestep", step, s).integers(total) for s in samples], np.int64)
    assert max(samples) < count, (samples, count)
    interval = draws.generator(seed, "timestep interval", step).permutation(count)
    inside = [draws.generator(seed, "timestep", step, s).random() for s in samples]
    chosen = [int((interval[s] + u) * total / count) for s, u in zip(samples, inside, strict=True)]
    return np.minimum(np.array(chosen, np.int64), total - 1)  # (count - 1 + u) / count may round up to 1


def noise_of(shape: Sequence[int], seed: int, step: int, samples: Sequence[int]) -> np.ndarray:
    """Standard normal float32 ``[B, *shape]``, one stream for each (step, sample)."""
    return np.stack([draws.normal(tuple(shape), seed, "noise", step, s) for s in samples])


def noised(
    scheduler: Scheduler, latents: np.ndarray, seed: int, step: int, samples: list[int]
) -> tuple[np.ndarray, ...]:
    """Clean scaled latents ``[B, F, C, H, W]`` -> ``(noisy, target velocity, time steps [B])``, fp32 but the last."""
    timesteps = draw_timesteps(seed, step, samples, scheduler.config.num_train_timesteps)
    noise = noise_of(latents.shape[1:], seed, step, samples)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    return noisy, scheduler.get_velocity(latents, noise, timesteps), timesteps


def levels(scheduler: Scheduler, timesteps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of signal and noise at ``timesteps [B]``: ``sqrt(alpha_bar), sqrt(1 - alpha_bar)``, ``[B,1,1,1,1]``."""
    alphas = scheduler.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1, 1)
    return np.sqrt(alphas).astype(np.float32), np.sqrt(1.0 - alphas).astype(np.float32)


def loss_inputs(
    kind: LossKind, scheduler: Scheduler, latents: np.ndarray, noise: np.ndarray, timesteps: np.ndarray
) -> tuple[np.ndarray, ...]:
    """The arrays that ``LOSSES[kind]`` takes after the text: ``latents [B, F, C, H, W]`` are clean and scaled."""
    noisy = scheduler.add_noise(latents, noise, timesteps)
    if kind == "velocity":
        return noisy, timesteps, scheduler.get_velocity(latents, noise, timesteps)
    return noisy, timesteps, latents, *levels(scheduler, timesteps)


def velocity_loss(
    transformer: Any, noisy: ms.Tensor, text: ms.Tensor, timesteps: ms.Tensor, target: ms.Tensor
) -> ms.Tensor:
    """Mean squared error of the predicted velocity, a scalar in fp32 (half precision would lose small errors)."""
    error = transformer(noisy, text, timesteps).astype(ms.float32) - target
    return (error * error).mean()


def x0_weighted_loss(
    transformer: Any,
    noisy: ms.Tensor,
    text: ms.Tensor,
    timesteps: ms.Tensor,
    latents: ms.Tensor,
    signal: ms.Tensor,
    rest: ms.Tensor,
) -> ms.Tensor:
    """Mean of ``|x0 of the prediction - x0|^2 / (1 - alpha_bar)``, a scalar in fp32; ``signal, rest`` of ``levels``.

    As x0 = signal x_t - rest v, the error of x0 is rest times that of v: ``velocity_loss`` but for rounding. It is
    what diffusers' and THUDM's trainers compute.
    """
    predicted = signal * noisy - rest * transformer(noisy, text, timesteps).astype(ms.float32)
    error = (predicted - latents) / rest
    return (error * error).mean()


LOSSES = {"velocity": velocity_loss, "x0_weighted": x0_weighted_loss}
