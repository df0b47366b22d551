"""The objective of a variational autoencoder (arXiv:1312.6114): reconstruction plus a weighted KL divergence."""

from __future__ import annotations

from typing import Any, Literal

import mindspore as ms
from mindspore import mint

Reconstruction = Literal["l1", "l2"]


def vae_loss(
    vae: Any, video: ms.Tensor, noise: ms.Tensor, *, reconstruction: Reconstruction, kl_weight: float
) -> tuple[ms.Tensor, ms.Tensor, ms.Tensor]:
    """Pixels ``[B, 3, T, H, W]`` in [-1, 1], noise ``[B, C, t, h, w]`` -> (loss, reconstruction, KL), scalars in fp32.

    The latents are ``mean + std * noise``. Reconstruction is the mean of ``|x - y|`` (l1) or ``(x - y)^2`` (l2) over
    pixel values, KL the mean over latent values of the divergence from a standard normal; both are means, so
    ``kl_weight`` does not depend on the clip's size. Recipes that sum both over a clip use a ``kl_weight`` that is
    larger by (pixel values / latent values) for the same balance.
    """
    mean, logvar = (part.astype(ms.float32) for part in vae.posterior(video))
    latents = mean + mint.exp(0.5 * logvar) * noise
    error = vae.decode(latents).astype(ms.float32) - video
    distance = mint.abs(error).mean() if reconstruction == "l1" else (error * error).mean()
    divergence = 0.5 * (mean * mean + mint.exp(logvar) - 1.0 - logvar).mean()
    return distance + kl_weight * divergence, distance, divergence
