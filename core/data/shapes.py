"""Clips whose caption is known to be true: a coloured shape that moves over a plain background.

Letters: T frames, H height, W width. Everything is drawn from NumPy generators seeded by (seed, clip number), so a
clip does not depend on how many others are made.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

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
    "orange": (240, 130, 30),
    "purple": (150, 60, 200),
    "cyan": (60, 210, 220),
}
# The others are for data sets that show a model what it has never seen.
DEFAULT_COLORS: Final = ("red", "green", "blue", "yellow", "white")
BACKGROUNDS: Final = {"black": (16, 16, 16), "grey": (80, 80, 80)}
# Words of the caption, and (x, y) per unit of time; y points down, as in images.
MOTIONS: Final = {
    "left": ("moving to the left", (-1.0, 0.0)),
    "right": ("moving to the right", (1.0, 0.0)),
    "up": ("moving up", (0.0, -1.0)),
    "down": ("moving down", (0.0, 1.0)),
}
SIZES: Final = (0.25, 0.4)
CAN_BE_UNSAID: Final = ("color", "motion", "background")
Part = Literal["train", "held_out", "all"]
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
    unsaid: frozenset[str] = frozenset()

    @property
    def caption(self) -> str:
        """One sentence that says the shape and, of colour, motion and background, what is not ``unsaid``."""
        says = {name: name not in self.unsaid for name in CAN_BE_UNSAID}
        noun = f"{self.color} {self.shape}" if says["color"] else self.shape
        words = ["an" if noun[0] in "aeiou" else "a", noun]
        if says["motion"]:
            words.append(MOTIONS[self.motion][0])
        if says["background"]:
            words.append(f"on a {self.background} background")
        return " ".join(words)


def all_captions() -> list[str]:
    """The caption of every combination of shape, colour, motion and background, in a fixed order."""
    return [
        Clip(shape=shape, color=color, motion=motion, background=background, size=0.5, offset=0.5).caption
        for shape in SHAPES
        for color in COLORS
        for motion in MOTIONS
        for background in BACKGROUNDS
    ]


def combinations(
    *,
    shapes: Sequence[str] = SHAPES,
    colors: Sequence[str] = DEFAULT_COLORS,
    motions: Sequence[str] = tuple(MOTIONS),
    hold_out: int = 0,
    hold_out_seed: int = 0,
    part: Part = "all",
) -> list[tuple[str, str, str]]:
    """(shape, colour, motion) of every combination of the lists that belongs to ``part``, in a fixed order.

    ``hold_out`` of them are kept away from ``train``: those with the smallest SHA-256 of (hold_out_seed, combination),
    so the order of the lists does not matter. ``train`` and ``held_out`` of the same lists share nothing and make
    ``all``. UserError for an attribute that isn't known, an empty list, an empty part, and a ``hold_out`` that leaves
    some attribute with no combination to train on.
    """
    axes = {"shapes": (shapes, SHAPES), "colors": (colors, COLORS), "motions": (motions, MOTIONS)}
    for name, (chosen, known) in axes.items():
        _check_known(name, chosen, known)
    every = list(itertools.product(shapes, colors, motions))
    if not 0 <= hold_out < len(every):
        raise UserError(f"clips.hold_out: got {hold_out}, need 0 to {len(every) - 1} of {len(every)} combinations")
    kept_away = set(sorted(every, key=lambda names: _rank(hold_out_seed, names))[:hold_out])
    train = [names for names in every if names not in kept_away]
    for axis, (name, (chosen, _)) in enumerate(axes.items()):
        if unseen := [value for value in chosen if value not in {names[axis] for names in train}]:
            raise UserError(
                f"clips.hold_out: {hold_out} with clips.hold_out_seed {hold_out_seed} leaves no {unseen[0]} in train "
                f"({name}); lower hold_out or take another seed"
            )
    chosen = {"all": every, "train": train, "held_out": [names for names in every if names in kept_away]}[part]
    if not chosen:
        raise UserError(f"clips.part: {part} of clips.hold_out 0 is empty; set clips.hold_out")
    return chosen


def draw_clip(
    seed: int,
    index: int,
    *,
    shapes: Sequence[str] = SHAPES,
    colors: Sequence[str] = DEFAULT_COLORS,
    motions: Sequence[str] = tuple(MOTIONS),
    backgrounds: Sequence[str] = tuple(BACKGROUNDS),
    hold_out: int = 0,
    hold_out_seed: int = 0,
    part: Part = "all",
    size: tuple[float, float] = SIZES,
    caption_drop: float = 0.0,
) -> Clip:
    """The attributes of clip ``index``; ``hold_out``, ``hold_out_seed`` and ``part`` as in ``combinations``.

    ``size``: smallest and largest extent of the shape, in shorter sides of the picture.
    ``caption_drop``: chance of each of ``CAN_BE_UNSAID`` to be left out of the caption.

    Combinations are visited in a shuffled order without repeats until all were used, so a small data set is varied.
    UserError for an attribute that isn't known or an empty list.
    """
    _check_known("backgrounds", backgrounds, BACKGROUNDS)
    named = combinations(
        shapes=shapes, colors=colors, motions=motions, hold_out=hold_out, hold_out_seed=hold_out_seed, part=part
    )
    every = list(itertools.product(named, backgrounds))
    cycle, place = divmod(index, len(every))
    combination = int(np.random.default_rng([seed, cycle, 1]).permutation(len(every))[place])
    (shape, color, motion), background = every[combination]
    random = np.random.default_rng([seed, index, 2])
    dropped = np.random.default_rng([seed, index, 3]).random(len(CAN_BE_UNSAID)) < caption_drop
    return Clip(
        shape=shape,
        color=color,
        motion=motion,
        background=background,
        size=float(random.uniform(*size)),
        offset=float(random.uniform(0.0, 1.0)),
        unsaid=frozenset(name for name, drop in zip(CAN_BE_UNSAID, dropped, strict=True) if drop),
    )


def _check_known(name: str, chosen: Sequence[str], known: Collection[str]) -> None:
    unknown = [value for value in chosen if value not in known]
    if unknown or not chosen:
        raise UserError(f"clips.{name}: {unknown[0] if unknown else 'empty'}; needs some of {', '.join(known)}")


def _rank(seed: int, names: tuple[str, str, str]) -> bytes:
    return hashlib.sha256(" ".join((str(seed), *names)).encode()).digest()


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
