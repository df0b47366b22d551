"""How a clip is cut in time, and which numbers of frames the VAE takes. No MindSpore.

A chunk is what one pass of the encoder or decoder sees; the causal convolutions carry two frames from one chunk to
the next. The sizes are the reference's (diffusers 0.42) and part of the result: group norms average over a chunk.
"""

from __future__ import annotations

from core.errors import UserError

SAMPLE_CHUNK = 8
LATENT_CHUNK = 2


def _chunks(count: int, size: int) -> list[tuple[int, int]]:
    """``[(start, stop), ...]``: chunks of ``size``; the first one also takes the remainder."""
    first = min(count, size + count % size) if count >= size else count
    return [(0, first)] + [(start, start + size) for start in range(first, count, size)]


def sample_chunks(frames: int) -> list[tuple[int, int]]:
    """Chunks of 8 frames for the encoder: 49 -> (0, 9), (9, 17), ...; 77 -> (0, 13), (13, 21), ..."""
    return _chunks(frames, SAMPLE_CHUNK)


def latent_chunks(latent_frames: int) -> list[tuple[int, int]]:
    """Chunks of 2 latent frames for the decoder: 13 -> (0, 3), (3, 5), ...; 20 -> (0, 2), (2, 4), ..."""
    return _chunks(latent_frames, LATENT_CHUNK)


def waves(count: int, size: int) -> list[list[int]]:
    """``count`` chunks for ``size`` processes: those worked on at a time. Chunk i is process ``i % size``'s."""
    return [list(range(first, min(first + size, count))) for first in range(0, count, size)]


def latent_frames(frames: int, ratio: int = 4) -> int:
    """Latent frames of a clip: ``frames / 4``, or ``(frames - 1) / 4 + 1`` where the first frame stands alone.

    The reference computes something for every count, but unless it is 4k or 4k + 1 its first latent mixes 2 or 3
    frames, which no checkpoint was trained on; such counts are refused. ``ratio`` is temporal_compression_ratio.

    Raises:
        UserError: ``frames`` is not 4k or 4k + 1.
    """
    if frames < 1 or frames % ratio > 1:
        below = max(1, frames // ratio * ratio + 1)
        above = (max(frames, 0) // ratio + 1) * ratio
        nearest = f"{below} or {above}" if frames > 1 else "1"
        raise UserError(
            f"video: got {frames} frames, need {ratio}k or {ratio}k + 1; cut or extend the clip, e.g. to {nearest}"
        )
    return -(-frames // ratio)


def decoded_frames(latent_frames: int, ratio: int = 4) -> int:
    """Frames that the decoder makes: ``4n`` for an even number n of latents, ``4 (n - 1) + 1`` for an odd one.

    So 20 latents give 80 frames although 77 frames were encoded: the decoder can't know whether the first latent was
    one frame or four.
    """
    if latent_frames < 1:
        raise UserError(f"latents: got {latent_frames} frames, need at least 1")
    return latent_frames * ratio if latent_frames % 2 == 0 else (latent_frames - 1) * ratio + 1
