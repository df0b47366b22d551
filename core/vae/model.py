"""The CogVideoX VAE: 3 x T x H x W pixels <-> 16 x t x H/8 x W/8 latents, t = (T - 1) / 4 + 1.

B batch, T/t frames and latent frames, H/W pixels, h/w latents. Latents are neither scaled nor shifted here: the
caller multiplies by ``config.scaling_factor`` before the transformer and divides after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import mindspore as ms
from mindspore import mint

from core.configs import VAEConfig
from core.errors import UserError
from core.model import Model
from core.vae import blocks, chunks, over_time, passes
from core.vae.over_time import Neighbours
from core.vae.parameters import MID_RESNETS, parameter_table, temporal_levels
from core.vae.passes import Cache, Pass
from core.vae.tiling import TilePlan, TilingConfig, plan_tiles


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
        self._encoding = Pass("encoder", config, self.encode_chunk, ratio, 1)
        self._decoding = Pass("decoder", config, self.decode_chunk, 1, ratio)
        self._share = passes.ALONE
        self.neighbours: Neighbours | None = None

    def share_tiles(self, size: int, index: int, gather: Callable[[ms.Tensor], ms.Tensor]) -> None:
        """Deals the tiles of ``encode`` and ``decode`` to ``size`` processes, of which this is number ``index``.

        ``gather``: ``[m]`` of each process -> ``[size * m]`` on all, in their order. Every process gets the whole
        result, with the bits of one process: tiles are added up in the same order. Without tiles each computes all.
        """
        self._share = passes.Share(size, index, gather)

    def share_time(self, neighbours: Neighbours | None) -> None:
        """Deals the chunks of ``encode``, ``decode`` and the streams of ``core.vae.streaming`` to several processes.

        Every process gets the whole result, with the bits of one process (``core.vae.over_time``). None: each alone.
        """
        assert not self.whole_blocks, "a compiled block can't wait for another process"
        self.neighbours = neighbours

    @property
    def passes(self) -> tuple[Pass, Pass]:
        """Encoder and decoder as ``core.vae.over_time`` runs them."""
        return self._encoding, self._decoding

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
        return passes.mean_std(self._moments(video, tiling))

    def _side(self) -> dict[str, Any]:
        config = self.config
        return {
            "levels": len(config.block_out_channels), "layers": config.layers_per_block, "mid": MID_RESNETS,
            "temporal": temporal_levels(config), "groups": config.norm_num_groups, "eps": config.norm_eps,
        }  # fmt: skip

    def posterior(self, video: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        """``encode`` without tiles, with the logarithm of the variance (-30 to 20) in place of the deviation."""
        return passes.mean_logvar(self._moments(video, None))

    def decode(self, latents: ms.Tensor, tiling: TilingConfig | None = None) -> ms.Tensor:
        """Unscaled latents ``[B, 16, t, h, w]`` -> pixels around [-1, 1] ``[B, 3, T, 8h, 8w]``, not clipped.

        T is 4t for an even t and 4(t - 1) + 1 for an odd one. Tiles are taken one after the other as in ``encode``.

        Raises:
            UserError: not 5 dimensions or a wrong number of channels.
        """
        plan = self._latent_plan(latents, tiling)
        spans = chunks.latent_chunks(latents.shape[2])
        return self._whole(self._decoding, [latents[:, :, a:b] for a, b in spans], plan, tiling)

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
        pieces = self._sample_pieces(frames, num_frames, tiling)
        for piece in passes.stream(self._encoding, pieces, passes.max_batch(tiling)):
            yield passes.mean_std(piece)

    def decode_chunks(self, latents: ms.Tensor, tiling: TilingConfig | None = None) -> Iterator[ms.Tensor]:
        """Latents ``[B, 16, t, h, w]`` -> pixels ``[B, 3, 8 or 9 (or 1), H, W]``, a chunk at a time for a writer.

        The same numbers as ``decode``. The caches of all tiles are alive at once, as in ``encode_chunks``.
        """
        plan = self._latent_plan(latents, tiling)
        pieces = ((latents[:, :, a:b], plan) for a, b in chunks.latent_chunks(latents.shape[2]))
        return passes.stream(self._decoding, pieces, passes.max_batch(tiling))

    def encode_chunk(self, x: ms.Tensor, cache: Cache) -> tuple[ms.Tensor, Cache]:
        """One chunk of pixels -> ``(mean and log variance on one axis [B, 32, t, h, w], cache for the next chunk)``.

        ``cache`` is used up: each entry goes when its successor is made, or two chunks' caches would be alive. Or it is
        an ``over_time.Handover``, and the result holds nothing for the next chunk.
        """
        config, new = self.config, passes.successor(cache)
        if self.whole_sides and not cache and not config.use_quant_conv:
            return blocks.compiled_encoder(self.block("encoder"), x.astype(self.compute_dtype), **self._side()), new
        x = self._causal("encoder.conv_in", x.astype(self.compute_dtype), cache, new)
        last = len(config.block_out_channels) - 1
        for i in range(last + 1):
            x = self._resnets(f"encoder.down_blocks.{i}", config.layers_per_block, x, None, cache=cache, new=new)
            if i < last:
                p = self.block(f"encoder.down_blocks.{i}.downsamplers.0")
                run = blocks.compiled_downsample if self.whole_blocks else blocks.lone_downsample
                x = run(p, x, compress_time=i < temporal_levels(config))
        x = self._resnets("encoder.mid_block", MID_RESNETS, x, None, cache=cache, new=new)
        x = self._head("encoder", x, None, cache, new)
        return (blocks.pointwise(self.block("quant_conv"), x) if config.use_quant_conv else x), new

    def decode_chunk(self, z: ms.Tensor, cache: Cache) -> tuple[ms.Tensor, Cache]:
        """One chunk of latents -> ``(pixels [B, 3, T, H, W], cache for the next chunk)``; ``cache`` is used up."""
        config, new = self.config, passes.successor(cache)
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
        return self._whole(self._encoding, [video[:, :, a:b] for a, b in spans], plan, tiling)

    def _whole(self, step: Pass, pieces: list[ms.Tensor], plan: TilePlan, tiling: TilingConfig | None) -> ms.Tensor:
        groups = plan.groups(passes.max_batch(tiling))
        if self.neighbours is None:
            return passes.whole(step, pieces, plan, groups, self._share)
        return over_time.whole(step, pieces, plan, groups, self.neighbours, self.compute_dtype)

    def _causal(self, name, x, cache, new):
        before = cache.pop(name, None)
        run = blocks.compiled_conv if self.whole_blocks else blocks.lone_conv
        y, new[name] = run(self.block(name), x, before)
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
