"""One optimiser step of the autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np

from core import draws, ops
from core.optim.clip import clip_factor, global_norm
from core.train.vae_loss import Reconstruction, vae_loss
from core.vae.chunks import latent_frames


@dataclass(frozen=True, kw_only=True)
class VAEStepResult:
    """Loss and its parts (without the weight), and the gradients' global norm before clipping."""

    loss: float
    reconstruction: float
    kl: float
    grad_norm: float


class VAETrainStep:
    """Computes gradients of ``vae_loss`` and updates the parameters.

    Args:
        vae: the autoencoder; all its parameters are trained.
        optimizer: ``step(gradients, lr, factor)`` over ``vae.trainable_params()``.
        reconstruction, kl_weight: of ``vae_loss``.
        max_grad_norm: bound of the gradients' global norm, None for no clipping.
        seed: of the posterior's noise, one stream for each (step, sample).
    """

    def __init__(
        self,
        vae: Any,
        optimizer: Any,
        *,
        reconstruction: Reconstruction,
        kl_weight: float,
        max_grad_norm: float | None,
        seed: int,
    ):
        self.vae, self.optimizer = vae, optimizer
        self.max_grad_norm, self.seed = max_grad_norm, seed
        self.names = [q.name for q in optimizer.parameters]

        def loss(video, noise):
            return vae_loss(vae, video, noise, reconstruction=reconstruction, kl_weight=kl_weight)

        self.gradients = ops.value_and_gradients(loss, optimizer.parameters, has_aux=True)

    def noise(self, video: np.ndarray, step: int, samples: list[int]) -> np.ndarray:
        """Posterior noise ``[B, C, t, h, w]`` of these samples of this step."""
        config = self.vae.config
        frames = latent_frames(video.shape[2], int(config.temporal_compression_ratio))
        ratio = config.spatial_compression_ratio
        shape = (config.latent_channels, frames, video.shape[3] // ratio, video.shape[4] // ratio)
        return np.stack([draws.normal(shape, self.seed, "posterior", step, sample) for sample in samples])

    def __call__(self, step: int, video: np.ndarray, samples: list[int], files: list[str], lr: float) -> VAEStepResult:
        """Runs step ``step`` on pixels ``[B, 3, T, H, W]`` in [-1, 1] of these samples, read from ``files``.

        Raises:
            FloatingPointError: the loss or the gradients are not finite; nothing was updated.
        """
        noise = self.noise(video, step, samples)
        (loss, distance, divergence), gradients = self.gradients(ms.Tensor(video), ms.Tensor(noise))
        norm = global_norm(dict(zip(self.names, gradients, strict=True)))
        result = VAEStepResult(
            loss=float(loss), reconstruction=float(distance), kl=float(divergence), grad_norm=float(norm)
        )
        if not np.isfinite(result.loss) or not np.isfinite(result.grad_norm):
            raise FloatingPointError(
                f"step {step}: loss {result.loss}, gradient norm {result.grad_norm}; the batch was {', '.join(files)}; "
                "lower optimizer.lr, or check these files"
            )
        self.optimizer.step(gradients, lr, clip_factor(norm, self.max_grad_norm))
        return result
