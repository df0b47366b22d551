"""Bytes of the stages around the transformer: text encoder, VAE with its caches and tiles, denoising. No MindSpore.

On the CPU the VAE's temporaries are what MindSpore's pool comes to hold (``bench.plan.pool``); beside it lie the cached
frames, the kernel that was read from the files, and what is packed of a convolution's input. On Ascend they are counted
at the widest moment of a resnet at the level with the largest features: there the norm is made of operators, and the
decoder's modulated norm holds the norm, the widened scale and shift, and their product.
"""

from __future__ import annotations

from bench.plan.liveness import forward_bytes
from bench.plan.memory import Phase
from bench.plan.pool import pool_bytes
from bench.plan.workload import table_bytes
from core.configs import T5Config, TransformerConfig, VAEConfig
from core.text.parameters import is_gated
from core.text.parameters import parameter_table as text_table
from core.transformer.parameters import parameter_table as transformer_table
from core.vae.chunks import decoded_frames, latent_chunks, sample_chunks
from core.vae.parameters import parameter_table as vae_table
from core.vae.parameters import temporal_levels
from core.vae.tiling import TilePlan, TilingConfig, plan_tiles

# Ascend: tensors of the widest features alive at once: input, norm, scale, shift and product in the decoder; input,
# norm and its square in the encoder. The convolution after it holds input, joined, padded and result, which is fewer.
DECODER_COPIES, ENCODER_COPIES = 5, 4
# core.weights.SMALL_BYTES, which needs MindSpore, and 4 kImage of core/kernels_conv.cpp; a test compares them.
SMALL_BYTES, PACKED_BYTES = 2**20, 2**23
# The text encoder on the CPU: tensors of the width and of d_ff that the pool comes to hold, and the bias of all heads,
# which all texts share. Tensors of one layer split the pieces that larger ones of the layer before have freed, so the
# moments of attention and feed-forward add up. Read off the measured cases (docs/design/016).
TEXT_STREAMS, TEXT_HIDDEN, TEXT_BIASES = 6, 5, 1
READ_FRAMES = 2  # of a piece of the clip that is encoded (bench.tasks.encode_video)


def _level(name: str, levels: int) -> int:
    """How often the height of a convolution's input has been doubled (decoder) or halved (encoder)."""
    if "mid_block" in name:
        return 0 if name.startswith("decoder") else levels - 1
    for part in ("up_blocks.", "down_blocks."):
        if part in name:
            return int(name.split(part)[1].split(".", maxsplit=1)[0])
    inside = "conv_in" in name
    if name.startswith("decoder"):
        return 0 if inside else levels - 1
    return 0 if inside else levels - 1


def cache_bytes(config: VAEConfig, side: str, height: int, width: int, itemsize: int) -> int:
    """Bytes of the last frames that causal convolutions remember, for ``height x width`` pixels.

    ``side``: ``encoder`` or ``decoder``.
    """
    levels, total = len(config.block_out_channels), 0
    ratio = config.spatial_compression_ratio
    for name, spec in vae_table(config).items():
        if not name.startswith(side) or len(spec.shape) != 5 or spec.shape[2] == 1:
            continue
        level = _level(name, levels)
        scale = ratio // 2**level if side == "decoder" else 2**level
        total += spec.shape[1] * (spec.shape[2] - 1) * (height // scale) * (width // scale)
    return total * itemsize


def work_bytes(config: VAEConfig, side: str, frames: int, height: int, width: int, itemsize: int) -> int:
    """Bytes of the temporaries of one chunk of ``frames`` pixel frames of one tile on Ascend."""
    copies = DECODER_COPIES if side == "decoder" else ENCODER_COPIES
    widths = config.block_out_channels
    largest = 0
    for level, channels in enumerate(widths):
        # Level 0 is the pixels' size; the decoder's first resnet there still has the channels of the level below.
        wide = widths[min(level + 1, len(widths) - 1)] if side == "decoder" else channels
        count = frames if level == 0 else -(-frames // 2 ** min(level, temporal_levels(config)))
        largest = max(largest, copies * wide * count * (height >> level) * (width >> level))
    return largest * itemsize


def _resident_bytes(config: VAEConfig, resident: str, itemsize: int) -> int:
    """Bytes of the parameters that stay in memory (``core.weights.load_vae``)."""
    sizes = {name: spec.size * itemsize for name, spec in vae_table(config).items()}
    return sum(
        size for name, size in sizes.items()
        if resident == "all" or size < SMALL_BYTES or name.startswith(f"{resident}.")
    )  # fmt: skip


def _places(config: VAEConfig, name: str, frames: int, height: int, width: int) -> int:
    """Frames times height times width of what convolution ``name`` makes in a chunk of so many pixels."""
    levels, temporal = len(config.block_out_channels), temporal_levels(config)
    level, ratio = _level(name, levels), config.spatial_compression_ratio
    if name.startswith("decoder"):
        space, time = ratio // 2**level, 2 ** (temporal - min(level, temporal))
    else:
        space, time = 2**level, 2 ** min(level, temporal)
    return -(-frames // time) * (height // space) * (width // space)


def _convolution_bytes(
    config: VAEConfig, side: str, resident: str, itemsize: int, *, frames: int, height: int, width: int, batch: int
) -> int:
    """Bytes beside the tensors while a convolution runs: its kernel, where it is read when it is used, and its packed
    input. CPU."""
    largest = 0
    for name, spec in vae_table(config).items():
        if not name.startswith(f"{side}.") or len(spec.shape) < 4:
            continue
        size = spec.size * itemsize
        read = size if resident not in ("all", side) and size >= SMALL_BYTES else 0
        packed = batch * spec.shape[1] * _places(config, name, frames, height, width) * itemsize
        largest = max(largest, read + min(packed, PACKED_BYTES))
    return largest


def _tile(plan: TilePlan, ratio: int) -> tuple[int, int]:
    return max(plan.rows.lengths) * ratio, max(plan.cols.lengths) * ratio


def vae_phase(
    config: VAEConfig, side: str, *, frames: int, height: int, width: int, tiling: TilingConfig | None, itemsize: int,
    streamed: bool = True, device: str = "ascend", resident: str = "all",
) -> Phase:  # fmt: skip
    """Encoding or decoding ``frames`` pixel frames; not streamed, all of the clip's pixels are in memory.

    ``resident``: whose parameters stay in memory, as of ``core.weights.load_vae``.
    """
    ratio = config.spatial_compression_ratio
    plan = plan_tiles(height // ratio, width // ratio, tiling, ratio)
    tile_height, tile_width = _tile(plan, ratio)
    at_once = tiling.max_batch if tiling is not None and tiling.vectorised else 1
    at_once = min(at_once, len(plan.tiles))
    if side == "encoder":
        chunk = max(b - a for a, b in sample_chunks(frames))
    else:
        chunk = max(decoded_frames(b - a) for a, b in latent_chunks(-(-frames // 4)))
    # One group of tiles at a time (core.vae.streaming); an entry of the cache goes when its successor is made.
    cached = at_once * cache_bytes(config, side, tile_height, tile_width, itemsize)
    held = _held_pixels(config, side, frames, height, width, chunk, streamed=streamed, tiled=len(plan.tiles) > 1)
    if device == "cpu":
        sizes = {"frames": chunk, "height": tile_height, "width": tile_width, "batch": at_once}
        work = pool_bytes(config, side, itemsize=itemsize, **sizes)
        work += _convolution_bytes(config, side, resident, itemsize, **sizes)
    else:
        work = at_once * work_bytes(config, side, chunk, tile_height, tile_width, itemsize)
    return Phase(
        name=f"vae {'encode' if side == 'encoder' else 'decode'}",
        bytes={
            "parameters": _resident_bytes(config, resident, itemsize), "vae": cached + work, "activations": held,
        },
    )  # fmt: skip


def _held_pixels(
    config: VAEConfig, side: str, frames: int, height: int, width: int, chunk: int, *, streamed: bool, tiled: bool
) -> int:
    """Bytes of whole frames of pixels, and of the latents that wait until the last tile is done."""
    pixels = config.in_channels * height * width * 4
    if not streamed:
        return pixels * 2 * frames
    if not tiled:
        return pixels * 2 * chunk
    if side == "decoder":
        return pixels * 2  # single frames: the one that is being read and the one that the writer still holds
    ratio = config.spatial_compression_ratio
    moments = 2 * config.latent_channels * -(-frames // 4) * (height // ratio) * (width // ratio) * 4
    return pixels * 2 * READ_FRAMES + moments


def text_phase(config: T5Config, *, batch: int, tokens: int, itemsize: int, device: str = "ascend") -> Phase:
    """Encoding ``batch`` texts: weights, the widest feed-forward moment and attention's scores (written out, fp32; on
    the CPU a kernel has none, but there is the bias)."""
    rows, one = batch * tokens, 4 * config.num_heads * tokens * tokens
    gated = is_gated(config)
    if device == "cpu":
        scores, streams, hidden = TEXT_BIASES * one, TEXT_STREAMS, TEXT_HIDDEN - (not gated)
    else:
        scores, streams, hidden = 2 * batch * one, 2, 3 if gated else 2
    work = rows * (streams * config.d_model + hidden * config.d_ff) * itemsize
    return Phase(
        name="text encode",
        bytes={"parameters": table_bytes(text_table(config), itemsize), "text encoder": work + scores},
    )


def denoise_phase(
    config: TransformerConfig, *, batch: int, tokens: int, itemsize: int, shards: int = 1, chunk: int | None = None
) -> Phase:
    """One denoising step: weights and a block's forward pass over ``batch`` samples of ``tokens``, its feed-forward in
    pieces of ``chunk``."""
    rows = batch * -(-tokens // shards)
    work = forward_bytes(tokens=rows, width=config.inner_dim, itemsize=itemsize, chunk=chunk)
    return Phase(
        name="denoise",
        bytes={"parameters": table_bytes(transformer_table(config), itemsize), "block": work},
    )
