"""Which frames of a clip are used: stride, resampling to another frame rate, and the causal VAE's legal lengths."""

from __future__ import annotations

import re
from typing import Final

import numpy as np

from core.errors import UserError

FRAMES_RULES: Final = ("4n+1", "8n+1", "16n+1")
_UPSAMPLE_TOLERANCE = 1.01


def select_frames(
    total: int, source_fps: float, *, frame_stride: int = 1, fps: float | None = None
) -> tuple[np.ndarray, float]:
    """Indices int64 ``[n]`` (rising, from 0) of a clip of ``total`` frames, and the rate (frames/s) they play at.

    With ``fps``, output frame i is the source frame nearest in time to i / fps (constant source rate assumed); then
    every ``frame_stride``-th is kept. UserError if ``fps`` exceeds the source by over 1 %: frames would be repeated.
    """
    if frame_stride < 1:
        raise UserError(f"frame_stride {frame_stride}; needs 1 or more")
    if fps is None:
        indices, rate = np.arange(total), source_fps
    else:
        if fps <= 0:
            raise UserError(f"fps {fps}; needs a positive number")
        if source_fps <= 0:
            raise UserError(f"the clip states no frame rate: it can't be resampled to {fps:g} fps; set video.fps: null")
        if fps > source_fps * _UPSAMPLE_TOLERANCE:
            raise UserError(
                f"the clip has {source_fps:g} fps and {fps:g} were asked for, which would repeat frames; "
                f"set video.fps to {source_fps:g} or less, or null"
            )
        count = int(np.floor((total - 1) * fps / source_fps + 0.5)) + 1
        indices = np.floor(np.arange(count) * (source_fps / fps) + 0.5).astype(np.int64)
        indices, rate = indices[indices < total], fps
    return indices[::frame_stride].astype(np.int64), rate / frame_stride


def legal_frames(available: int, max_frames: int | None = None, rule: str = "8n+1") -> int:
    """Length of the longest prefix allowed by ``rule`` (``"8n+1"``: 9, 17, 25, ...) and not above ``max_frames``.

    The causal VAE makes 1 + (F-1)/4 latents of F frames, so every rule is a subset of 4n+1. 1 (an image) is used
    only if ``max_frames`` is 1. UserError if the clip is shorter than the rule's first length.
    """
    match = re.fullmatch(r"(\d+)n\+1", rule.lower())
    if match is None or rule.lower() not in FRAMES_RULES:
        raise UserError(f"frames rule {rule!r}; needs one of {', '.join(FRAMES_RULES)}")
    step = int(match[1])
    shortest = step + 1
    if max_frames == 1 and available >= 1:
        return 1
    if max_frames is not None and max_frames < shortest:
        raise UserError(f"max_frames {max_frames}; the rule {rule} needs at least {shortest}, or 1 for images")
    if available < shortest:
        raise UserError(
            f"too few frames: got {available}, the rule {rule} needs {shortest}, {2 * step + 1}, {3 * step + 1}, ...; "
            "use a longer clip, a smaller frame_stride or another frames_rule"
        )
    usable = available if max_frames is None else min(available, max_frames)
    return (usable - 1) // step * step + 1


def latent_frames(frames: int, temporal_compression: int = 4) -> int:
    """Latent frames of ``frames`` frames: 1 + (frames - 1) / 4. UserError if that is not whole."""
    if frames < 1 or (frames - 1) % temporal_compression:
        raise UserError(f"{frames} frames; the causal VAE needs {temporal_compression}n+1 (1, 5, 9, ..., 77, 81, 85)")
    return 1 + (frames - 1) // temporal_compression
