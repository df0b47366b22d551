"""A VAE whose tiles are dealt to ranks, and the counted bytes of Ulysses and ZeRO."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import communication

from core import ops
from core.parallel.collectives import joined
from core.parallel.ulysses import Ulysses
from core.presets import PRESETS
from core.vae.model import AutoencoderKLCogVideoX
from core.vae.tiling import TilingConfig
from tests.distributed.train_cases import Training
from tests.distributed.ulysses_cases import LENGTHS, inputs_of, model_of

# 7 x 7 latents in tiles of 4 x 4 that overlap by 1: 9 tiles of 4 shapes, which 2 ranks do not divide.
TILES = {"one": {}, "vectorised": {"vectorised": True, "max_batch": 2}}


def _vae() -> AutoencoderKLCogVideoX:
    config = replace(
        PRESETS["tiny-1.5"].vae, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4,
        latent_channels=4,
    )  # fmt: skip
    return AutoencoderKLCogVideoX(config).initialize(3)


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
