"""VAE cases computed by the reference (diffusers, torch): small enough to be stored and checked without it."""

from __future__ import annotations

import json
from dataclasses import fields

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX as Reference

from core.configs import VAEConfig
from core.vae.tiling import TilingConfig

TINY = {
    "block_out_channels": (4, 4, 4, 8),
    "norm_num_groups": 2,
    "layers_per_block": 1,
    "latent_channels": 4,
    "sample_height": 64,
    "sample_width": 64,
}
STORED_TILING = TilingConfig(tile_height=32, tile_width=32, overlap_height=0.25, overlap_width=0.5)


def reference_and_weights(seed: int, **sizes) -> tuple[Reference, dict[str, np.ndarray]]:
    """A reference VAE with random weights, every norm and bias away from its start value, and those weights."""
    torch.manual_seed(seed)
    reference = Reference(**sizes).eval().requires_grad_(False)
    for name, tensor in reference.state_dict().items():
        if tensor.ndim == 1:
            tensor.add_(0.2 * torch.randn(tensor.shape))
        if ".conv_y." in name and name.endswith("bias"):
            tensor.add_(1.0)
    return reference, {name: tensor.numpy().copy() for name, tensor in reference.state_dict().items()}


def our_config(reference: Reference) -> VAEConfig:
    """Our config from the reference's own, by field name."""
    names = {field.name for field in fields(VAEConfig)}
    values = {name: value for name, value in dict(reference.config).items() if name in names}
    return VAEConfig.from_dict(json.loads(json.dumps(values)), "reference")


def use_tiling(reference: Reference, tiling: TilingConfig | None) -> None:
    """Gives the reference our tiles."""
    if tiling is None:
        reference.disable_tiling()
        return
    reference.enable_tiling(tiling.tile_height, tiling.tile_width, tiling.overlap_height, tiling.overlap_width)


def noise(seed: int, *shape: int) -> np.ndarray:
    """Standard normal float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def reference_encode(reference: Reference, video: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the reference's posterior."""
    posterior = next(iter(reference.encode(torch.from_numpy(video), return_dict=False)))
    return posterior.mean.numpy(), posterior.std.numpy()


def reference_decode(reference: Reference, latents: np.ndarray) -> np.ndarray:
    """Pixels of the reference's decoder."""
    return next(iter(reference.decode(torch.from_numpy(latents), return_dict=False))).numpy()


def _case(direction: str, shape: tuple[int, ...], tiling: TilingConfig | None) -> dict[str, np.ndarray]:
    reference, weights = reference_and_weights(7, **TINY)
    use_tiling(reference, tiling)
    given = noise(8, *shape)
    case = {f"weight.{name}": value for name, value in weights.items()}
    case |= {"config": np.array(json.dumps(our_config(reference).to_dict())), "input": given}
    if tiling is not None:
        case["tiling"] = np.array([tiling.tile_height, tiling.tile_width, tiling.overlap_height, tiling.overlap_width])
    if direction == "encode":
        case["output.mean"], case["output.std"] = reference_encode(reference, given)
    else:
        case["output"] = reference_decode(reference, given)
    return case


def cases() -> dict[str, dict[str, np.ndarray]]:
    """Name -> arrays: ``config`` (JSON), ``weight.<name>``, ``input``, ``output`` or ``output.mean``/``output.std``.

    All cases have the same weights, so a store may keep them once. ``tiling``, where present, is tile height and
    width in pixels, then the two overlaps.
    """
    return {
        "vae-encode-9": _case("encode", (1, 3, 9, 16, 24), None),
        "vae-encode-tiled": _case("encode", (1, 3, 5, 40, 48), STORED_TILING),
        "vae-decode-3": _case("decode", (1, 4, 3, 2, 3), None),
        "vae-decode-4": _case("decode", (1, 4, 4, 2, 3), None),
        "vae-decode-tiled": _case("decode", (1, 4, 1, 5, 6), STORED_TILING),
    }
