"""One clip on several processes, of which each has every n-th chunk: what goes from chunk to chunk is handed over.

A causal convolution needs the last frames of *its own input* in the chunk before, and nothing else goes from chunk to
chunk. So n processes take n neighbouring chunks, a wave, and go through the layers side by side; before a convolution
each sends the end of its input to the process of the next chunk and gets that of the chunk before. The last one's goes
to the first, which keeps it for the next wave. Each convolution sees the numbers that one process gives it: same bits.

This module knows functions that send, given by whoever knows the processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import mindspore as ms
from mindspore import mint

from core.vae import chunks, passes
from core.vae.ends import ends
from core.vae.tiling import Tile, TilePlan


class Neighbours(NamedTuple):
    """Number ``index`` of ``size`` processes that share the chunks of a clip, and how they talk; all call in one order.

    ``hand_on``: a tensor to process ``index + 1``, that of ``index - 1`` back, of the same shape (the last one's to the
    first). ``publish``: ``(tensor, owner)`` -> the owner's on all. ``agree``: whether all say so.
    """

    size: int
    index: int
    hand_on: Callable[[ms.Tensor], ms.Tensor]
    publish: Callable[[ms.Tensor, int], ms.Tensor]
    agree: Callable[[bool], bool]

    def published(self, y: ms.Tensor | None, chunk: int, shape: tuple[int, ...], dtype: Any) -> ms.Tensor:
        """The result ``y`` of ``chunk``, of that shape and type, on all processes; those of other chunks have none."""
        owner = chunk % self.size
        if owner != self.index:
            y = mint.zeros(shape, dtype=dtype)
        assert y is not None, "the owner has the chunk"
        return self.publish(y, owner)


class Handover:
    """What ``encode_chunk`` and ``decode_chunk`` take for a cache: its entries are functions that ask the neighbour.

    Attributes:
        alone: whether the first process works by itself, on the last chunk: there is nobody to ask.
    """

    def __init__(self, neighbours: Neighbours):
        self._neighbours, self._kept = neighbours, {}
        self.alone = False

    def pop(self, name: str, default: Any = None) -> Any:
        """How the frames before come to the convolution ``name``; frames that were kept where there is nobody."""
        return self._kept.pop(name, default) if self.alone else partial(self._before, name)

    def _before(self, name: str, end: ms.Tensor) -> ms.Tensor | None:
        received = self._neighbours.hand_on(end)
        if self._neighbours.index:
            return received
        before, self._kept[name] = self._kept.get(name), received
        return before


def in_waves(
    step: passes.Pass, piece: Callable[[int | None], Any], count: int, near: Neighbours, tile: tuple[int, int, int],
    dtype: Any,
) -> Iterator[tuple[list[int], ms.Tensor | None]]:  # fmt: skip
    """Runs the chunks of one group of tiles, a wave at a time -> ``(its chunks, the own one's result or None)``.

    Args:
        piece: gives chunk k; asked by every process in each wave, with None where it has no chunk.
        tile: batch, height and width in latents.
        dtype: what is computed in.
    """
    cache: Any = Handover(near)
    for wave in chunks.waves(count, near.size):
        cache.alone, own = len(wave) == 1, None
        if near.index < len(wave):
            own, _ = step.run(piece(wave[near.index]), cache)
        else:
            piece(None)
            # A collective asks all: who has no chunk hands on nothing, in the same order.
            for shape in [] if cache.alone else ends(step.config, step.side, *tile):
                near.hand_on(mint.zeros(shape, dtype=dtype))
        yield wave, own


def whole(
    step: passes.Pass, pieces: list[ms.Tensor], plan: TilePlan, groups: list[list[Tile]], near: Neighbours, dtype: Any
) -> ms.Tensor:
    """``passes.whole`` over time: each process adds up the tiles of its chunks, then all chunks go to all."""
    canvases: dict[int, Any] = {}
    for group in groups:
        tile = (pieces[0].shape[0] * len(group), group[0].bottom - group[0].top, group[0].right - group[0].left)

        def piece(k: int | None, group: list[Tile] = group) -> Any:
            return None if k is None else passes.cut(pieces[k], group, step.scale_in)

        for wave, y in in_waves(step, piece, len(pieces), near, tile, dtype):
            if y is not None:
                k = wave[near.index]
                canvases[k] = passes.paste(canvases.get(k), y, group, plan, step.scale_out)
    kept = dtype if len(plan.tiles) == 1 else ms.float32
    size = (plan.rows.size * step.scale_out, plan.cols.size * step.scale_out)
    parts = []
    for k, x in enumerate(pieces):
        shape = (x.shape[0], *result_shape(step, x.shape[2]), *size)
        parts.append(near.published(canvases.pop(k, None), k, shape, kept))
    return mint.cat(parts, 2).astype(dtype)


def result_shape(step: passes.Pass, frames: int) -> tuple[int, int]:
    """Channels and frames that a chunk of ``frames`` becomes."""
    ratio = int(step.config.temporal_compression_ratio)
    if step.side == "encoder":
        return 2 * step.config.latent_channels, chunks.latent_frames(frames, ratio)
    return step.config.out_channels, chunks.decoded_frames(frames, ratio)
