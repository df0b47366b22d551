"""What goes from one chunk to the next where other processes have it: shapes and bytes. No MindSpore."""

from __future__ import annotations

import math

from core.configs import VAEConfig
from core.vae import chunks
from core.vae.parameters import parameter_table
from core.vae.tiling import TilePlan


def ends(config: VAEConfig, side: str, batch: int, height: int, width: int) -> list[tuple[int, ...]]:
    """Shapes of what is handed on in a chunk, in order: ``height x width`` latents, ``side`` encoder or decoder."""
    levels, shapes = len(config.block_out_channels), []
    for name, spec in parameter_table(config).items():
        if name.startswith(f"{side}.") and len(spec.shape) == 5 and spec.shape[2] > 1:
            scale = _scale(name, config.spatial_compression_ratio, levels)
            shapes.append((batch, spec.shape[1], spec.shape[2] - 1, height * scale, width * scale))
    return shapes


def _scale(name: str, ratio: int, levels: int) -> int:
    """Elements per latent of the input of convolution ``name``."""
    side, part, *rest = name.split(".")
    deep, shallow = ratio // 2 ** (levels - 1), ratio
    if part == "mid_block":
        return deep
    if part in ("down_blocks", "up_blocks"):
        return shallow // 2 ** int(rest[0]) if side == "encoder" else deep * 2 ** int(rest[0])
    return deep if (side == "encoder") == (part == "conv_out") else shallow


def handed_on_bytes(
    config: VAEConfig, side: str, num_chunks: int, size: int, height: int, width: int, itemsize: int
) -> int:
    """Sent by each of ``size`` processes for one clip (or tile) of ``height x width`` latents: one end of every causal
    convolution's input in each wave but a last one of a single chunk."""
    busy = sum(len(wave) > 1 for wave in chunks.waves(num_chunks, size))
    return busy * itemsize * sum(math.prod(shape) for shape in ends(config, side, 1, height, width))


def shared_bytes(config: VAEConfig, side: str, length: int, plan: TilePlan, size: int, itemsize: int) -> dict[str, int]:
    """Sent by each of ``size`` processes that share a clip of ``length`` frames (encoder) or latent frames (decoder).

    ``handed on``: ends of chunks to the neighbour, tile by tile; ``published``: each result once to all: tiles of
    moments as they come, pixels when a chunk's tiles are added up, in fp32 then.
    """
    if size == 1:
        return {}
    ratio, temporal = config.spatial_compression_ratio, int(config.temporal_compression_ratio)
    spans = chunks.sample_chunks(length) if side == "encoder" else chunks.latent_chunks(length)
    areas = [(tile.bottom - tile.top, tile.right - tile.left) for tile in plan.tiles]
    handed_on = sum(handed_on_bytes(config, side, len(spans), size, *area, itemsize) for area in areas)
    if side == "encoder":
        frames = sum(chunks.latent_frames(b - a, temporal) for a, b in spans)
        published = 2 * config.latent_channels * frames * sum(h * w for h, w in areas) * itemsize
    else:
        frames = sum(chunks.decoded_frames(b - a, temporal) for a, b in spans)
        pixels = plan.rows.size * plan.cols.size * ratio**2
        published = config.out_channels * frames * pixels * (itemsize if len(areas) == 1 else 4)
    return {"handed on": handed_on, "published": published}
