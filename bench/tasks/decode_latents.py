"""decode-latents: latents of a generate run, or a VAE cache, to videos."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.context import RunContext
from bench.tasks.generate import write_video
from bench.tasks.inputs import read_arrays
from bench.tasks.models import Models
from bench.tasks.processes import agreed, clip_processes, share_vae
from core.errors import UserError

_DEFAULT_FPS = 8.0


def run(recipe: Any, ctx: RunContext) -> None:
    """Decodes every file; one that can't be decoded is a reported row and the rest goes on."""
    files = _files(Path(recipe.latents))
    models = Models(recipe, ctx)
    with ctx.stage("load_vae"):
        vae = models.vae(recipe.vae.dtype, "decoder")
    processes = clip_processes(recipe)
    world = processes.world
    share_vae(vae, processes, recipe.vae)
    root = Path(recipe.latents) if Path(recipe.latents).is_dir() else files[0].parent
    rows = list(enumerate(files, start=1))
    mine = rows if world.size > 1 else ctx.mine(rows)
    sizes = (vae.config.scaling_factor, vae.config.latent_channels)
    for row, path in ctx.progress(mine, "decode", total=len(mine)):
        latents = None
        try:
            latents, fps = agreed(world, partial(_read, path, *sizes))
            stem = path.relative_to(root).with_suffix("").as_posix()
            fps = recipe.video.fps or fps or _DEFAULT_FPS
            write_video(ctx, vae, recipe, latents, stem, stem, fps, keep=world.index == 0)
        except UserError as error:
            if latents is not None and world.size > 1:
                raise  # the others wait for this process's chunks
            ctx.row_failed(row, str(path), str(error))
    if world.size > 1:
        ctx.note("traffic", {"videos": len(mine), "sent": processes.traffic.table()})


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(f for f in path.rglob("*") if f.suffix in (".npy", ".npz") and not f.name.startswith("."))
    if not files:
        raise UserError(f"latents: no .npy or .npz file at {path}; need a file or a folder of them")
    return files


def _read(path: Path, scaling_factor: float, channels: int) -> tuple[np.ndarray, float | None]:
    """Scaled latents ``[F, C, H, W]`` and the stored rate; a cache's ``latent_mean`` is unscaled and is scaled here."""
    arrays = read_arrays(path, ("latents", "latent_mean", "fps"))
    key = "latents" if "latents" in arrays else "latent_mean"
    if key not in arrays:
        raise UserError(f"{path}: got only fps, need latents or latent_mean")
    latents = arrays[key]
    if latents.ndim == 5 and len(latents) == 1:
        latents = latents[0]
    if latents.ndim != 4 or latents.shape[1] != channels or not np.issubdtype(latents.dtype, np.floating):
        raise UserError(
            f"{path}: {key} has shape {list(latents.shape)}, need [frames, {channels}, height, width] floats"
        )
    scale = np.float32(scaling_factor if key == "latent_mean" else 1.0)
    return latents.astype(np.float32) * scale, float(arrays["fps"]) if "fps" in arrays else None
