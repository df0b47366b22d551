"""Both directions of the VAE over the tiles and chunks of a clip, on one process or several that share the tiles.

Tiles lie as ``core.vae.tiling`` says, chunks as ``core.vae.chunks``. What passes through is given: ``Pass``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import mindspore as ms
from mindspore import mint

from core import ops
from core.configs import VAEConfig
from core.vae.tiling import Tile, TilePlan, TilingConfig

Cache = dict[str, ms.Tensor]  # name of a causal convolution -> its last frames


class Apart(Cache):
    """A cache for streams, without gradients: its frames live from chunk to chunk, see ``core.ops.apart``."""

    def __setitem__(self, name: str, frames: ms.Tensor) -> None:
        super().__setitem__(name, ops.apart(frames))


def successor(cache: Cache) -> Cache:
    """An empty cache of the kind that ``cache`` is; frames that are handed to other processes are kept by nobody."""
    return Apart() if isinstance(cache, Apart) else {}


class Share(NamedTuple):
    """Number ``index`` of ``size`` processes that deal out tiles; ``gather``: ``[m]`` of each -> ``[size * m]``."""

    size: int
    index: int
    gather: Callable[[ms.Tensor], ms.Tensor]


ALONE = Share(1, 0, lambda x: x)


class Pass(NamedTuple):
    """One direction: ``run(chunk, cache) -> (result, cache)`` and the elements per latent on both sides.

    ``side``: ``encoder`` or ``decoder``, as the parameters of ``config`` are named.
    """

    side: str
    config: VAEConfig
    run: Callable[[ms.Tensor, Cache], tuple[ms.Tensor, Cache]]
    scale_in: int
    scale_out: int


def mean_std(moments: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
    """Mean and log variance on one axis ``[B, 2 C, ...]`` -> mean and standard deviation, ``[B, C, ...]``."""
    mean, logvar = mean_logvar(moments)
    return mean, mint.exp(0.5 * logvar)


def mean_logvar(moments: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
    """The two apart, the logarithm of the variance from -30 to 20."""
    mean, logvar = mint.chunk(moments, 2, 1)
    return mean, mint.clamp(logvar, -30.0, 20.0)


def max_batch(tiling: TilingConfig | None) -> int:
    """How many tiles of equal shape go through at a time."""
    return tiling.max_batch if tiling is not None and tiling.vectorised else 1


def cut(x: ms.Tensor, group: list, scale: int) -> ms.Tensor:
    """The tiles of one group, stacked in the batch."""
    parts = [
        x[:, :, :, tile.top * scale : tile.bottom * scale, tile.left * scale : tile.right * scale] for tile in group
    ]
    return parts[0] if len(parts) == 1 else mint.cat(parts, 0)


def paste(canvas: ms.Tensor | None, y: ms.Tensor, group: list, plan: TilePlan, scale: int) -> ms.Tensor:
    """Adds the weighted tiles of one group into ``canvas``, in fp32 because the overlaps are sums."""
    if len(plan.tiles) == 1:
        return y
    batch = y.shape[0] // len(group)
    shape = (batch, *y.shape[1:3], plan.rows.size * scale, plan.cols.size * scale)
    total = mint.zeros(shape, dtype=ms.float32) if canvas is None else canvas
    for n, tile in enumerate(group):
        weighted = y[n * batch : (n + 1) * batch].astype(ms.float32) * ms.Tensor(plan.weights(tile, scale))
        rows = slice(tile.top * scale, tile.bottom * scale)
        cols = slice(tile.left * scale, tile.right * scale)
        total[:, :, :, rows, cols] += weighted
    return total


def whole(step: Pass, pieces: list[ms.Tensor], plan: TilePlan, groups: list[list[Tile]], share: Share) -> ms.Tensor:
    """All chunks of a group of tiles, then the next group; several processes take as many groups at a time."""
    canvases: list = [None] * len(pieces)
    at_once = share.size if len(groups) > 1 else 1
    for first in range(0, len(groups), at_once):
        now = groups[first : first + at_once]
        # Where groups run out, one is computed twice: idle processes would have nothing to gather.
        own = now[share.index % len(now)]
        cache: Cache = {}
        for k, piece in enumerate(pieces):
            y, cache = step.run(cut(piece, own, step.scale_in), cache)
            parts = [y] if at_once == 1 else _gathered(y, own, now, share)
            for group, part in zip(now, parts, strict=True):
                canvases[k] = paste(canvases[k], part, group, plan, step.scale_out)
    result = canvases[0] if len(canvases) == 1 else mint.cat(canvases, 2)
    return result.astype(y.dtype)


def _gathered(y: ms.Tensor, own: list, now: list[list], share: Share) -> list[ms.Tensor]:
    """The results of all groups ``now``, of which ``y`` is that of ``own``; smaller ones are padded to be sent."""
    batch, scale = y.shape[0] // len(own), y.shape[3] // (own[0].bottom - own[0].top)
    shapes = []
    for group in now:
        height, width = (group[0].bottom - group[0].top) * scale, (group[0].right - group[0].left) * scale
        shapes.append((len(group) * batch, *y.shape[1:3], height, width))
    sizes = [math.prod(shape) for shape in shapes]
    flat, longest = y.reshape(-1), max(sizes)
    if flat.shape[0] < longest:
        flat = mint.cat([flat, mint.zeros(longest - flat.shape[0], dtype=y.dtype)])
    rows = share.gather(flat).reshape(share.size, longest)
    return [rows[k, : sizes[k]].reshape(shape) for k, shape in enumerate(shapes)]


def stream(step: Pass, pieces: Iterable[tuple[ms.Tensor, TilePlan]], at_once: int) -> Iterator[ms.Tensor]:
    """All tiles of a chunk, then the next chunk."""
    caches: dict[int, Cache] = {}
    for piece, plan in pieces:
        canvas: ms.Tensor | None = None
        for g, group in enumerate(plan.groups(at_once)):
            y, caches[g] = step.run(cut(piece, group, step.scale_in), caches.get(g, Apart()))
            canvas = paste(canvas, y, group, plan, step.scale_out)
        assert canvas is not None
        yield canvas.astype(y.dtype)
