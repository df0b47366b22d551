"""One process that encodes or decodes one clip and counts its memory: ``python -m bench.vae_memory_child JOB.json``.

The job's ``code`` says whose: ``ours`` streams the clip as the tasks do (``core.vae.streaming``) and never imports
torch; ``diffusers`` gets the whole clip, as its interface wants it, and never imports MindSpore. Prints one JSON line.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from bench.memory import process_hwm_bytes, reset_hwm, resident_bytes
from core import draws
from core.presets import PRESETS
from core.vae.tiling import TilingConfig, plan_tiles

SEED, PIECE = 0, 2  # frames of a piece, as the task encode-video reads them


def main(path: str) -> None:
    """Runs the job and prints its line."""
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    run = {"ours": _ours, "diffusers": _diffusers, "write": _write}[job["code"]](job)
    if run is None:
        return
    loading = process_hwm_bytes()
    reset_hwm()
    loaded = resident_bytes()
    started, used = time.perf_counter(), time.process_time()
    facts = run()
    seconds, used = time.perf_counter() - started, time.process_time() - used
    marks = {"loading": loading, "loaded": loaded, "peak": process_hwm_bytes()}
    print(json.dumps(marks | {"seconds": seconds, "cpu_seconds": used} | (facts or {})), flush=True)


def latents(job: dict[str, Any]) -> np.ndarray:
    """Normal latents ``[16, t, h, w]`` of the job's size."""
    shape = (16, (job["frames"] - 1) // 4 + 1, job["height"] // 8, job["width"] // 8)
    return draws.normal(shape, SEED, "vae memory")


def pixels(job: dict[str, Any]) -> Iterator[np.ndarray]:
    """Pieces ``[3, up to 2, H, W]`` of a clip in [-1, 1], each made when it is asked for.

    Drawn, or all of one value where most tiles are not computed: for them the clip is read again hundreds of times.
    """
    for start in range(0, job["frames"], PIECE):
        shape = (3, min(PIECE, job["frames"] - start), job["height"], job["width"])
        if job.get("first_tiles") or job.get("chunks"):
            yield np.full(shape, 0.5, np.float32)
        else:
            yield np.tanh(draws.normal(shape, SEED, "vae memory pixels", start))


def _clip(job: dict[str, Any]) -> np.ndarray:
    """``[3, T, H, W]``: all pieces, of which each is gone when the next is drawn."""
    clip, start = np.empty((3, job["frames"], job["height"], job["width"]), np.float32), 0
    for piece in pixels(job):
        clip[:, start : start + piece.shape[1]] = piece
        start += piece.shape[1]
    return clip


class EachShape:
    """Chooses what is computed: all chunks of one tile of each shape that a clip has."""

    def __init__(self) -> None:
        self.seen: set[tuple[int, ...]] = set()
        self.skipped, self._computes = 0, True

    def __call__(self, shape: tuple[int, ...], *, begins: bool) -> bool:
        """Whether a chunk of a tile of this shape (height and width) is computed; ``begins``: it is the first one."""
        if begins:
            self._computes = shape not in self.seen
            self.seen.add(shape)
            self.skipped += not self._computes
        return self._computes

    def facts(self) -> dict[str, Any]:
        """For the table."""
        return {"shapes": sorted(self.seen), "skipped": self.skipped}


class LastLargest:
    """Chooses what is computed: the first ``chunks`` of the last of the ``count`` largest tiles.

    Whatever keeps finished tiles keeps most of them by then.
    """

    def __init__(self, largest: tuple[int, int], count: int, chunks: int):
        self._largest, self._count, self._chunks = largest, count, chunks
        self._met, self._left, self._computed = 0, 0, 0

    def __call__(self, shape: tuple[int, ...], *, begins: bool) -> bool:
        """As ``EachShape``'s."""
        if begins:
            self._met += shape == self._largest
            self._left = self._chunks if shape == self._largest and self._met == self._count else 0
        self._left -= 1
        self._computed += self._left >= 0
        return self._left >= 0

    def facts(self) -> dict[str, Any]:
        """For the table."""
        assert self._computed == self._chunks, (self._computed, self._met, self._count)
        return {"computed_chunks": self._computed, "largest_tiles": self._met}


def _chooser(job: dict[str, Any]) -> Any:
    """What computes only a part of the tiles, or None."""
    if job.get("first_tiles"):
        return EachShape()
    if not job.get("chunks"):
        return None
    ratio = PRESETS["5b"].vae.spatial_compression_ratio
    tiling = TilingConfig(tile_height=job["tiling"][0], tile_width=job["tiling"][1])
    plan = plan_tiles(job["height"] // ratio, job["width"] // ratio, tiling, ratio)
    sides, count = [], 1
    for axis in (plan.rows, plan.cols):
        sides.append(max(axis.lengths) * (ratio if job["side"] == "encode" else 1))
        count *= axis.lengths.count(max(axis.lengths))
    return LastLargest((sides[0], sides[1]), count, job["chunks"])


def _result_shape(side: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of the VAE's result for a chunk ``[B, C, T, H, W]``."""
    batch, _, frames, height, width = shape
    if side == "encode":
        return batch, 32, -(-frames // 4), height // 8, width // 8
    return batch, 3, 4 * frames if frames % 2 == 0 else 4 * (frames - 1) + 1, 8 * height, 8 * width


class SomeTiles:
    """Our VAE, computing the chunks that ``choose`` names; it hands out zeros for the others.

    Everything around the tiles is done in full.
    """

    def __init__(self, vae: Any, choose: Any):
        self._vae, self._choose = vae, choose

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vae, name)

    def decode_chunk(self, z: Any, cache: Any) -> Any:
        """As the VAE's, or zeros."""
        return self._chunk("decode", self._vae.decode_chunk, z, cache)

    def encode_chunk(self, x: Any, cache: Any) -> Any:
        """As the VAE's, or zeros."""
        return self._chunk("encode", self._vae.encode_chunk, x, cache)

    def _chunk(self, side: str, run: Any, x: Any, cache: Any) -> Any:
        import mindspore as ms  # noqa: PLC0415

        if self._choose(tuple(x.shape[3:]), begins=not cache):
            return run(x, cache)
        return ms.Tensor(np.zeros(_result_shape(side, x.shape), np.float32)), {"skipped": None}


def _some_chunks(module: Any, side: str, choose: Any) -> None:
    """Makes the encoder or decoder of diffusers compute only the chunks that ``choose`` names."""
    import torch  # noqa: PLC0415

    forward = module.forward

    def partly(sample: Any, temb: Any = None, conv_cache: Any = None) -> Any:
        if choose(tuple(sample.shape[3:]), begins=conv_cache is None):
            return forward(sample, temb, conv_cache)
        # Not zeros: their pages would not be touched, and what is kept of them not counted.
        return torch.full(_result_shape(side, tuple(sample.shape)), 0.5), {"skipped": None}

    module.forward = partly


def _ours(job: dict[str, Any]) -> Any:
    from bench.device import start_mindspore  # noqa: PLC0415
    from core import weights  # noqa: PLC0415
    from core.vae import streaming  # noqa: PLC0415

    runtime = SimpleNamespace(
        device="cpu", mode=job["mode"], jit_level="O0", kernels="auto", deterministic=True, max_device_memory=None
    )
    facts = start_mindspore(runtime, SEED)
    vae: Any = weights.load_vae(Path(job["weights"], job.get("config", "5b")), resident=job["resident"])
    tiles = job.get("tiling")
    tiling = TilingConfig(tile_height=tiles[0], tile_width=tiles[1]) if tiles else None
    choose = _chooser(job)
    if choose is not None:
        vae = SomeTiles(vae, choose)

    def decode() -> None:
        # A writer takes each piece and keeps none.
        for piece in streaming.decode_pieces(vae, latents(job), tiling):
            assert piece.shape[2:] == (job["height"], job["width"])

    def encode() -> None:
        size = (job["height"], job["width"])
        streaming.encode_pieces(vae, lambda: pixels(job), job["frames"], size, tiling)

    def run() -> dict[str, Any]:
        (decode if job["side"] == "decode" else encode)()
        return {"kernels": facts["kernels"], **(choose.facts() if choose is not None else {})}

    return run


def _diffusers(job: dict[str, Any]) -> Any:
    import torch  # noqa: PLC0415
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX  # noqa: PLC0415

    from bench.environment import package_version  # noqa: PLC0415

    vae: Any = AutoencoderKLCogVideoX.from_pretrained(Path(job["weights"], "5b")).eval()
    if job["mode"] == "slicing":
        vae.enable_slicing()
    if job["mode"] == "tiling":
        vae.enable_tiling(job["tiling"][0], job["tiling"][1], 1 / 6, 1 / 5)

    # They are mapped from the file and not read before they are used: now, so that they count as loaded.
    for parameter in vae.parameters():
        parameter.sum()

    choose = _chooser(job)
    if choose is not None:
        _some_chunks(vae.decoder if job["side"] == "decode" else vae.encoder, job["side"], choose)

    @torch.no_grad()
    def run() -> dict[str, Any]:
        if job["side"] == "decode":
            vae.decode(torch.from_numpy(latents(job)[None]), return_dict=False)
        else:
            vae.encode(torch.from_numpy(_clip(job)[None]), return_dict=False)
        found = choose.facts() if choose is not None else {}
        return {"packages": {name: package_version(name) for name in ("torch", "diffusers")}, **found}

    return run


def _write(job: dict[str, Any]) -> None:
    """The published architecture with random weights, for both codes to read, or as many layers of few channels."""
    from core import ops, weights  # noqa: PLC0415
    from core.vae.model import AutoencoderKLCogVideoX  # noqa: PLC0415

    ops.configure(device="CPU", mode="pynative")
    config = PRESETS["5b"].vae
    if job["config"] == "small":
        config = replace(config, block_out_channels=(8, 8, 8, 8), norm_num_groups=4)
    folder = Path(job["weights"], job["config"])
    folder.mkdir()
    weights.save_vae(AutoencoderKLCogVideoX(config).initialize(SEED), folder)
    print("{}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
