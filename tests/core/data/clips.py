"""Small clips for the tests: every frame tells its number by its brightness."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from core.data.video_writer import save_video


def ramp(frames: int, height: int = 34, width: int = 62) -> np.ndarray:
    """uint8 ``[T, H, W, 3]``: frame i is 10 + 8 i in every channel, with a red top half and a blue corner."""
    grey = 10 + 8 * np.arange(frames, dtype=np.uint8)
    out = np.broadcast_to(grey[:, None, None, None], (frames, height, width, 3)).copy()
    out[:, : height // 2] = (200, 20, 20)
    out[:, :8, :8] = (20, 20, 200)
    return out


def make_clip(path: Path, frames: int = 9, *, fps: float = 8, height: int = 34, width: int = 62) -> Path:
    """Writes ``ramp`` to ``path``."""
    save_video(path, ramp(frames, height, width), fps=fps)
    return path


def numbers(frames: np.ndarray) -> list[int]:
    """Which frames of ``ramp`` these are, read off their lower half."""
    return [round((float(frame[-8:].mean()) - 10) / 8) for frame in frames]
