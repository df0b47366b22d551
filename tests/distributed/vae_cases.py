"""A VAE whose tiles are dealt to ranks, and the counted bytes of Ulysses and ZeRO."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, NamedTuple

import mindspore as ms
import numpy as np
from mindspore import communication

from bench.tasks.processes import neighbours
from core import ops
from core.configs import VAEConfig
from core.parallel.collectives import joined
from core.parallel.traffic import Traffic
from core.parallel.ulysses import Ulysses
from core.presets import PRESETS
from core.vae.model import AutoencoderKLCogVideoX
from core.vae.streaming import decode_pieces, encode_pieces
from core.vae.tiling import TilingConfig
from tests.distributed.train_cases import Training
from tests.distributed.ulysses_cases import LENGTHS, inputs_of, model_of

# 7 x 7 latents in tiles of 4 x 4 that overlap by 1: 9 tiles of 4 shapes, which 2 ranks do not divide.
TILES = {"one": {}, "vectorised": {"vectorised": True, "max_batch": 2}}


class Clip(NamedTuple):
    """Sizes of a clip, in latents; ``chunks`` of both directions."""

    chunks: int
    latent_frames: int
    frames: int
    height: int
    kernels: Literal["auto", "operators"]

    @property
    def tiling(self) -> TilingConfig | None:
        """Tiles of 3 x 3 where the clip is higher."""
        if self.height == WIDTH:
            return None
        return TilingConfig(tile_height=24, tile_width=24, overlap_height=1 / 3, overlap_width=0)


WIDTH = 3
# For 2 and 3 ranks: each of them with a chunk in every wave, one with none, a last chunk alone.
CLIPS = {
    "two": Clip(2, 4, 16, 3, "auto"), "five": Clip(5, 11, 40, 3, "operators"), "tiled": Clip(3, 7, 25, 5, "auto"),
}  # fmt: skip


def vae_config() -> VAEConfig:
    """Small enough for many chunks."""
    return replace(
        PRESETS["tiny-1.5"].vae, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4,
        latent_channels=4,
    )  # fmt: skip


def _vae() -> AutoencoderKLCogVideoX:
    return AutoencoderKLCogVideoX(vae_config()).initialize(3)


def case_vae():
    """Decoded and encoded alone, then with the tiles dealt out."""
    processes = joined(communication.get_group_size())
    rng = np.random.default_rng(1)
    latents = ms.Tensor(rng.standard_normal((1, 4, 4, 7, 7)).astype(np.float32))
    video = ms.Tensor(rng.uniform(-1, 1, (1, 3, 9, 56, 56)).astype(np.float32))
    vae, arrays, group = _vae(), {}, processes.sequence
    # Each of the many shapes would be compiled.
    ops.configure(mode="pynative")
    for name, options in TILES.items():
        tiling = TilingConfig(tile_height=32, tile_width=32, overlap_height=0.25, overlap_width=0.25, **options)
        vae.share_tiles(1, 0, lambda x: x)
        arrays[f"decode.alone.{name}"] = vae.decode(latents, tiling).asnumpy()
        arrays[f"encode.alone.{name}"] = vae.encode(video, tiling)[0].asnumpy()
        vae.share_tiles(group.size, group.index, lambda x: group.all_gather(x, "vae tiles"))
        runs = _count_chunks(vae)
        arrays[f"decode.shared.{name}"] = vae.decode(latents, tiling).asnumpy()
        arrays[f"chunks.{name}"] = runs[0]
        arrays[f"encode.shared.{name}"] = vae.encode(video, tiling)[0].asnumpy()
    arrays["untiled"] = vae.decode(latents).asnumpy()
    ops.configure()
    return arrays


def case_time():
    """Decoded and encoded alone, then with the chunks dealt out; whole and as streams; bytes of the untiled ones."""
    processes = joined(communication.get_group_size())
    group, arrays, vae = processes.sequence, {}, _vae()
    for name, clip in CLIPS.items():
        ops.configure(mode="pynative", kernels=clip.kernels)
        rng = np.random.default_rng(clip.chunks)
        tiling = clip.tiling
        latents = rng.standard_normal((4, clip.latent_frames, clip.height, WIDTH)).astype(np.float32)
        video = rng.uniform(-1, 1, (3, clip.frames, 8 * clip.height, 8 * WIDTH)).astype(np.float32)
        for how, near in (("alone", None), ("shared", neighbours(group))):
            vae.share_time(near)
            processes.traffic.reset()
            pieces = list(decode_pieces(vae, latents, tiling))
            arrays[f"stream.{how}.{name}"] = np.concatenate(pieces, 1)
            arrays[f"pieces.{how}.{name}"] = [piece.shape[1] for piece in pieces]
            arrays |= _sent(processes.traffic, f"sent.decoder.{name}")
            processes.traffic.reset()
            found = encode_pieces(vae, _pieces_of(video), clip.frames, (8 * clip.height, 8 * WIDTH), tiling)
            arrays[f"encode.{how}.{name}"] = np.stack(found)
            arrays |= _sent(processes.traffic, f"sent.encoder.{name}")
            if name != "five":
                arrays[f"decode.{how}.{name}"] = vae.decode(ms.Tensor(latents[None]), tiling).asnumpy()
            if name == "two":
                arrays[f"moments.{how}.{name}"] = vae.encode(ms.Tensor(video[None]), tiling)[1].asnumpy()
    ops.configure()
    return arrays


def _sent(traffic: Traffic, name: str) -> dict[str, list[int]]:
    """Bytes handed on and published; of the process alone, which is first, none."""
    return {name: [traffic.sent.get(("vae time", kind), 0) for kind in ("next", "broadcast")]}


def _pieces_of(video: np.ndarray):
    """What a reader gives: the clip anew, 3 frames at a time."""
    return lambda: (video[:, start : start + 3] for start in range(0, video.shape[1], 3))


def _count_chunks(vae) -> list[int]:
    """How often the decoder has run, in a list of one; the counting replaces what counted before."""
    runs, decode = [0], type(vae).decode_chunk

    def counting(z, cache):
        runs[0] += 1
        return decode(vae, z, cache)

    vae._decoding = vae._decoding._replace(run=counting)
    return runs


def case_traffic():
    """Bytes that a forward pass, and one with gradients, were counted to send: by lengths and recompute mode."""
    arrays = {}
    ops.configure(mode="pynative")
    for lengths in LENGTHS:
        for mode in ("none", "all", "keep_attention"):
            processes = joined(communication.get_group_size())
            model = model_of("tiny-1.5")
            model.recompute(mode)
            sharing: Any = Ulysses(processes.sequence)
            model.communicate(sharing)
            video, text, times = inputs_of("tiny-1.5", lengths)
            model(video, text, times)
            forward = dict(processes.traffic.sent)
            processes.traffic.reset()
            weights = model.trainable_params()
            gradients: Any = ms.grad
            gradients(lambda v, m=model, t=text, s=times: m(v, t, s).sum(), None, weights)(video)
            for name, sent in (("forward", forward), ("step", processes.traffic.sent)):
                for (_, kind), count in sent.items():
                    arrays[f"{lengths}.{mode}.{name}.{kind}"] = count
    return arrays


def case_zero():
    """Bytes counted in one training step for gradients and parameters, by stage and recompute mode."""
    arrays = {}
    ops.configure(mode="pynative")  # the same messages, without compiling for each
    for stage in range(4):
        for mode in ("none", "all"):
            training = Training(joined(1), stage, "adamw", "sft", mode)
            training.processes.traffic.reset()
            training.run(0, 1)
            sent = training.processes.traffic.sent
            for purpose in ("gradients", "parameters"):
                arrays[f"{stage}.{mode}.{purpose}"] = sum(n for (what, _), n in sent.items() if what == purpose)
    return arrays
