"""Encoding and decoding of one clip whose memory grows neither with its frames nor, with tiles, with its size.

Without tiles a chunk goes through at a time (``encode_chunks``, ``decode_chunks``). With tiles that order would keep
the caches of all tiles alive, which together are larger than a whole frame's activations at 768x1360; so one tile goes
through all its chunks before the next begins. What has to wait until the last tile is done waits in a file: the
pixels decoded so far; and pixels to encode are read again for each group of tiles.

Same numbers as ``encode`` and ``decode``. T/t frames and latent frames, H/W pixels, h/w latents; numpy fp32 arrays.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np

from core.errors import UserError
from core.vae import chunks
from core.vae.model import Apart
from core.vae.tiling import Tile, TilePlan, TilingConfig, plan_tiles

Pixels = Callable[[], Iterable[np.ndarray]]  # starts the clip anew: pieces [3, any, H, W]


def decode_pieces(
    vae: Any, latents: np.ndarray, tiling: TilingConfig | None = None, folder: str | Path | None = None
) -> Iterator[np.ndarray]:
    """Unscaled latents ``[C, t, h, w]`` -> pixels ``[3, 8 or 9 (or 1), H, W]`` around [-1, 1], in order.

    Where there are several tiles, pieces are single frames: whoever asks for the next one still holds the last.

    ``folder``: where the unnamed file of finished tiles lies (4 bytes a pixel and channel); None: the system's own.

    Raises:
        UserError: as ``decode``.
    """
    ratio = vae.config.spatial_compression_ratio
    if latents.ndim != 4 or latents.shape[0] != vae.config.latent_channels:
        need = f"[{vae.config.latent_channels}, frames, height, width]"
        raise UserError(f"latents: got shape {list(latents.shape)}, need {need}; transpose it")
    plan = plan_tiles(latents.shape[2], latents.shape[3], tiling, ratio)
    if len(plan.tiles) == 1:
        for piece in vae.decode_chunks(_tensor(latents[None])):
            yield piece.astype(ms.float32).asnumpy()[0]
        return
    spans = chunks.latent_chunks(latents.shape[1])
    frames = chunks.decoded_frames(latents.shape[1], int(vae.config.temporal_compression_ratio))
    shape = (frames, vae.config.out_channels, plan.rows.size * ratio, plan.cols.size * ratio)
    if vae.tiles_are_shared:
        yield from _gathered_pieces(vae, latents, tiling)
        return
    with _Canvas(shape, folder) as canvas:
        for group in plan.groups(_at_once(tiling)):
            cache = Apart()
            start = 0
            for first, last in spans:
                part = np.concatenate([_cut(latents[:, first:last], tile)[None] for tile in group])
                y, cache = vae.decode_chunk(_tensor(part), cache)
                made = y.astype(ms.float32).asnumpy()
                for tile, pixels in zip(group, made, strict=True):
                    canvas.add(start, tile.top * ratio, tile.left * ratio, pixels * plan.weights(tile, ratio))
                start += made.shape[2]
        for frame in range(frames):
            yield canvas.read(frame, 1)


def _gathered_pieces(vae: Any, latents: np.ndarray, tiling: TilingConfig | None) -> Iterator[np.ndarray]:
    """The pieces of a clip whose tiles several processes decode: each of them holds the whole clip."""
    pixels = vae.decode(_tensor(latents[None]), tiling).astype(ms.float32).asnumpy()[0]
    for frame in range(pixels.shape[1]):
        yield pixels[:, frame : frame + 1]


def encode_pieces(
    vae: Any, pixels: Pixels, num_frames: int, size: tuple[int, int], tiling: TilingConfig | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """``num_frames`` pixel frames of ``size`` (H, W) -> mean and standard deviation of the latents, ``[C, t, h, w]``.

    Raises:
        UserError: as ``encode_chunks``.
    """
    ratio = vae.config.spatial_compression_ratio
    plan = plan_tiles(size[0] // ratio, size[1] // ratio, tiling, ratio)
    if len(plan.tiles) == 1:
        pieces = (_tensor(piece[None]) for piece in pixels())
        parts = list(vae.encode_chunks(pieces, num_frames))
        means, stds = ([part[k].astype(ms.float32).asnumpy()[0] for part in parts] for k in (0, 1))
        return np.concatenate(means, 1), np.concatenate(stds, 1)
    frames = chunks.latent_frames(num_frames, int(vae.config.temporal_compression_ratio))
    moments = np.zeros((2 * vae.config.latent_channels, frames, plan.rows.size, plan.cols.size), np.float32)
    for group in plan.groups(_at_once(tiling)):
        _encode_group(vae, pixels, num_frames, plan, group, moments)
    mean, logvar = np.split(moments, 2)
    return mean, np.exp(np.float32(0.5) * np.clip(logvar, -30.0, 20.0))


def _encode_group(
    vae: Any, pixels: Pixels, num_frames: int, plan: TilePlan, group: list[Tile], moments: np.ndarray
) -> None:
    ratio = vae.config.spatial_compression_ratio
    cache = Apart()
    start = 0
    # Tiles are cut out of each piece as it comes: only the reader holds whole frames.
    parts = (np.concatenate([_cut(piece, tile, ratio)[None] for tile in group]) for piece in pixels())
    for chunk in _regrouped(parts, num_frames):
        y, cache = vae.encode_chunk(_tensor(chunk), cache)
        made = y.astype(ms.float32).asnumpy()
        for tile, values in zip(group, made, strict=True):
            place = moments[:, start : start + made.shape[2], tile.top : tile.bottom, tile.left : tile.right]
            place += values * plan.weights(tile, 1)
        start += made.shape[2]


def _regrouped(pieces: Iterable[np.ndarray], num_frames: int) -> Iterator[np.ndarray]:
    """Pieces ``[B, 3, any, H, W]`` as the encoder's chunks."""
    source = iter(pieces)
    held: list[np.ndarray] = []
    for start, stop in chunks.sample_chunks(num_frames):
        parts, held = held, []
        while sum(part.shape[2] for part in parts) < stop - start:
            piece = next(source, None)
            if piece is None:
                raise UserError(f"frames: the clip ended before num_frames = {num_frames}; pass the clip's real count")
            parts.append(piece)
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts, 2)
        if joined.shape[2] > stop - start:
            held = [joined[:, :, stop - start :].copy()]
        yield joined[:, :, : stop - start]
    if held or next(source, None) is not None:
        raise UserError(f"frames: got more than num_frames = {num_frames}; pass the clip's real count")


def _tensor(array: np.ndarray) -> ms.Tensor:
    return ms.Tensor(np.ascontiguousarray(array, np.float32))


def _at_once(tiling: TilingConfig | None) -> int:
    return tiling.max_batch if tiling is not None and tiling.vectorised else 1


def _cut(array: np.ndarray, tile: Tile, scale: int = 1) -> np.ndarray:
    return array[..., tile.top * scale : tile.bottom * scale, tile.left * scale : tile.right * scale]


class _Canvas:
    """fp32 pixels ``[T, C, H, W]`` in an unnamed file, all zero at first. Plain reads and writes: pages of a memory
    map would count as the process's memory."""

    def __init__(self, shape: tuple[int, int, int, int], folder: str | Path | None):
        self.shape = shape
        self._file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115 (closed in __exit__)
        self._file.truncate(4 * int(np.prod(shape)))

    def __enter__(self) -> _Canvas:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _offset(self, frame: int, channel: int, row: int) -> int:
        _, channels, height, width = self.shape
        return 4 * (((frame * channels + channel) * height + row) * width)

    def _read(self, offset: int, into: np.ndarray) -> None:
        """Fills ``into``, which is contiguous, without a copy between."""
        self._file.seek(offset)
        view = into.data.cast("B")
        while len(view):
            count = self._file.readinto(view)
            assert count, "the file is as long as the canvas"
            view = view[count:]

    def _write(self, offset: int, values: np.ndarray) -> None:
        self._file.seek(offset)
        view = values.data.cast("B")
        while len(view):
            view = view[self._file.write(view) :]

    def add(self, start: int, top: int, left: int, pixels_CTHW: np.ndarray) -> None:
        """Adds ``[C, t, rows, columns]`` at frame ``start`` and pixel ``top, left``."""
        channels, frames, rows, columns = pixels_CTHW.shape
        band = np.empty((rows, self.shape[3]), np.float32)
        for frame in range(frames):
            for channel in range(channels):
                offset = self._offset(start + frame, channel, top)
                self._read(offset, band)
                band[:, left : left + columns] += pixels_CTHW[channel, frame]
                self._write(offset, band)

    def read(self, start: int, count: int) -> np.ndarray:
        """Frames ``start`` to ``start + count`` as ``[C, count, H, W]``."""
        _, channels, height, width = self.shape
        frames = np.empty((channels, count, height, width), np.float32)
        for frame in range(count):
            for channel in range(channels):
                self._read(self._offset(start + frame, channel, 0), frames[channel, frame])
        return frames
