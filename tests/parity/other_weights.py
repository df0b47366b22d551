"""The reference's side of a pair with one weight changed."""

from __future__ import annotations

import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel

from bench import paired_reference
from bench.paired_reference import array

__all__ = ["array", "prepare"]


def prepare(recipe, folder):
    """As the reference's, after the last layer's weights on disk are doubled."""
    model = CogVideoXTransformer3DModel.from_pretrained(folder / "transformer")
    with torch.no_grad():
        model.proj_out.weight.mul_(2.0)
    model.save_pretrained(folder / "transformer")
    return paired_reference.prepare(recipe, folder)
