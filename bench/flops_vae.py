"""Floating point operations of the VAE: every convolution of every chunk and tile. See ``bench.flops``.

Letters: B batch, T frames, H height and W width of what a convolution puts out.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.flops import Product
from core.configs import VAEConfig
from core.vae.chunks import latent_chunks, sample_chunks
from core.vae.parameters import MID_RESNETS, temporal_levels
from core.vae.tiling import TilingConfig, plan_tiles

Grid = tuple[int, int, int, int]


def vae_encode(
    config: VAEConfig, *, batch: int, frames: int, height: int, width: int, tiling: TilingConfig | None = None
) -> tuple[Product, ...]:
    """Products of encoding ``[batch, 3, frames, height, width]`` pixels; with tiles their overlaps count twice."""
    ratio = config.spatial_compression_ratio
    plan = plan_tiles(height // ratio, width // ratio, tiling, ratio)
    return tuple(
        product
        for tile in plan.tiles
        for start, stop in sample_chunks(frames)
        for product in _encoder(
            config, (batch, stop - start, (tile.bottom - tile.top) * ratio, (tile.right - tile.left) * ratio)
        )
    )


def vae_decode(
    config: VAEConfig, *, batch: int, latent_frames: int, height: int, width: int, tiling: TilingConfig | None = None
) -> tuple[Product, ...]:
    """Products of decoding latents to ``height x width`` pixels."""
    ratio = config.spatial_compression_ratio
    plan = plan_tiles(height // ratio, width // ratio, tiling, ratio)
    return tuple(
        product
        for tile in plan.tiles
        for start, stop in latent_chunks(latent_frames)
        for product in _decoder(config, (batch, stop - start, tile.bottom - tile.top, tile.right - tile.left))
    )


def _conv(name: str, grid: Grid, inputs: int, outputs: int, kernel: int) -> Product:
    """A convolution of ``kernel`` weights per pair of channels that puts out ``grid``."""
    batch, frames, height, width = grid
    positions = batch * frames * height * width
    return Product(name=name, kind="convolution", rows=positions, inner=inputs * kernel, columns=outputs)


def _resnets(name: str, count: int, grid: Grid, inputs: int, outputs: int) -> Iterator[Product]:
    for index in range(count):
        wide = inputs if index == 0 else outputs
        yield _conv(f"{name}.conv1", grid, wide, outputs, 27)
        yield _conv(f"{name}.conv2", grid, outputs, outputs, 27)
        if wide != outputs:
            yield _conv(f"{name}.conv_shortcut", grid, wide, outputs, 1)


def _norms(name: str, count: int, latents: Grid, latent: int, inputs: int, outputs: int) -> Iterator[Product]:
    """The decoder's two modulated norms of each resnet: convolutions of the latents, at the latents' size."""
    for index in range(count):
        for wide in (inputs if index == 0 else outputs, outputs):
            yield from _norm(name, latents, latent, wide)


def _norm(name: str, latents: Grid, latent: int, channels: int) -> Iterator[Product]:
    for part in ("conv_y", "conv_b"):
        yield _conv(f"{name}.{part}", latents, latent, channels, 1)


def _encoder(config: VAEConfig, grid: Grid) -> Iterator[Product]:
    widths, last = config.block_out_channels, len(config.block_out_channels) - 1
    yield _conv("encoder.conv_in", grid, config.in_channels, widths[0], 27)
    for i, width in enumerate(widths):
        yield from _resnets(f"down_blocks.{i}", config.layers_per_block, grid, widths[max(i - 1, 0)], width)
        if i < last:
            batch, frames, height, breadth = grid
            frames = -(-frames // 2) if i < temporal_levels(config) else frames
            grid = (batch, frames, height // 2, breadth // 2)
            yield _conv(f"down_blocks.{i}.downsampler", grid, width, width, 9)
    yield from _resnets("encoder.mid_block", MID_RESNETS, grid, widths[-1], widths[-1])
    moments = 2 * config.latent_channels
    yield _conv("encoder.conv_out", grid, widths[-1], moments, 27)
    if config.use_quant_conv:
        yield _conv("quant_conv", grid, moments, moments, 1)


def _decoder(config: VAEConfig, latents: Grid) -> Iterator[Product]:
    widths, latent, grid = config.block_out_channels[::-1], config.latent_channels, latents
    if config.use_post_quant_conv:
        yield _conv("post_quant_conv", grid, latent, latent, 1)
    yield _conv("decoder.conv_in", grid, latent, widths[0], 27)
    yield from _resnets("decoder.mid_block", MID_RESNETS, grid, widths[0], widths[0])
    yield from _norms("decoder.mid_block", MID_RESNETS, latents, latent, widths[0], widths[0])
    for i, width in enumerate(widths):
        name, count, before = f"up_blocks.{i}", config.layers_per_block + 1, widths[max(i - 1, 0)]
        yield from _resnets(name, count, grid, before, width)
        yield from _norms(name, count, latents, latent, before, width)
        if i < len(widths) - 1:
            batch, frames, height, breadth = grid
            # An odd number of frames begins with one that stays alone.
            frames = 2 * frames - frames % 2 if i < temporal_levels(config) else frames
            grid = (batch, frames, 2 * height, 2 * breadth)
            yield _conv(f"{name}.upsampler", grid, width, width, 9)
    yield from _norm("decoder.norm_out", latents, latent, widths[-1])
    yield _conv("decoder.conv_out", grid, widths[-1], config.out_channels, 27)
