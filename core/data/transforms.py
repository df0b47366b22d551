"""Frames to the model's input and back: crop and resize, [0, 255] to [-1, 1].

Letters: T frames, H height, W width. Frames are uint8 RGB ``[T, H, W, 3]``, the model's video float32 ``[3, T, H, W]``.
The geometry follows the original's two transforms (mindone opensora/datasets/video_dataset.py); the interpolation is
Pillow's bicubic (a = -0.5, antialiased when it shrinks), where the original has OpenCV's (a = -0.75, no antialiasing).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from core.errors import UserError

TRANSFORMS: Final = ("crop_resize", "center")
INTERPOLATION: Final = "pillow bicubic"


def fit(frames: np.ndarray, height: int, width: int, transform: str = "crop_resize") -> np.ndarray:
    """uint8 ``[T, H, W, 3]`` -> uint8 ``[T, height, width, 3]``, aspect ratio kept.

    ``crop_resize``: the largest centred box of the target's aspect ratio is cut out and resized, so the frame covers
    the target and nothing is padded. ``center``: the shorter side is resized to ``height``, then the centre is cut
    out. UserError if ``center`` leaves a frame narrower or lower than the target.
    """
    _check(frames, height, width, transform)
    box, size = _geometry(frames.shape[1], frames.shape[2], height, width, transform)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    out = np.empty((len(frames), height, width, 3), np.uint8)
    for index, frame in enumerate(frames):
        resized = _resize(frame[box[1] : box[3], box[0] : box[2]], size)
        out[index] = resized[top : top + height, left : left + width]
    return out


def to_model(frames: np.ndarray) -> np.ndarray:
    """uint8 ``[T, H, W, 3]`` -> float32 ``[3, T, H, W]`` in [-1, 1] (x / 127.5 - 1)."""
    return frames.transpose(3, 0, 1, 2).astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_frames(video: np.ndarray) -> np.ndarray:
    """float ``[3, T, H, W]`` in [-1, 1] -> uint8 ``[T, H, W, 3]``, clipped, rounded to nearest; NaN is a UserError."""
    if not np.isfinite(video).all():
        raise UserError("the decoded video contains NaN or infinity; use vae.dtype fp32 or bf16 instead of fp16")
    scaled = (video.astype(np.float32).transpose(1, 2, 3, 0) + 1) * np.float32(127.5)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _check(frames: np.ndarray, height: int, width: int, transform: str) -> None:
    if transform not in TRANSFORMS:
        raise UserError(f"transform {transform!r}; needs one of {', '.join(TRANSFORMS)}")
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise UserError(f"frames are {frames.dtype} {list(frames.shape)}; need uint8 [T, H, W, 3]")
    if height < 1 or width < 1:
        raise UserError(f"target size {height}x{width}; needs positive height and width")


def _geometry(
    source_h: int, source_w: int, height: int, width: int, transform: str
) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """Box (left, top, right, bottom) cut from the source, and the size (width, height) it is resized to."""
    if transform == "crop_resize":
        wider = width / height > source_w / source_h
        scale = source_w / width if wider else source_h / height
        # round() before int(): 480 / 768 * 768 may be a hair below 480.
        box_h = min(source_h, max(1, int(round(scale * height, 6))))
        box_w = min(source_w, max(1, int(round(scale * width, 6))))
        left, top = (source_w - box_w) // 2, (source_h - box_h) // 2
        return (left, top, left + box_w, top + box_h), (width, height)
    scale = height / min(source_h, source_w)
    size = (round(source_w * scale), round(source_h * scale))
    if size[0] < width or size[1] < height:
        raise UserError(
            f"a {source_h}x{source_w} clip scaled to {size[1]}x{size[0]} does not cover {height}x{width} with "
            "transform 'center'; use transform: crop_resize"
        )
    return (0, 0, source_w, source_h), size


def _resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image  # noqa: PLC0415

    if (frame.shape[1], frame.shape[0]) == size:
        return frame
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
