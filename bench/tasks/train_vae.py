"""train-vae: the autoencoder of a tiny model, from pixels."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.context import RunContext, synchronize
from bench.tasks.models import Models, digest_parameters
from core.checkpoint import component_folder, read_json
from core.configs import VAEConfig
from core.data.manifest import read_manifest
from core.data.transforms import to_frames, to_model
from core.data.video_writer import save_video
from core.errors import UserError
from core.layout import find_folders
from core.optim.lr import learning_rate
from core.presets import PRESETS
from core.train.vae_data import PixelClips

MAX_PARAMETERS = 20_000_000  # a tenth of the published VAE's; training that one needs more than this task does
_SHOWN = 4
_MEASURED = 64


def run(recipe: Any, ctx: RunContext) -> None:
    """Trains and writes ``<out>/vae`` in diffusers layout, then measures it on clips it was not trained on.

    Raises:
        UserError: a published size, or clips that can't be used.
    """
    _refuse_large(recipe.model)
    models = Models(recipe, ctx)  # before decord loads: the other way round MindSpore's start aborts the process
    with ctx.stage("load"):
        vae = models.vae("fp32")
        vae.compute_dtype = models.compute_dtype
        vae.set_grad()
        vae.whole_sides = vae.whole_blocks = True
        _start(recipe.train, vae)
    clips = _clips(recipe, recipe.data, recipe.train.batch_size)
    held_out = _clips(recipe, recipe.validation, 1) if recipe.validation else None
    _loop(recipe, ctx, clips, _train_step(recipe, vae))
    with ctx.stage("statistics"):
        _measure_scale(recipe, ctx, vae, clips)
    with ctx.stage("save"):
        _save(ctx, vae)
    with ctx.stage("evaluate"):
        _evaluate(ctx, vae, held_out or clips, "psnr_held_out" if held_out else "psnr_training_clips")
    ctx.note("data", {"clips": len(clips), "kept_in_memory": clips.kept, "held_out": len(held_out) if held_out else 0})


def _start(section: Any, vae: Any) -> None:
    from core.train.vae_start import set_logvar, start_linear  # noqa: PLC0415

    if section.initial_branch is not None:
        start_linear(vae, section.initial_branch)
    if section.initial_logvar is not None:
        set_logvar(vae, section.initial_logvar)


def _refuse_large(model: Any) -> None:
    """Before any weight is read: this trainer keeps everything in one process."""
    from core.vae.parameters import parameter_table  # noqa: PLC0415

    if model.preset:
        key, config = "model.preset", PRESETS[model.preset].vae
    else:
        folder = component_folder(find_folders(model.path, vae=model.vae).need("vae"), "vae")
        key, config = f"{folder}", VAEConfig.from_dict(read_json(folder / "config.json"), str(folder / "config.json"))
    count = sum(spec.size for spec in parameter_table(config).values())
    if count > MAX_PARAMETERS:
        raise UserError(
            f"{key}: got a VAE of {count:,} parameters, train-vae is for tiny models (at most {MAX_PARAMETERS:,}); "
            "take a tiny preset, or the published VAE as it is"
        )


def _clips(recipe: Any, table: Any, batch_size: int) -> PixelClips:
    if not Path(table.video_folder).is_dir():
        raise UserError(f"video_folder: no such folder {table.video_folder}; correct the path")
    manifest = read_manifest(
        table.csv, video_column=table.video_column, caption_column=None, video_folder=table.video_folder
    )
    video = recipe.video
    return PixelClips(
        manifest, table.video_folder, frames=video.frames, height=video.height, width=video.width, seed=recipe.seed,
        batch_size=batch_size,
    )  # fmt: skip


def _optimizer(section: Any, parameters: Any) -> Any:
    from core.optim.adamw import AdamW  # noqa: PLC0415 - these import mindspore
    from core.optim.came import CAME  # noqa: PLC0415
    from core.optim.groups import decay_mask  # noqa: PLC0415

    kind = {"adamw": AdamW, "came": CAME}[section.name]
    decay = decay_mask(parameters, section.decay)
    return kind(parameters, betas=section.betas, eps=section.eps, weight_decay=section.weight_decay, decay=decay)


def _train_step(recipe: Any, vae: Any) -> Any:
    from core.train.vae_step import VAETrainStep  # noqa: PLC0415

    section = recipe.train
    return VAETrainStep(
        vae, _optimizer(recipe.optimizer, vae.trainable_params()), reconstruction=section.reconstruction,
        kl_weight=section.kl_weight, max_grad_norm=section.max_grad_norm, seed=recipe.seed,
    )  # fmt: skip


def _loop(recipe: Any, ctx: RunContext, clips: PixelClips, step_fn: Any) -> None:
    section, schedule, samples = recipe.train, recipe.lr_schedule, list(range(recipe.train.batch_size))
    for step in ctx.progress(range(section.steps), "train", total=section.steps):
        start = time.perf_counter()
        video, files = clips.batch(step, samples)
        waited = time.perf_counter() - start
        lr = learning_rate(
            step, base=recipe.optimizer.lr, schedule=schedule.name, warmup_steps=schedule.warmup_steps,
            total_steps=section.steps, end=schedule.end, power=schedule.power, cycles=schedule.cycles,
        )  # fmt: skip
        result = step_fn(step, video, samples, files, lr)
        synchronize()
        seconds = time.perf_counter() - start
        parts = {"reconstruction": result.reconstruction, "kl": result.kl, "grad_norm": result.grad_norm}
        ctx.step(
            step, seconds, loss=result.loss, tags=("compile",) if step == 0 else (), samples=len(samples),
            frames=len(samples) * recipe.video.frames, extra={"data_seconds": waited, "lr": lr, **parts},
        )  # fmt: skip
        if step % section.log_every == 0 or step == section.steps - 1:
            shown = " ".join(f"{name} {value:.5f}" for name, value in parts.items())
            print(f"step {step} loss {result.loss:.6f} {shown} seconds {seconds:.3f}", flush=True)


def posterior_means(vae: Any, clips: PixelClips, items: list[int]) -> Iterator[np.ndarray]:
    """float32 ``[C, t, h, w]`` of each of these clips."""
    import mindspore as ms  # noqa: PLC0415

    for item in items:
        mean, _ = vae.encode(ms.Tensor(to_model(clips.clip(item))[None]))
        yield mean.astype(ms.float32).asnumpy()[0]


def _measure_scale(recipe: Any, ctx: RunContext, vae: Any, clips: PixelClips) -> None:
    """Sets the config's ``scaling_factor``, which brings the latents to a standard deviation of 1."""
    items = clips.spread(recipe.train.statistics_clips)
    count, total, squares = 0, 0.0, 0.0
    for mean in posterior_means(vae, clips, items):
        values = mean.astype(np.float64)
        count, total, squares = count + values.size, total + values.sum(), squares + (values**2).sum()
    deviation = float(np.sqrt(squares / count - (total / count) ** 2))
    if not deviation > 0:
        raise UserError(f"the latents of all {len(items)} clips are equal: nothing was learned; train longer")
    vae.config = replace(vae.config, scaling_factor=float(f"{1 / deviation:.4g}"))
    ctx.note(
        "latents",
        {"clips": len(items), "mean": total / count, "std": deviation, "scaling_factor": vae.config.scaling_factor},
    )
    ctx.metric("latent_std", deviation, "")


def _save(ctx: RunContext, vae: Any) -> None:
    from core import weights  # noqa: PLC0415

    weights.save_vae(vae, ctx.out / "vae")
    for path in sorted((ctx.out / "vae").glob("*.safetensors")):
        ctx.artifact("checkpoint", path)
    ctx.digest_value("parameters", weights.parameter_digest(vae))
    digest_parameters(ctx, "parameters", vae)


def _evaluate(ctx: RunContext, vae: Any, clips: PixelClips, name: str) -> None:
    """PSNR of reconstructions from the posterior means, and videos of original (left) and reconstruction (right)."""
    import mindspore as ms  # noqa: PLC0415

    items, values = clips.spread(_MEASURED), []
    for place, (item, mean) in enumerate(zip(items, posterior_means(vae, clips, items), strict=True)):
        original = clips.clip(item)
        decoded = to_frames(vae.decode(ms.Tensor(mean[None])).astype(ms.float32).asnumpy()[0])[: len(original)]
        values.append(psnr(original, decoded))
        if place < _SHOWN:
            video = clips.manifest.rows[item].video
            path = ctx.out / f"reconstruction-{place}.mp4"
            save_video(path, np.concatenate([original, decoded], 2), fps=8)
            caption = f"{video}: original and reconstruction, {values[-1]:.1f} dB"
            ctx.artifact("video", path, prompt=caption, frames=len(original), fps=8)
    ctx.metric(name, float(np.mean(values)), "dB")
    ctx.note(name, {"clips": len(items), "lowest": min(values), "highest": max(values)})


def psnr(original: np.ndarray, decoded: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 arrays of one shape; equal arrays count as an error of 1/100."""
    error = float(((original.astype(np.float64) - decoded) ** 2).mean())
    return float(10 * np.log10(255**2 / max(error, 1e-4)))
