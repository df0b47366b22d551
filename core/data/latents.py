"""What happens to a clip's latents before training: sampling, scaling, and padding to whole patches in time.

Letters: t latent frames, C channels, h and w latent height and width.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from core import draws
from core.errors import UserError

ODD_LATENTS: Final = ("pad_first", "pad_last", "refuse")


def draw_latents(mean: np.ndarray, std: np.ndarray, scaling_factor: float, seed: int, step: int, i: int) -> np.ndarray:
    """float32 ``[t, C, h, w]``: one draw from N(mean, std) for sample ``i`` of ``step``, times the VAE's factor."""
    noise = draws.normal(mean.shape, seed, "posterior", step, i)
    return (mean + std * noise) * np.float32(scaling_factor)


def pad_latents(latents: np.ndarray, patch_size_t: int, odd: str) -> np.ndarray:
    """``[t, ...]`` -> ``[t', ...]``, t' the next multiple of ``patch_size_t``.

    ``pad_first`` repeats the first latent before it, as THUDM's trainer does (and as the pipelines, which drop the
    extra frames at the front after sampling, expect); ``pad_last`` repeats the last, as finetrainers did; ``refuse``
    raises UserError, as the original and the factory, which only choose lengths with an even number of latents.
    """
    extra = padding(len(latents), patch_size_t, odd)
    if not extra:
        return latents
    if odd == "pad_first":
        return np.concatenate([np.repeat(latents[:1], extra, axis=0), latents])
    return np.concatenate([latents, np.repeat(latents[-1:], extra, axis=0)])


def padding(frames: int, patch_size_t: int, odd: str) -> int:
    """Latent frames that ``pad_latents`` adds; UserError for an unknown ``odd`` or where it refuses."""
    if odd not in ODD_LATENTS:
        raise UserError(f"odd_latents {odd!r}; needs one of {', '.join(ODD_LATENTS)}")
    extra = -frames % patch_size_t
    if extra and odd == "refuse":
        raise UserError(
            f"{frames} latent frames; patch_size_t {patch_size_t} needs a multiple of {patch_size_t}: use "
            f"{frames - frames % patch_size_t or patch_size_t} or {frames + extra} (77 frames make 20, 85 make 22), "
            "or odd_latents: pad_first"
        )
    return extra
