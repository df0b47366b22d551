"""Encoding and decoding of one clip whose memory grows neither with its frames nor, with tiles, with its size.

Without tiles a chunk goes through at a time (``encode_chunks``, ``decode_chunks``). With tiles that order would keep
the caches of all tiles alive, which together are larger than a whole frame's activations at 768x1360; so one tile goes
through all its chunks before the next begins. What has to wait until the last tile is done waits in a file: the
pixels decoded so far; and pixels to encode are read again for each group of tiles.

Same numbers as ``encode`` and ``decode``. T/t frames and latent frames, H/W pixels, h/w latents; numpy fp32 arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np

from core.errors import UserError
from core.vae import chunks, over_time, passes
from core.vae.canvas import Canvas
from core.vae.passes import Apart
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
    if vae.neighbours is not None:
        yield from _decoded_over_time(vae, latents, tiling, plan, folder)
        return
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
    with Canvas(shape, folder) as canvas:
        for group in plan.groups(_at_once(tiling)):
            cache = Apart()
            start = 0
            for first, last in spans:
                part = np.concatenate([_cut(latents[:, first:last], tile)[None] for tile in group])
                y, cache = vae.decode_chunk(_tensor(part), cache)
                start = _add(canvas, start, group, plan, ratio, y)
        for frame in range(frames):
            yield canvas.read(frame, 1)


def _decoded_over_time(
    vae: Any, latents: np.ndarray, tiling: TilingConfig | None, plan: TilePlan, folder: str | Path | None
) -> Iterator[np.ndarray]:
    """The pieces of a clip whose chunks several processes decode: on each, one at a time, in order.

    Without tiles a wave of chunks is decoded, handed out, then the next. With tiles each process has a file of the
    frames of its own chunks, and they are handed out one by one. Pieces are those of one process: digests see them.
    """
    step, near, ratio = vae.passes[1], vae.neighbours, vae.config.spatial_compression_ratio
    spans = chunks.latent_chunks(latents.shape[1])
    results = [over_time.result_shape(step, last - first) for first, last in spans]
    size, dtype = (plan.rows.size * ratio, plan.cols.size * ratio), vae.compute_dtype

    def decoded(group: list[Tile]) -> Iterator[tuple[list[int], ms.Tensor | None]]:
        def piece(k: int | None) -> Any:
            parts = [] if k is None else [_cut(latents[:, slice(*spans[k])], tile)[None] for tile in group]
            return _tensor(np.concatenate(parts)) if parts else None

        tile = (len(group), group[0].bottom - group[0].top, group[0].right - group[0].left)
        return over_time.in_waves(step, piece, len(spans), near, tile, dtype)

    if len(plan.tiles) == 1:
        for wave, y in decoded(plan.tiles):
            for k in wave:
                yield near.published(y, k, (1, *results[k], *size), dtype).astype(ms.float32).asnumpy()[0]
        return
    own = [results[k][1] for k in range(near.index, len(spans), near.size)]
    starts = {k: sum(own[: k // near.size]) for k in range(near.index, len(spans), near.size)}
    with Canvas((sum(own), vae.config.out_channels, *size), folder) as canvas:
        for group in plan.groups(_at_once(tiling)):
            for wave, y in decoded(group):
                if y is not None:
                    _add(canvas, starts[wave[near.index]], group, plan, ratio, y)
        for k, frame in ((k, frame) for k, (_, frames) in enumerate(results) for frame in range(frames)):
            mine = _tensor(canvas.read(starts[k] + frame, 1)) if k in starts else None
            yield near.published(mine, k, (results[k][0], 1, *size), ms.float32).asnumpy()


def _add(canvas: Canvas, start: int, group: list[Tile], plan: TilePlan, ratio: int, y: ms.Tensor) -> int:
    """Adds the weighted tiles of one chunk at frame ``start``; the frame after it."""
    made = y.astype(ms.float32).asnumpy()
    for tile, pixels in zip(group, made, strict=True):
        canvas.add(start, tile.top * ratio, tile.left * ratio, pixels * plan.weights(tile, ratio))
    return start + made.shape[2]


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
    if len(plan.tiles) == 1 and vae.neighbours is not None:
        tile = (1, plan.rows.size, plan.cols.size)
        parts = [passes.mean_std(y) for y in _encoded(vae, (piece[None] for piece in pixels()), num_frames, tile)]
        means, stds = ([part[k].astype(ms.float32).asnumpy()[0] for part in parts] for k in (0, 1))
        return np.concatenate(means, 1), np.concatenate(stds, 1)
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
    start = 0
    # Tiles are cut out of each piece as it comes: only the reader holds whole frames.
    parts = (np.concatenate([_cut(piece, tile, ratio)[None] for tile in group]) for piece in pixels())
    height, width = group[0].bottom - group[0].top, group[0].right - group[0].left
    for y in _encoded(vae, parts, num_frames, (len(group), height, width)):
        made = y.astype(ms.float32).asnumpy()
        for tile, values in zip(group, made, strict=True):
            place = moments[:, start : start + made.shape[2], tile.top : tile.bottom, tile.left : tile.right]
            place += values * plan.weights(tile, 1)
        start += made.shape[2]


def _encoded(vae: Any, parts: Iterable[np.ndarray], num_frames: int, tile: tuple[int, int, int]) -> Iterator[ms.Tensor]:
    """Pieces ``[B, 3, any, H, W]`` -> the moments of each chunk, on every process that shares the clip.

    ``tile``: B, and height and width in latents.
    """
    chunk_parts = _regrouped(parts, num_frames)
    if vae.neighbours is None:
        cache = Apart()
        for chunk in chunk_parts:
            y, cache = vae.encode_chunk(_tensor(chunk), cache)
            yield y
        return
    step, near, spans = vae.passes[0], vae.neighbours, chunks.sample_chunks(num_frames)
    turns = _Turns(chunk_parts, near.agree)
    for wave, y in over_time.in_waves(step, turns.piece, len(spans), near, tile, vae.compute_dtype):
        for k in wave:
            channels, frames = over_time.result_shape(step, spans[k][1] - spans[k][0])
            yield near.published(y, k, (tile[0], channels, frames, *tile[1:]), vae.compute_dtype)
    turns.end()


class _Turns:
    """The own chunks of a clip that every process reads for itself; what one can't read, all refuse.

    Nobody may raise alone: the others would wait for what it hands on.
    """

    def __init__(self, source: Iterator[np.ndarray], agree: Callable[[bool], bool]):
        self._source, self._agree, self._next = source, agree, 0

    def piece(self, k: int | None) -> ms.Tensor | None:
        """Chunk ``k`` where one is asked for; all processes call this at the same time."""
        found = self._read(-1 if k is None else k)
        return None if found is None else _tensor(found)

    def end(self) -> None:
        """Whether the clip is as long as was said, too."""
        self._read(None)

    def _read(self, last: int | None) -> np.ndarray | None:
        found, problem = None, None
        try:
            while last is None or self._next <= last:
                found = next(self._source, None)
                if found is None:
                    break
                self._next += 1
        except UserError as error:
            problem = error
        if self._agree(problem is None):
            return found
        for _ in self._source:  # the same file: whoever has not met the problem meets it further on
            pass
        raise problem or UserError("frames: another process could not read this clip; see its log")


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
