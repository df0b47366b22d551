"""The CogVideoX VAE: 3 x T x H x W pixels <-> 16 x t x H/8 x W/8 latents, t = (T - 1) / 4 + 1.

B batch, T/t frames and latent frames, H/W pixels, h/w latents. Latents are neither scaled nor shifted here: the
caller multiplies by ``config.scaling_factor`` before the transformer and divides after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import mindspore as ms
from mindspore import mint

from core import ops
from core.configs import VAEConfig
from core.errors import UserError
from core.model import Model
from core.vae import blocks, chunks
from core.vae.conv import conv
from core.vae.parameters import MID_RESNETS, parameter_table, temporal_levels
from core.vae.tiling import TilePlan, TilingConfig, plan_tiles

Cache = dict[str, ms.Tensor]  # name of a causal convolution -> its last frames


class Apart(Cache):
    """A cache for streams, without gradients: its frames live from chunk to chunk, see ``core.ops.apart``."""

    def __setitem__(self, name: str, frames: ms.Tensor) -> None:
        super().__setitem__(name, ops.apart(frames))


class _Share(NamedTuple):
    """Number ``index`` of ``size`` processes that deal out tiles; ``gather``: ``[m]`` of each -> ``[size * m]``."""

    size: int
    index: int
    gather: Callable[[ms.Tensor], ms.Tensor]


_ALONE = _Share(1, 0, lambda x: x)


class _Pass(NamedTuple):
    """One direction: ``run(chunk, cache) -> (result, cache)`` and the elements per latent on both sides."""

    run: Callable[[ms.Tensor, Cache], tuple[ms.Tensor, Cache]]
    scale_in: int
    scale_out: int


class AutoencoderKLCogVideoX(Model):
    """Encoder and decoder with the published parameter names.

    Args:
        config: sizes, from ``vae/config.json``.
        dtype: type of the parameters and of the computation (norm statistics are fp32).

    ``whole_blocks`` makes graph mode compile blocks as a whole and not their norms alone (``core.vae.blocks``): worth
    its memory where gradients are taken. ``whole_sides`` compiles encoder and decoder as a whole where a clip is one
    chunk and no quant convolution follows: for small models, where calling blocks costs more than what they compute.
    """

    def __init__(self, config: VAEConfig, dtype: ms.Type = ms.float32):
        super().__init__(parameter_table(config), dtype)
        self.config = config
        self.whole_blocks = self.whole_sides = False
        ratio = config.spatial_compression_ratio
        self._encoding = _Pass(self.encode_chunk, ratio, 1)
        self._decoding = _Pass(self.decode_chunk, 1, ratio)
        self._share = _ALONE

    def share_tiles(self, size: int, index: int, gather: Callable[[ms.Tensor], ms.Tensor]) -> None:
        """Deals the tiles of ``encode`` and ``decode`` to ``size`` processes, of which this is number ``index``.

        ``gather``: ``[m]`` of each process -> ``[size * m]`` on all, in their order. Every process gets the whole
        result, with the bits of one process: tiles are added up in the same order. Without tiles each computes all.
        """
        self._share = _Share(size, index, gather)

    @property
    def tiles_are_shared(self) -> bool:
        """Whether several processes work on the tiles of one clip."""
        return self._share.size > 1

    def encode(self, video: ms.Tensor, tiling: TilingConfig | None = None) -> tuple[ms.Tensor, ms.Tensor]:
        """Pixels in [-1, 1] ``[B, 3, T, H, W]`` -> mean and standard deviation of the latents, ``[B, 16, t, h, w]``.

        T is 4k or 4k + 1 (``chunks.latent_frames``), H and W are multiples of 8. With tiles, one tile (or one batch
        of tiles) goes through all its chunks before the next begins, so only its cache is alive.

        Raises:
            UserError: a shape that the VAE can't take.
        """
        return _mean_std(self._moments(video, tiling))

    def _side(self) -> dict[str, Any]:
        config = self.config
        return {
            "levels": len(config.block_out_channels), "layers": config.layers_per_block, "mid": MID_RESNETS,
            "temporal": temporal_levels(config), "groups": config.norm_num_groups, "eps": config.norm_eps,
        }  # fmt: skip

    def posterior(self, video: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        """``encode`` without tiles, with the logarithm of the variance (-30 to 20) in place of the deviation."""
        return _mean_logvar(self._moments(video, None))

    def decode(self, latents: ms.Tensor, tiling: TilingConfig | None = None) -> ms.Tensor:
        """Unscaled latents ``[B, 16, t, h, w]`` -> pixels around [-1, 1] ``[B, 3, T, 8h, 8w]``, not clipped.

        T is 4t for an even t and 4(t - 1) + 1 for an odd one. Tiles are taken one after the other as in ``encode``.

        Raises:
            UserError: not 5 dimensions or a wrong number of channels.
        """
        plan = self._latent_plan(latents, tiling)
        spans = chunks.latent_chunks(latents.shape[2])
        return _whole(self._decoding, [latents[:, :, a:b] for a, b in spans], plan, _max_batch(tiling), self._share)

    def encode_chunks(
        self, frames: Iterable[ms.Tensor], num_frames: int, tiling: TilingConfig | None = None
    ) -> Iterator[tuple[ms.Tensor, ms.Tensor]]:
        """Pieces ``[B, 3, any, H, W]`` of a clip of ``num_frames`` -> mean and std of one chunk of latents at a time.

        The same numbers as ``encode``; ``num_frames`` must be known because the first chunk takes the remainder.
        The caches of all tiles are alive at once (as large as without tiles), activations are one tile's. No gradient
        passes from chunk to chunk.

        Raises:
            UserError: a shape that the VAE can't take, fewer or more frames than ``num_frames``.
        """
        for piece in _stream(self._encoding, self._sample_pieces(frames, num_frames, tiling), _max_batch(tiling)):
            yield _mean_std(piece)

    def decode_chunks(self, latents: ms.Tensor, tiling: TilingConfig | None = None) -> Iterator[ms.Tensor]:
        """Latents ``[B, 16, t, h, w]`` -> pixels ``[B, 3, 8 or 9 (or 1), H, W]``, a chunk at a time for a writer.

        The same numbers as ``decode``. The caches of all tiles are alive at once, as in ``encode_chunks``.
        """
        plan = self._latent_plan(latents, tiling)
        pieces = ((latents[:, :, a:b], plan) for a, b in chunks.latent_chunks(latents.shape[2]))
        return _stream(self._decoding, pieces, _max_batch(tiling))

    def encode_chunk(self, x: ms.Tensor, cache: Cache) -> tuple[ms.Tensor, Cache]:
        """One chunk of pixels -> ``(mean and log variance on one axis [B, 32, t, h, w], cache for the next chunk)``.

        ``cache`` is used up: each entry goes when its successor is made, or two chunks' caches would be alive.
        """
        config, new = self.config, type(cache)()
        if self.whole_sides and not cache and not config.use_quant_conv:
            return blocks.compiled_encoder(self.block("encoder"), x.astype(self.compute_dtype), **self._side()), new
        x = self._causal("encoder.conv_in", x.astype(self.compute_dtype), cache, new)
        last = len(config.block_out_channels) - 1
        for i in range(last + 1):
            x = self._resnets(f"encoder.down_blocks.{i}", config.layers_per_block, x, None, cache=cache, new=new)
            if i < last:
                p = self.block(f"encoder.down_blocks.{i}.downsamplers.0")
                run = blocks.compiled_downsample if self.whole_blocks else blocks.downsample
                x = run(p, x, compress_time=i < temporal_levels(config))
        x = self._resnets("encoder.mid_block", MID_RESNETS, x, None, cache=cache, new=new)
        x = self._head("encoder", x, None, cache, new)
        return (blocks.pointwise(self.block("quant_conv"), x) if config.use_quant_conv else x), new

    def decode_chunk(self, z: ms.Tensor, cache: Cache) -> tuple[ms.Tensor, Cache]:
        """One chunk of latents -> ``(pixels [B, 3, T, H, W], cache for the next chunk)``; ``cache`` is used up."""
        config, new = self.config, type(cache)()
        z = z.astype(self.compute_dtype)
        if self.whole_sides and not cache and not config.use_post_quant_conv:
            return blocks.compiled_decoder(self.block("decoder"), z, **self._side()), new
        if config.use_post_quant_conv:
            z = blocks.pointwise(self.block("post_quant_conv"), z)
        x = self._causal("decoder.conv_in", z, cache, new)
        x = self._resnets("decoder.mid_block", MID_RESNETS, x, z, cache=cache, new=new)
        last = len(config.block_out_channels) - 1
        for i in range(last + 1):
            x = self._resnets(f"decoder.up_blocks.{i}", config.layers_per_block + 1, x, z, cache=cache, new=new)
            if i < last:
                p = self.block(f"decoder.up_blocks.{i}.upsamplers.0")
                run = blocks.compiled_upsampler if self.whole_blocks else blocks.lone_upsampler
                x = run(p, x, expand_time=i < temporal_levels(config))
        return self._head("decoder", x, z, cache, new), new

    def _moments(self, video: ms.Tensor, tiling: TilingConfig | None) -> ms.Tensor:
        plan = self._video_plan(video.shape, video.shape[2], tiling)
        spans = chunks.sample_chunks(video.shape[2])
        return _whole(self._encoding, [video[:, :, a:b] for a, b in spans], plan, _max_batch(tiling), self._share)

    def _causal(self, name, x, cache, new):
        run = blocks.compiled_conv if self.whole_blocks else conv
        y, new[name] = run(self.block(name), x, cache.pop(name, None))
        return y

    def _resnets(self, prefix, count, x, z, *, cache, new):
        groups, eps = self.config.norm_num_groups, self.config.norm_eps
        for i in range(count):
            name = f"{prefix}.resnets.{i}"
            one, two = f"{name}.conv1", f"{name}.conv2"
            memory, static = (cache.pop(one, None), cache.pop(two, None)), {"groups": groups, "eps": eps}
            # The block has no name here: where its parameters are read from the disk, one block's are in memory.
            if self.whole_blocks:
                x, new[one], new[two] = blocks.compiled_resnet(self.block(name), x, z, *memory, **static, whole=True)
            else:
                x, new[one], new[two] = blocks.resnet(self.block(name), x, z, *memory, **static)
        return x

    def _head(self, side, x, z, cache, new):
        p, groups, name = self.block(f"{side}.norm_out"), self.config.norm_num_groups, f"{side}.conv_out"
        if not self.whole_blocks and blocks.fuses(x):
            static = {"groups": groups, "eps": blocks.SPATIAL_NORM_EPS}
            y, new[name] = blocks.norm_conv(p, self.block(name), x, z, cache.pop(name, None), **static)
            return y
        x = blocks.lone_norm_silu(p, x, z, groups=groups, eps=blocks.SPATIAL_NORM_EPS)
        return self._causal(name, x, cache, new)

    def _video_plan(self, shape: tuple[int, ...], frames: int, tiling: TilingConfig | None) -> TilePlan:
        channels, ratio = self.config.in_channels, self.config.spatial_compression_ratio
        _check_rank_and_channels("video", shape, channels)
        chunks.latent_frames(frames, int(self.config.temporal_compression_ratio))
        height, width = shape[3:]
        if height % ratio or width % ratio or not height or not width:
            low, wide = max(1, height // ratio) * ratio, max(1, width // ratio) * ratio
            raise UserError(
                f"video: got {height}x{width} pixels, need multiples of {ratio}; crop or resize, e.g. to {low}x{wide}"
            )
        return plan_tiles(height // ratio, width // ratio, tiling, ratio)

    def _latent_plan(self, latents: ms.Tensor, tiling: TilingConfig | None) -> TilePlan:
        _check_rank_and_channels("latents", latents.shape, self.config.latent_channels)
        chunks.decoded_frames(latents.shape[2])
        return plan_tiles(latents.shape[3], latents.shape[4], tiling, self.config.spatial_compression_ratio)

    def _sample_pieces(self, frames, num_frames, tiling) -> Iterator[tuple[ms.Tensor, TilePlan]]:
        """Regroups pieces of any length into the encoder's chunks."""
        source, waiting, held, seen = iter(frames), [], 0, 0
        for start, stop in chunks.sample_chunks(num_frames):
            while held < stop - start:
                piece = next(source, None)
                if piece is None:
                    raise UserError(f"frames: got {seen}, need num_frames = {num_frames}; pass the clip's real count")
                self._video_plan(piece.shape, num_frames, tiling)
                waiting.append(piece)
                held, seen = held + piece.shape[2], seen + piece.shape[2]
            joined = waiting[0] if len(waiting) == 1 else mint.cat(waiting, 2)
            chunk, rest = joined[:, :, : stop - start], joined[:, :, stop - start :]
            held -= stop - start
            waiting = [rest] if held else []
            yield chunk, self._video_plan(chunk.shape, num_frames, tiling)
        if held or next(source, None) is not None:
            raise UserError(f"frames: got more than num_frames = {num_frames}; pass the clip's real count")


def _check_rank_and_channels(what: str, shape: tuple[int, ...], channels: int) -> None:
    if len(shape) != 5 or shape[1] != channels:
        raise UserError(
            f"{what}: got shape {list(shape)}, need [batch, {channels}, frames, height, width]; transpose it"
        )


def _mean_std(moments: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
    mean, logvar = _mean_logvar(moments)
    return mean, mint.exp(0.5 * logvar)


def _mean_logvar(moments: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
    mean, logvar = mint.chunk(moments, 2, 1)
    return mean, mint.clamp(logvar, -30.0, 20.0)


def _max_batch(tiling: TilingConfig | None) -> int:
    return tiling.max_batch if tiling is not None and tiling.vectorised else 1


def _cut(x: ms.Tensor, group: list, scale: int) -> ms.Tensor:
    """The tiles of one group, stacked in the batch."""
    parts = [
        x[:, :, :, tile.top * scale : tile.bottom * scale, tile.left * scale : tile.right * scale] for tile in group
    ]
    return parts[0] if len(parts) == 1 else mint.cat(parts, 0)


def _paste(canvas: ms.Tensor | None, y: ms.Tensor, group: list, plan: TilePlan, scale: int) -> ms.Tensor:
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


def _whole(step: _Pass, pieces: list[ms.Tensor], plan: TilePlan, max_batch: int, share: _Share) -> ms.Tensor:
    """All chunks of a group of tiles, then the next group; several processes take as many groups at a time."""
    canvases: list = [None] * len(pieces)
    groups = plan.groups(max_batch)
    at_once = share.size if len(groups) > 1 else 1
    for first in range(0, len(groups), at_once):
        now = groups[first : first + at_once]
        # Where groups run out, one is computed twice: idle processes would have nothing to gather.
        own = now[share.index % len(now)]
        cache: Cache = {}
        for k, piece in enumerate(pieces):
            y, cache = step.run(_cut(piece, own, step.scale_in), cache)
            parts = [y] if at_once == 1 else _gathered(y, own, now, share)
            for group, part in zip(now, parts, strict=True):
                canvases[k] = _paste(canvases[k], part, group, plan, step.scale_out)
    result = canvases[0] if len(canvases) == 1 else mint.cat(canvases, 2)
    return result.astype(y.dtype)


def _gathered(y: ms.Tensor, own: list, now: list[list], share: _Share) -> list[ms.Tensor]:
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


def _stream(step: _Pass, pieces: Iterable[tuple[ms.Tensor, TilePlan]], max_batch: int) -> Iterator[ms.Tensor]:
    """All tiles of a chunk, then the next chunk."""
    caches: dict[int, Cache] = {}
    for piece, plan in pieces:
        canvas: ms.Tensor | None = None
        for g, group in enumerate(plan.groups(max_batch)):
            y, caches[g] = step.run(_cut(piece, group, step.scale_in), caches.get(g, Apart()))
            canvas = _paste(canvas, y, group, plan, step.scale_out)
        assert canvas is not None
        yield canvas.astype(y.dtype)
