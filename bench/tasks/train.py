"""train: SFT on cached latents and embeddings."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from bench.context import RunContext, synchronize
from bench.tasks.models import Models
from core.data.loader import CachedClips, prefetch
from core.data.manifest import read_manifest
from core.errors import UserError
from core.optim.lr import learning_rate


def run(recipe: Any, ctx: RunContext) -> None:
    """Trains and writes ``<out>/transformer`` in diffusers layout (and ``checkpoint-N/transformer`` on the way)."""
    models = Models(recipe, ctx)
    with ctx.stage("load"):
        transformer = models.transformer("fp32")
    scheduler = models.scheduler(transformer.config, "ddim")
    clips = _clips(recipe, models, transformer)
    ctx.note("data", {"clips": len(clips), "latent_frames": _latent_frames(recipe)})
    step_fn = _train_step(recipe, transformer, scheduler)
    _loop(recipe, ctx, transformer, clips, step_fn)
    with ctx.stage("save"):
        _save(ctx, transformer, "transformer")
    from core import weights  # noqa: PLC0415

    ctx.digest_value("parameters", weights.parameter_digest(transformer))


def _latent_frames(recipe: Any) -> int:
    return recipe.video.latent_frames or (recipe.video.frames - 1) // 4 + 1


def _clips(recipe: Any, models: Models, transformer: Any) -> CachedClips:
    config, vae = transformer.config, models.vae_config(transformer.config)
    clips = CachedClips(
        read_manifest(recipe.data.csv, video_column=recipe.data.video_column, caption_column=None),
        recipe.data.text_embed_folder,
        recipe.data.video_embed_folder,
        latent_frames=_latent_frames(recipe),
        scaling_factor=vae.scaling_factor,
        seed=recipe.seed,
        samples_per_step=recipe.train.batch_size * recipe.train.gradient_accumulation_steps,
        text_drop_prob=recipe.train.text_drop_prob,
        odd_latents=recipe.train.odd_latents,
        patch_size_t=config.patch_size_t or 1,
    )
    _check_sizes(recipe, clips, config, vae)
    return clips


def _check_sizes(recipe: Any, clips: CachedClips, config: Any, vae: Any) -> None:
    """The caches must be what the recipe says they are, before a step is spent on them."""
    first = clips.sample(0, 0)
    ratio = vae.spatial_compression_ratio
    size = [recipe.video.height // ratio, recipe.video.width // ratio]
    got, need = list(first["latents"].shape[1:]), [config.in_channels, *size]
    if got != need:
        raise UserError(
            f"data.video_embed_folder: {first['video']} has latents {got} (channels, height, width), need {need} for "
            f"{recipe.video.height}x{recipe.video.width} pixels; encode the videos at the recipe's size with its VAE"
        )
    length, width = first["prompt_embeds"].shape
    if width != config.text_embed_dim:
        raise UserError(f"data.text_embed_folder: embeddings are {width} wide, the model needs {config.text_embed_dim}")
    if recipe.text.max_length not in (None, length):
        raise UserError(f"text.max_length: got {recipe.text.max_length}, the cache has {length} tokens; encode again")


def _train_step(recipe: Any, transformer: Any, scheduler: Any) -> Any:
    from core.optim.adamw import AdamW  # noqa: PLC0415 - these import mindspore
    from core.train.step import TrainStep  # noqa: PLC0415

    section = recipe.optimizer
    transformer.recompute(recipe.train.recompute)
    optimizer = AdamW(
        transformer.trainable_params(), betas=section.betas, eps=section.eps, weight_decay=section.weight_decay
    )
    return TrainStep(transformer, scheduler, optimizer, max_grad_norm=recipe.train.max_grad_norm, seed=recipe.seed)


def _micro_batches(recipe: Any, clips: CachedClips) -> Iterator[list[Any]]:
    """The micro-batches of each optimiser step, read ahead by a thread."""
    from core.train.step import Batch  # noqa: PLC0415

    size, count = recipe.train.batch_size, recipe.train.gradient_accumulation_steps

    def read(step: int) -> list[Batch]:
        groups = [list(range(part * size, (part + 1) * size)) for part in range(count)]
        loaded = [(samples, clips.batch(step, samples)) for samples in groups]
        return [Batch(latents=b["latents"], text=b["prompt_embeds"], samples=s, files=b["video"]) for s, b in loaded]

    return prefetch(read(step) for step in range(recipe.train.steps))


def _loop(recipe: Any, ctx: RunContext, transformer: Any, clips: CachedClips, step_fn: Any) -> None:
    section, schedule = recipe.train, recipe.lr_schedule
    batches = _micro_batches(recipe, clips)
    for step in ctx.progress(range(section.steps), "train", total=section.steps):
        start = time.perf_counter()
        micro = next(batches)
        waited = time.perf_counter() - start
        lr = learning_rate(
            step, base=recipe.optimizer.lr, schedule=schedule.name,
            warmup_steps=schedule.warmup_steps, total_steps=section.steps,
        )  # fmt: skip
        result = step_fn(step, micro, lr)
        synchronize()
        seconds = time.perf_counter() - start
        samples = sum(len(batch.samples) for batch in micro)
        ctx.step(
            step, seconds, loss=result.loss, tags=("compile",) if step == 0 else (), samples=samples,
            frames=samples * recipe.video.frames, tokens=samples * _tokens(micro[0], transformer.config),
            extra={"data_seconds": waited, "lr": lr, "grad_norm": result.grad_norm},
        )  # fmt: skip
        if step % section.log_every == 0 or step == section.steps - 1:
            print(
                f"step {step} loss {result.loss:.6f} grad_norm {result.grad_norm:.4f} seconds {seconds:.3f}", flush=True
            )
        if section.save_every and (step + 1) % section.save_every == 0 and step + 1 < section.steps:
            with ctx.stage("checkpoint"):
                _save(ctx, transformer, f"checkpoint-{step + 1:06d}/transformer")


def _tokens(batch: Any, config: Any) -> int:
    """Tokens of one sample as the transformer sees them: video patches and text."""
    frames, _, height, width = batch.latents.shape[1:]
    patch = config.patch_size**2 * (config.patch_size_t or 1)
    return frames * height * width // patch + batch.text.shape[1]


def _save(ctx: RunContext, transformer: Any, name: str) -> None:
    from core import weights  # noqa: PLC0415

    weights.save_transformer(transformer, ctx.out / name)
    for path in sorted((ctx.out / name).glob("*.safetensors")):
        ctx.artifact("checkpoint", path)
