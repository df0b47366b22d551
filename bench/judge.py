"""Says what a clip of one moving shape shows, from its frames alone: shape, colour, motion, each maybe ``unknown``.

Needs NumPy only and knows nothing of the model, the caption or how the clip was made. It looks for one object that
differs from an even, neutral background:

- object: pixels further from the frame's median colour than half of the largest distances; the largest connected part;
- colour: direction of the object's chroma, which mixing with a neutral background (blur, chroma subsampling) does not
  turn; little chroma on a brighter object is white;
- motion: a line through the object's centres; one direction must dominate;
- shape: with z = x + iy around the centre, E[z^3] is 0 but for the triangle and E[z^4] is 0 for the circle. Both are
  harmonic polynomials, so isotropic blur leaves them as they are.

T frames, H height, W width; x points right, y down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from core.data.shapes import COLORS

UNKNOWN: Final = "unknown"
# Distances are Euclidean in RGB; the palest pair of the moving shapes, green on grey, is about 100 apart.
_VISIBLE = 35.0
_LEAST_AREA, _LARGEST_AREA = 0.005, 0.45  # of a frame
_LEAST_FRAMES = 0.6  # of the clip: frames with one clear object
_WHITE = 0.25  # chroma per distance from the background below which an object is white
_HUE_TOLERANCE = 25.0  # degrees; neighbours of the palette are 23 (orange, yellow) or more apart
_LEAST_SHIFT = 0.15  # of the shorter side, over the clip
_DOMINANCE = 2.0
# Normalised third and fourth moments of the ideal shapes: circle (0, 0), square (0, -0.6), triangle (0.76, 0.03). Blur
# leaves the moments but widens E|z|^2, which they are divided by: small shapes come down by a third and more.
_TRIANGLE, _SQUARE = 0.22, -0.24
_ELONGATED = 0.4
# Area per E[|z|^2]: circle 6.3, square 6.0, triangle 5.1; 3.1 is a Gaussian spot, less a ring.
_COMPACT = 3.8


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was seen; ``frames`` is the share of frames with one clear object, ``measures`` the numbers behind it."""

    shape: str
    color: str
    motion: str
    frames: float
    measures: dict[str, float]


def judge(frames: np.ndarray) -> Verdict:
    """uint8 ``[T, H, W, 3]`` -> verdict."""
    difference = _difference(_smooth(frames.astype(np.float32)))
    masks = _largest_parts(_foreground(difference))
    good = _usable(masks)
    share = float(good.mean()) if len(good) else 0.0
    if share < _LEAST_FRAMES:
        return Verdict(shape=UNKNOWN, color=UNKNOWN, motion=UNKNOWN, frames=share, measures={})
    at = np.flatnonzero(good)
    difference, masks = difference[at], masks[at]
    object_color = np.median([d[m].mean(0) for d, m in zip(difference, masks, strict=True)], axis=0)
    weights = _weights(difference, masks, object_color)
    centres, moments = _moments(weights)
    color, color_measures = _color(object_color)
    motion, motion_measures = _motion(centres, at, frames.shape)
    shape, shape_measures = _shape(np.median(moments, axis=0))
    measures = {**color_measures, **motion_measures, **shape_measures}
    return Verdict(shape=shape, color=color, motion=motion, frames=share, measures=measures)


def _smooth(frames: np.ndarray) -> np.ndarray:
    """Mean of 3 x 3 pixels, edges repeated: single noisy pixels should not be objects."""
    padded = np.pad(frames, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / 9


def _difference(frames: np.ndarray) -> np.ndarray:
    """``[T, H, W, 3]``: each pixel minus its frame's background, the median colour (an object covers a small part)."""
    return frames - np.median(frames, axis=(1, 2), keepdims=True)


def _foreground(difference: np.ndarray) -> np.ndarray:
    """bool ``[T, H, W]``: further from the background than half of the frame's largest hundredth of distances."""
    distance = np.linalg.norm(difference, axis=-1)
    flat = np.sort(distance.reshape(len(distance), -1), axis=1)
    largest = flat[:, -max(1, flat.shape[1] // 100) :].mean(1)
    bound = np.where(largest < _VISIBLE, np.inf, largest / 2)
    return distance > bound[:, None, None]


def _largest_parts(masks: np.ndarray) -> np.ndarray:
    """The largest connected part of each mask ``[T, H, W]`` (neighbours share an edge or a corner)."""
    size = masks[0].size
    labels = np.where(masks, np.arange(1, size + 1).reshape(masks.shape[1:]), 0)
    while True:
        wide = np.pad(labels, ((0, 0), (1, 1), (1, 1)))
        rows = np.maximum(np.maximum(wide[:, :-2], wide[:, 1:-1]), wide[:, 2:])
        spread = np.maximum(np.maximum(rows[:, :, :-2], rows[:, :, 1:-1]), rows[:, :, 2:]) * masks
        if (spread == labels).all():
            break
        labels = spread
    counts = [np.bincount(frame.ravel(), minlength=size + 1) for frame in labels]
    best = np.array([1 + count[1:].argmax() for count in counts])
    return masks & (labels == best[:, None, None])


def _usable(masks: np.ndarray) -> np.ndarray:
    """bool ``[T]``: the part's area is that of an object."""
    area = masks.mean((1, 2))
    return (area > _LEAST_AREA) & (area < _LARGEST_AREA)


def _weights(difference: np.ndarray, masks: np.ndarray, object_color: np.ndarray) -> np.ndarray:
    """``[T, H, W]`` in [0, 1]: how much of each pixel is object, in the part and two pixels around it (blurred edges).

    Unlike the mask it keeps the moments of a blurred shape.
    """
    near = masks
    for _ in range(2):
        wide = np.pad(near, ((0, 0), (1, 1), (1, 1)))
        rows = wide[:, :-2] | wide[:, 1:-1] | wide[:, 2:]
        near = rows[:, :, :-2] | rows[:, :, 1:-1] | rows[:, :, 2:]
    share = difference @ object_color / (object_color @ object_color)
    return np.where(near & (share > 0.1), np.clip(share, 0.0, 1.0), 0.0)


def _moments(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres ``[T, 2]`` (x, y) and ``[T, 4]``: |E z^2|, |E z^3| and Re E z^4 per power of E|z|^2, area per E|z|^2."""
    ys, xs = np.mgrid[: weights.shape[1], : weights.shape[2]]
    centres, moments = [], []
    for w in weights:
        area = w.sum()
        x, y = (w * xs).sum() / area, (w * ys).sum() / area
        z = (xs - x) + 1j * (ys - y)
        spread = (w * np.abs(z) ** 2).sum() / area
        two, three, four = ((w * z**n).sum() / area / spread ** (n / 2) for n in (2, 3, 4))
        centres.append((x, y))
        moments.append((abs(two), abs(three), four.real, area / spread))
    return np.array(centres), np.array(moments)


def _hue(color: np.ndarray) -> tuple[float, float]:
    """Angle in degrees and length of a colour's (or of a difference's) part without grey."""
    red, green, blue = (float(value) for value in color)
    across, up = red - (green + blue) / 2, np.sqrt(3) / 2 * (green - blue)
    return float(np.degrees(np.arctan2(up, across))) % 360, float(np.hypot(across, up))


_HUES = {name: _hue(np.array(color))[0] for name, color in COLORS.items() if name != "white"}


def _color(object_color: np.ndarray) -> tuple[str, dict[str, float]]:
    hue, chroma = _hue(object_color)
    share = chroma / float(np.linalg.norm(object_color))
    measures = {"hue": hue, "chroma": share}
    if share < _WHITE:
        return ("white" if object_color.mean() > 0 else UNKNOWN), measures
    away = {name: abs((hue - known + 180) % 360 - 180) for name, known in _HUES.items()}
    nearest = min(away, key=lambda name: away[name])
    return (nearest if away[nearest] <= _HUE_TOLERANCE else UNKNOWN), measures


def _motion(centres: np.ndarray, at: np.ndarray, shape: tuple[int, ...]) -> tuple[str, dict[str, float]]:
    """The direction of a least-squares line through the centres of the frames ``at``."""
    if len(at) < 2:
        return UNKNOWN, {}
    times = at - at.mean()
    dx, dy = (times @ (centres - centres.mean(0)) / (times @ times) * (shape[0] - 1)).tolist()
    measures = {"dx": dx, "dy": dy}
    large, small = max(abs(dx), abs(dy)), min(abs(dx), abs(dy))
    if large < _LEAST_SHIFT * min(shape[1:3]) or large < _DOMINANCE * small:
        return UNKNOWN, measures
    if abs(dx) > abs(dy):
        return ("right" if dx > 0 else "left"), measures
    return ("down" if dy > 0 else "up"), measures


def _shape(moments: np.ndarray) -> tuple[str, dict[str, float]]:
    two, three, four, compact = (float(value) for value in moments)
    measures = {"elongation": two, "third": three, "fourth": four, "compactness": compact}
    if two > _ELONGATED or compact < _COMPACT:
        return UNKNOWN, measures
    if three > _TRIANGLE:
        return "triangle", measures
    return ("square" if four < _SQUARE else "circle"), measures
