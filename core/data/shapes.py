"""Clips whose caption is known to be true: a coloured shape that moves over a plain background.

Letters: T frames, H height, W width. Everything is drawn from NumPy generators seeded by (seed, clip number), so a
clip does not depend on how many others are made.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from core.data.video_writer import save_video
from core.errors import UserError
from core.files import atomic_path

SHAPES: Final = ("circle", "square", "triangle")
COLORS: Final = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (60, 90, 230),
    "yellow": (240, 210, 50),
    "white": (245, 245, 245),
}
BACKGROUNDS: Final = {"black": (16, 16, 16), "grey": (80, 80, 80)}
# Words of the caption, and (x, y) per unit of time; y points down, as in images.
MOTIONS: Final = {
    "left": ("moving to the left", (-1.0, 0.0)),
    "right": ("moving to the right", (1.0, 0.0)),
    "up": ("moving up", (0.0, -1.0)),
    "down": ("moving down", (0.0, 1.0)),
}
CSV_NAME: Final = "video_caption.csv"
_SUPERSAMPLING = 4
_CLIPS_PER_PART = 100


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What one clip shows; ``size`` is the shape's extent and ``offset`` its place across the motion, both 0 to 1."""

    shape: str
    color: str
    motion: str
    background: str
    size: float
    offset: float

    @property
    def caption(self) -> str:
        """One sentence that says shape, colour, motion and background."""
        return f"a {self.color} {self.shape} {MOTIONS[self.motion][0]} on a {self.background} background"


def all_captions() -> list[str]:
    """The caption of every combination of shape, colour, motion and background, in a fixed order."""
    return [
        Clip(shape=shape, color=color, motion=motion, background=background, size=0.5, offset=0.5).caption
        for shape in SHAPES
        for color in COLORS
        for motion in MOTIONS
        for background in BACKGROUNDS
    ]


def draw_clip(
    seed: int,
    index: int,
    *,
    shapes: Sequence[str] = SHAPES,
    colors: Sequence[str] = tuple(COLORS),
    motions: Sequence[str] = tuple(MOTIONS),
    backgrounds: Sequence[str] = tuple(BACKGROUNDS),
) -> Clip:
    """The attributes of clip ``index``.

    Combinations are visited in a shuffled order without repeats until all were used, so a small data set is varied.
    UserError for an attribute that isn't known or an empty list.
    """
    axes = {
        "shapes": (shapes, SHAPES),
        "colors": (colors, COLORS),
        "motions": (motions, MOTIONS),
        "backgrounds": (backgrounds, BACKGROUNDS),
    }
    for name, (chosen, known) in axes.items():
        unknown = [value for value in chosen if value not in known]
        if unknown or not chosen:
            raise UserError(f"clips.{name}: {unknown[0] if unknown else 'empty'}; needs some of {', '.join(known)}")
    sizes = [len(chosen) for chosen, _ in axes.values()]
    cycle, place = divmod(index, int(np.prod(sizes)))
    combination = int(np.random.default_rng([seed, cycle, 1]).permutation(int(np.prod(sizes)))[place])
    a, b, c, d = (int(value) for value in np.unravel_index(combination, sizes))
    random = np.random.default_rng([seed, index, 2])
    return Clip(
        shape=shapes[a],
        color=colors[b],
        motion=motions[c],
        background=backgrounds[d],
        size=float(random.uniform(0.25, 0.4)),
        offset=float(random.uniform(0.0, 1.0)),
    )


def render_clip(clip: Clip, *, frames: int, height: int, width: int) -> np.ndarray:
    """uint8 ``[T, H, W, 3]``: the shape crosses the picture once, wholly inside it, at constant speed."""
    extent = clip.size * min(height, width)
    _, (dx, dy) = MOTIONS[clip.motion]
    out = np.empty((frames, height, width, 3), np.uint8)
    for index in range(frames):
        progress = index / max(1, frames - 1)
        x = _place(width, extent, dx, progress, clip.offset)
        y = _place(height, extent, dy, progress, clip.offset)
        out[index] = _draw(clip, (x, y), extent, height, width)
    return out


def write_clips(
    folder: str | os.PathLike,
    clips: Sequence[Clip],
    *,
    frames: int,
    height: int,
    width: int,
    fps: float,
) -> list[tuple[str, str]]:
    """Writes ``video_folder/part01/vid001.mp4, ...`` and ``video_caption.csv`` under ``folder``; returns its rows.

    A part holds 100 clips. The CSV file comes last, so it never names a clip that isn't there.
    """
    rows = []
    for index, clip in enumerate(clips):
        name = video_name(index)
        save_video(Path(folder) / name, render_clip(clip, frames=frames, height=height, width=width), fps=fps)
        rows.append((name, clip.caption))
    write_csv(folder, rows)
    return rows


def video_name(index: int) -> str:
    """Relative path of clip ``index`` (from 0) in the original's layout."""
    part, place = divmod(index, _CLIPS_PER_PART)
    return f"video_folder/part{part + 1:02d}/vid{place + 1:03d}.mp4"


def write_csv(folder: str | os.PathLike, rows: Sequence[tuple[str, str]]) -> Path:
    """Writes (video, caption) rows to ``video_caption.csv`` and returns its path."""
    path = Path(folder) / CSV_NAME
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("video", "caption"))
        writer.writerows(rows)
    return path


def _place(length: int, extent: float, direction: float, progress: float, offset: float) -> float:
    """Centre along one axis: moving from one end of the free range to the other, or resting at ``offset`` of it."""
    free = length - extent
    fraction = offset if direction == 0 else progress if direction > 0 else 1 - progress
    return extent / 2 + free * fraction


def _draw(clip: Clip, centre: tuple[float, float], extent: float, height: int, width: int) -> np.ndarray:
    from PIL import Image, ImageDraw  # noqa: PLC0415

    n = _SUPERSAMPLING
    x, y = centre
    image = Image.new("RGB", (width * n, height * n), BACKGROUNDS[clip.background])
    pen = ImageDraw.Draw(image)
    left, top, right, bottom = ((v * n) for v in (x - extent / 2, y - extent / 2, x + extent / 2, y + extent / 2))
    color = COLORS[clip.color]
    if clip.shape == "circle":
        pen.ellipse((left, top, right, bottom), fill=color)
    elif clip.shape == "square":
        pen.rectangle((left, top, right, bottom), fill=color)
    else:
        pen.polygon(((left + right) / 2, top, right, bottom, left, bottom), fill=color)
    return np.asarray(image.resize((width, height), Image.Resampling.BOX))
