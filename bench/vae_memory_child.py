"""One process that encodes or decodes one clip and counts its memory: ``python -m bench.vae_memory_child JOB.json``.

The job's ``code`` says whose: ``ours`` streams the clip as the tasks do (``core.vae.streaming``) and never imports
torch; ``diffusers`` gets the whole clip, as its interface wants it, and never imports MindSpore. Prints one JSON line.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from bench.memory import process_hwm_bytes, reset_hwm, resident_bytes
from core import draws
from core.presets import PRESETS

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
    started = time.perf_counter()
    facts = run()
    seconds = time.perf_counter() - started
    print(
        json.dumps(
            {"loading": loading, "loaded": loaded, "peak": process_hwm_bytes(), "seconds": seconds, **(facts or {})}
        ),
        flush=True,
    )


def latents(job: dict[str, Any]) -> np.ndarray:
    """Normal latents ``[16, t, h, w]`` of the job's size."""
    shape = (16, (job["frames"] - 1) // 4 + 1, job["height"] // 8, job["width"] // 8)
    return draws.normal(shape, SEED, "vae memory")


def pixels(job: dict[str, Any]) -> Iterator[np.ndarray]:
    """Pieces ``[3, up to 2, H, W]`` of a clip in [-1, 1], each drawn when it is asked for."""
    for start in range(0, job["frames"], PIECE):
        shape = (3, min(PIECE, job["frames"] - start), job["height"], job["width"])
        yield np.tanh(draws.normal(shape, SEED, "vae memory pixels", start))


class FirstTiles:
    """A VAE that computes one tile of each shape, for all its chunks, and hands out zeros for the others.

    All shapes that a whole clip has are met, and everything around the tiles is done in full.
    """

    def __init__(self, vae: Any):
        self._vae, self.seen, self.skipped = vae, set(), 0
        self._key: Any = None
        self._zeros = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vae, name)

    def decode_chunk(self, z: Any, cache: Any) -> Any:
        """As the VAE's, or zeros."""
        return self._chunk(self._vae.decode_chunk, z, cache, 8, 3, lambda t: 4 * t if t % 2 == 0 else 4 * (t - 1) + 1)

    def encode_chunk(self, x: Any, cache: Any) -> Any:
        """As the VAE's, or zeros."""
        return self._chunk(self._vae.encode_chunk, x, cache, 1 / 8, 32, lambda t: -(-t // 4))

    def _chunk(self, run: Any, x: Any, cache: Any, scale: float, channels: int, frames: Any) -> Any:
        import mindspore as ms  # noqa: PLC0415

        batch, _, count, height, width = x.shape
        if not cache:  # a tile begins
            self._zeros = (batch, height, width) in self.seen
            self.seen.add((batch, height, width))
            self.skipped += self._zeros
        if not self._zeros:
            return run(x, cache)
        shape = (batch, channels, frames(count), round(height * scale), round(width * scale))
        return ms.Tensor(np.zeros(shape, np.float32)), {"skipped": None}


def _ours(job: dict[str, Any]) -> Any:
    from bench.device import start_mindspore  # noqa: PLC0415
    from core import weights  # noqa: PLC0415
    from core.vae import streaming  # noqa: PLC0415
    from core.vae.tiling import TilingConfig  # noqa: PLC0415

    runtime = SimpleNamespace(
        device="cpu", mode=job["mode"], jit_level="O0", kernels="auto", deterministic=True, max_device_memory=None
    )
    facts = start_mindspore(runtime, SEED)
    vae: Any = weights.load_vae(job["weights"])
    tiles = job.get("tiling")
    tiling = TilingConfig(tile_height=tiles[0], tile_width=tiles[1]) if tiles else None
    if job.get("first_tiles"):
        vae = FirstTiles(vae)

    def decode() -> None:
        # A writer takes each piece and keeps none.
        for piece in streaming.decode_pieces(vae, latents(job), tiling):
            assert piece.shape[2:] == (job["height"], job["width"])

    def encode() -> None:
        size = (job["height"], job["width"])
        streaming.encode_pieces(vae, lambda: pixels(job), job["frames"], size, tiling)

    def run() -> dict[str, Any]:
        (decode if job["side"] == "decode" else encode)()
        more = {"shapes": sorted(vae.seen), "skipped": vae.skipped} if job.get("first_tiles") else {}
        return {"kernels": facts["kernels"], **more}

    return run


def _diffusers(job: dict[str, Any]) -> Any:
    import torch  # noqa: PLC0415
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX  # noqa: PLC0415

    from bench.environment import package_version  # noqa: PLC0415

    vae: Any = AutoencoderKLCogVideoX.from_pretrained(job["weights"]).eval()
    if job["mode"] == "slicing":
        vae.enable_slicing()
    if job["mode"] == "tiling":
        vae.enable_tiling(job["tiling"][0], job["tiling"][1], 1 / 6, 1 / 5)

    # They are mapped from the file and not read before they are used: now, so that they count as loaded.
    for parameter in vae.parameters():
        parameter.sum()

    @torch.no_grad()
    def run() -> dict[str, Any]:
        if job["side"] == "decode":
            vae.decode(torch.from_numpy(latents(job)[None]), return_dict=False)
        else:
            vae.encode(torch.from_numpy(np.concatenate(list(pixels(job)), 1)[None]), return_dict=False)
        return {"packages": {name: package_version(name) for name in ("torch", "diffusers")}}

    return run


def _write(job: dict[str, Any]) -> None:
    """The published architecture with random weights, for both codes to read."""
    from core import ops, weights  # noqa: PLC0415
    from core.vae.model import AutoencoderKLCogVideoX  # noqa: PLC0415

    ops.configure(device="CPU", mode="pynative")
    weights.save_vae(AutoencoderKLCogVideoX(PRESETS["5b"].vae).initialize(SEED), job["weights"])
    print("{}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
