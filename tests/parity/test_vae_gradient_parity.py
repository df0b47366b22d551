"""Gradients of the autoencoder's loss, every parameter, against torch's autograd through diffusers' VAE."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
import pytest
import torch

from core import ops, ops_cpu, ops_cpu_conv
from core.train.vae_loss import vae_loss
from core.vae.model import AutoencoderKLCogVideoX
from tests.parity import cases_vae as reference_side
from tests.tolerances import GRADIENT, relative_error

KL_WEIGHT = 0.1  # large, so that its gradient is checked too


def reference_gradients(reference: Any, video: np.ndarray, noise: np.ndarray, kind: str) -> dict[str, np.ndarray]:
    reference.requires_grad_(True)
    x = torch.from_numpy(video)
    posterior = next(iter(reference.encode(x, return_dict=False)))
    error = (
        next(iter(reference.decode(posterior.mean + posterior.std * torch.from_numpy(noise), return_dict=False))) - x
    )
    distance = error.abs().mean() if kind == "l1" else (error**2).mean()
    divergence = posterior.kl().sum() / posterior.mean.numel()  # diffusers sums over a clip
    (distance + KL_WEIGHT * divergence).backward()
    return {name: parameter.grad.numpy() for name, parameter in reference.named_parameters()}


@pytest.mark.parametrize(("kind", "conv", "frames"), [
    ("l1", None, 9), ("l2", None, 17), ("l2", ops_cpu_conv.native, 17), ("l2", ops_cpu_conv.unfolded, 9),
])  # fmt: skip
def test_every_parameters_gradient(monkeypatch, kind, conv, frames):
    """conv None: the compiled one. 17 frames are two chunks: gradients flow through the convolutions' caches."""
    if conv is not None:
        monkeypatch.setattr(ops_cpu, "conv", conv)
    ops.configure(mode="graph", kernels="auto" if conv is None else "operators")
    reference, weights = reference_side.reference_and_weights(3, **reference_side.TINY)
    ours = AutoencoderKLCogVideoX(reference_side.our_config(reference))
    for name, value in weights.items():
        ours.assign(name, value)
    video = reference_side.noise(1, 1, 3, frames, 16, 16)
    noise = reference_side.noise(2, 1, 4, (frames - 1) // 4 + 1, 2, 2)
    expected = reference_gradients(reference, video, noise, kind)

    def loss(x, e):
        return vae_loss(ours, x, e, reconstruction=kind, kl_weight=KL_WEIGHT)

    parameters = ours.trainable_params()
    _, gradients = ops.value_and_gradients(loss, parameters, has_aux=True)(ms.Tensor(video), ms.Tensor(noise))
    got = {parameter.name: gradient.asnumpy() for parameter, gradient in zip(parameters, gradients, strict=True)}
    assert set(got) == set(expected)
    errors = {name: relative_error(got[name], expected[name]) for name in expected}
    side = "compiled" if conv is None else conv.__name__
    print(f"PARITY VAE gradient {kind} {side} {frames} frames: largest {max(errors.values()):.1e}")
    assert {name: error for name, error in errors.items() if not error <= GRADIENT} == {}
