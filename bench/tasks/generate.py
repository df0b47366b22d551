"""generate: prompts (or their embeddings) to videos or latents, one component in memory at a time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.context import PiecesDigest, RunContext, synchronize
from bench.tasks.inputs import batched, read_prompts, slug
from bench.tasks.models import Models, tiling_of
from core.data import shapes
from core.errors import UserError
from core.files import atomic_path


@dataclass(frozen=True, kw_only=True)
class _Text:
    """Embeddings ``[P, L, D]`` of P prompts and the negative one ``[1 or P, L, D]`` (None without guidance)."""

    prompts: list[str]
    embeds: np.ndarray
    negative: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class _Made:
    """One finished set of latents ``[F, C, H, W]`` and where its files go."""

    prompt: str
    stem: str
    latents: np.ndarray


def run(recipe: Any, ctx: RunContext) -> None:
    """Encodes the prompts, denoises every video, then decodes; each component is released before the next loads."""
    models = Models(recipe, ctx)
    text = _encode(recipe, ctx, models)
    made = _denoise(recipe, ctx, models, text)
    if recipe.save.decode:
        with ctx.stage("load_vae"):
            vae = models.vae(recipe.vae.dtype)
        rows = []
        for item in ctx.progress(made, "decode", total=len(made)):
            path = write_video(ctx, vae, recipe, item.latents, item.stem, item.prompt, recipe.video.fps)
            rows.append((path.name, item.prompt))
        # Last, so that it never names a video that isn't there; the layout of make-clips, for the judge.
        ctx.artifact("table", shapes.write_csv(ctx.out, rows), rows=len(rows))


def _encode(recipe: Any, ctx: RunContext, models: Models) -> _Text:
    prompts = read_prompts(recipe)
    guided = recipe.sampling.guidance_scale > 1.0
    keys = ("prompt_embeds", "text_emb")
    embeds = batched(recipe.inputs.prompt_embeds, keys, 3) if recipe.inputs.prompt_embeds else None
    negative = None
    if guided and recipe.inputs.negative_prompt_embeds:
        negative = batched(recipe.inputs.negative_prompt_embeds, ("negative_prompt_embeds", *keys), 3)
    if embeds is None or (guided and negative is None):
        from core.sample import encode_prompts  # noqa: PLC0415

        with ctx.stage("load_text_encoder"):
            encoder, tokenizer = models.text_encoder()
        with ctx.stage("text_encode", items=len(prompts) + int(guided)):
            if embeds is None:
                parts = [encode_prompts(encoder, tokenizer, [p], recipe.text.max_length) for p in prompts]
                embeds = np.concatenate([part for part, _ in parts])
                for warning in (w for _, warnings in parts for w in warnings):
                    ctx.note("truncated_prompt", warning)
                    print(f"warning: {warning}", flush=True)
            if guided and negative is None:
                negative, _ = encode_prompts(encoder, tokenizer, [recipe.negative_prompt], embeds.shape[1])
    if not prompts:
        prompts = [f"embeds {i}" for i in range(len(embeds))]
    if len(prompts) != len(embeds):
        raise UserError(
            f"inputs.prompt_embeds: got {len(embeds)} embeddings for {len(prompts)} prompts, need equal numbers"
        )
    return _Text(prompts=prompts, embeds=embeds, negative=negative)


def _denoise(recipe: Any, ctx: RunContext, models: Models, text: _Text) -> list[_Made]:
    from core.sample import generate  # noqa: PLC0415

    with ctx.stage("load_transformer"):
        transformer = models.transformer()
    scheduler = models.scheduler(transformer.config, recipe.sampling.sampler)
    vae_config = models.vae_config(transformer.config)
    given = batched(recipe.inputs.latents, ("latents",), 5) if recipe.inputs.latents else None
    count = recipe.num_videos_per_prompt
    if given is not None and len(given) not in (1, len(text.prompts) * count):
        raise UserError(f"inputs.latents: got {len(given)} sets, need 1 or {len(text.prompts) * count} (one a video)")
    jobs = [(p, n) for p in range(len(text.prompts)) for n in range(count)]
    made, clock = [], _StepClock(ctx)
    for number, (index, copy) in enumerate(ctx.progress(jobs, "denoise", total=len(jobs))):
        prompt = text.prompts[index]
        negative = None if text.negative is None else text.negative[index % len(text.negative)][None]
        stem = f"{index:03d}-{slug(prompt)}" + (f"-{copy}" if count > 1 else "")
        with ctx.stage("denoise", items=1, frames=recipe.video.frames):
            clock.start()
            latents = generate(
                transformer=transformer, scheduler=scheduler, vae_config=vae_config,
                height=recipe.video.height, width=recipe.video.width, num_frames=recipe.video.frames,
                sampling=_sampling(recipe), prompt_embeds=text.embeds[index][None], negative_prompt_embeds=negative,
                latents=None if given is None else given[number % len(given)][None],
                seed=recipe.seed, first_video=number, output_type="latents", on_step=clock.tick,
            )[0]  # fmt: skip
        ctx.digest(f"latents/{stem}", latents)
        _save_latents(recipe, ctx, latents, stem, prompt)
        made.append(_Made(prompt=prompt, stem=stem, latents=latents))
    ctx.note("sampler", {"class": type(scheduler).__name__, "timesteps": scheduler.timesteps.tolist()})
    return made


def _sampling(recipe: Any) -> Any:
    from core.sample import Sampling  # noqa: PLC0415

    section = recipe.sampling
    return Sampling(
        num_inference_steps=section.steps, guidance_scale=section.guidance_scale, timesteps=section.timesteps,
        use_dynamic_cfg=section.dynamic_guidance, previous=section.previous,
    )  # fmt: skip


class _StepClock:
    """Turns the sampler's step callbacks into recorded steps; the first of the run compiles."""

    def __init__(self, ctx: RunContext):
        self._ctx, self._index, self._last = ctx, 0, 0.0

    def start(self) -> None:
        synchronize()
        self._last = time.perf_counter()

    def tick(self, _index: int, timestep: int) -> None:
        synchronize()
        now = time.perf_counter()
        tags = ("compile",) if self._index == 0 else ()
        self._ctx.step(self._index, now - self._last, tags=tags, extra={"timestep": timestep})
        self._index, self._last = self._index + 1, now


def _save_latents(recipe: Any, ctx: RunContext, latents: np.ndarray, stem: str, prompt: str) -> None:
    if not recipe.save.latents and recipe.save.decode:
        return
    path = ctx.out / f"{stem}.npz"
    with atomic_path(path) as temporary:
        np.savez(temporary, latents=latents, fps=np.float32(recipe.video.fps))
    ctx.artifact("latents", path, prompt=prompt)


def write_video(
    ctx: RunContext, vae: Any, recipe: Any, latents: np.ndarray, stem: str, prompt: str, fps: float
) -> Path:
    """Decodes scaled latents ``[F, C, H, W]`` chunk by chunk and writes ``<out>/<stem>.<format>``.

    Decoder and writer take turns, so the seconds of the stage ``vae_decode`` hold both.
    """
    from core.data.video_writer import VideoWriter  # noqa: PLC0415
    from core.sample import to_uint8  # noqa: PLC0415
    from core.vae.streaming import decode_pieces  # noqa: PLC0415

    kind = recipe.save.format
    path = ctx.out / (stem if kind == "png" else f"{stem}.{kind}")
    unscaled = np.ascontiguousarray(latents.transpose(1, 0, 2, 3)) / np.float32(vae.config.scaling_factor)
    digest = PiecesDigest()
    with ctx.stage("vae_decode", items=1), VideoWriter(path, fps=fps, format=kind) as out:
        for piece in decode_pieces(vae, unscaled.astype(np.float32), tiling_of(recipe.vae), ctx.out):
            digest.add(piece)
            out.write(to_uint8(piece))
        codec, count = out.codec, out.frames
    ctx.digest_value(f"video/{stem}", digest.value())
    shown = path / "00000.png" if kind == "png" else path
    ctx.artifact("image" if kind == "png" else "video", shown, prompt=prompt, frames=count, fps=fps, codec=codec)
    return path
