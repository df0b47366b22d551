"""Where tiles lie and with which weights they are added up. No MindSpore; one implementation for both directions.

A clip too large for one pass is cut into overlapping tiles, each tile is encoded or decoded on its own, and
``output = sum over tiles of weight * tile``. The reference (diffusers 0.42) instead blends each tile in place with its
upper, then its left neighbour, which are blended already. With at most half a tile of overlap this is a weighted sum:
let ``wy, wx`` in [0, 1) be the linear ramps inside a seam. Where a horizontal and a vertical seam cross,

    wy (wx T[i,j] + (1-wx) T[i,j-1])  +  (1-wy) (wx^2 T[i-1,j] + (1-wx^2) T[i-1,j-1])

because the row above was blended across the vertical seam when it was made and is blended so again when it is used.
Hence ``corners="reference"`` is the product of the ramps with ``wx`` squared in the part of a tile that serves the
row below, and ``corners="separable"`` is the plain product. They differ only where four tiles meet.

Lengths are in latents unless a name says pixels; ``scale`` is output elements per latent (decode 8, encode 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from core.configs import VAEConfig
from core.errors import UserError

Corners = Literal["reference", "separable"]


@dataclass(frozen=True, kw_only=True)
class TilingConfig:
    """Tiles of ``tile_height x tile_width`` pixels that overlap by these fractions of a tile.

    ``vectorised``: tiles of equal shape go through the VAE as one batch, at most ``max_batch`` at a time. It trades
    memory for fewer, larger passes and changes no number.
    """

    tile_height: int
    tile_width: int
    overlap_height: float = 1 / 6
    overlap_width: float = 1 / 5
    vectorised: bool = False
    max_batch: int = 4
    corners: Corners = "reference"

    def __post_init__(self) -> None:
        for name in ("tile_height", "tile_width", "max_batch"):
            if getattr(self, name) < 1:
                raise UserError(f"tiling.{name}: got {getattr(self, name)}, need a positive number")
        for name in ("overlap_height", "overlap_width"):
            if not 0 <= getattr(self, name) <= 0.5:
                raise UserError(
                    f"tiling.{name}: got {getattr(self, name)}, need 0 to 0.5 (with more, three tiles would meet in "
                    "one seam); use larger tiles"
                )
        if self.corners not in get_args(Corners):
            raise UserError(f"tiling.corners: got {self.corners!r}, need one of {', '.join(get_args(Corners))}")

    @classmethod
    def reference(cls, config: VAEConfig) -> TilingConfig:
        """The reference's tiles: half of the VAE's sample size, overlapping by 1/6 and 1/5."""
        return cls(tile_height=config.sample_height // 2, tile_width=config.sample_width // 2)


@dataclass(frozen=True)
class Axis:
    """Tiles along one dimension: tile ``i`` covers ``[i * stride, i * stride + lengths[i])``."""

    stride: int
    lengths: tuple[int, ...]

    @property
    def size(self) -> int:
        """Length of the whole dimension."""
        return (len(self.lengths) - 1) * self.stride + self.lengths[-1]

    def seam(self, i: int) -> int:
        """Length of the overlap of tiles ``i - 1`` and ``i``; 0 at the borders."""
        if not 0 < i < len(self.lengths):
            return 0
        return self.lengths[i - 1] - self.stride

    def weights(self, i: int, scale: int, power: int = 1) -> np.ndarray:
        """Weight of tile ``i`` at each of its ``lengths[i] * scale`` output positions, ramps raised to ``power``."""
        rising, falling = self.seam(i) * scale, self.seam(i + 1) * scale
        weights = np.ones(self.lengths[i] * scale)
        if rising:
            weights[:rising] = (np.arange(rising) / rising) ** power
        if falling:
            weights[self.stride * scale :] = 1 - (np.arange(falling) / falling) ** power
        return weights


@dataclass(frozen=True)
class Tile:
    """Row ``i`` and column ``j`` of a tile, and the half-open rectangle that it covers."""

    i: int
    j: int
    top: int
    bottom: int
    left: int
    right: int


@dataclass(frozen=True)
class TilePlan:
    """All tiles of one clip."""

    rows: Axis
    cols: Axis
    corners: Corners = "reference"

    @property
    def tiles(self) -> list[Tile]:
        """Every tile, row by row."""
        spans = [
            [(k, k * axis.stride, k * axis.stride + length) for k, length in enumerate(axis.lengths)]
            for axis in (self.rows, self.cols)
        ]
        return [Tile(i, j, top, end, left, right) for i, top, end in spans[0] for j, left, right in spans[1]]

    def groups(self, max_batch: int) -> list[list[Tile]]:
        """The tiles in batches of equal shape, at most ``max_batch`` each."""
        shapes: dict[tuple[int, int], list[Tile]] = {}
        for tile in self.tiles:
            shapes.setdefault((tile.bottom - tile.top, tile.right - tile.left), []).append(tile)
        return [same[k : k + max_batch] for same in shapes.values() for k in range(0, len(same), max_batch)]

    def weights(self, tile: Tile, scale: int) -> np.ndarray:
        """Float32 weights ``[height * scale, width * scale]`` of one tile; over all tiles they sum to 1."""
        return _weights(self, tile, scale)


@lru_cache(maxsize=128)
def _weights(plan: TilePlan, tile: Tile, scale: int) -> np.ndarray:
    vertical = plan.rows.weights(tile.i, scale)[:, None]
    own = plan.cols.weights(tile.j, scale)[None]
    for_row_below = plan.cols.weights(tile.j, scale, power=2 if plan.corners == "reference" else 1)[None]
    beyond = (np.arange(len(vertical)) >= plan.rows.stride * scale)[:, None]
    return (vertical * np.where(beyond, for_row_below, own)).astype(np.float32)


def _axis(size: int, tile: int, overlap: float) -> Axis:
    stride = tile - min(round(tile * overlap), tile // 2)
    return Axis(stride, tuple(min(tile, size - start) for start in range(0, size, stride)))


def plan_tiles(height: int, width: int, tiling: TilingConfig | None, ratio: int = 8) -> TilePlan:
    """Tiles for ``height x width`` latents; one tile when ``tiling`` is None or the clip is no larger than a tile.

    ``ratio`` is pixels per latent. An overlap that is not a whole number of latents is rounded to one (there the
    reference's rows would not fit together).

    Raises:
        UserError: a tile's size is not a multiple of ``ratio``.
    """
    if tiling is None or (height * ratio <= tiling.tile_height and width * ratio <= tiling.tile_width):
        return TilePlan(Axis(height, (height,)), Axis(width, (width,)))
    for name in ("tile_height", "tile_width"):
        pixels = getattr(tiling, name)
        if pixels % ratio:
            near = max(1, round(pixels / ratio)) * ratio
            raise UserError(f"tiling.{name}: got {pixels}, need a multiple of {ratio}; use {near}")
    return TilePlan(
        _axis(height, tiling.tile_height // ratio, tiling.overlap_height),
        _axis(width, tiling.tile_width // ratio, tiling.overlap_width),
        tiling.corners,
    )
