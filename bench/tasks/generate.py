"""generate: prompts (or their embeddings) to videos or latents, one component in memory at a time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.context import PiecesDigest, RunContext, array_digest, synchronize
from bench.flops import Size
from bench.flops import transformer as flops_of_transformer
from bench.tasks import work
from bench.tasks.inputs import batched, read_prompts, slug
from bench.tasks.models import Models, tiling_of
from bench.tasks.processes import processes_of, share_transformer, share_vae
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
    processes = processes_of(recipe)
    text = _encode(recipe, ctx, models)
    made = _denoise(recipe, ctx, models, text, processes)
    if recipe.save.decode:
        with ctx.stage("load_vae"):
            vae = models.vae(recipe.vae.dtype, "decoder")
            share_vae(vae, processes, recipe.vae)
        for item in ctx.progress(made, "decode", total=len(made)):
            write_video(
                ctx, vae, recipe, item.latents, item.stem, item.prompt, recipe.video.fps, keep=_keeps(processes)
            )
        # Last, so that it never names a video that isn't there; the layout of make-clips, for the judge.
        processes.world.wait()
        if ctx.rank.index == 0:
            rows = [(_video_name(recipe, job.stem), job.prompt) for job in _jobs(recipe, text)]
            ctx.artifact("table", shapes.write_csv(ctx.out, rows), rows=len(rows))
    if processes.world.size > 1:
        ctx.note("traffic", {"videos": len(made), "sent": processes.traffic.table()})


def _keeps(processes: Any) -> bool:
    """Whether this rank writes what its group made: the first of each group."""
    return processes.sequence.index == 0


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
    for name, array in (("prompt_embeds", embeds), ("negative_prompt_embeds", negative)):
        if array is not None:
            ctx.tensor("text", name, array)
    if not prompts:
        prompts = [f"embeds {i}" for i in range(len(embeds))]
    if len(prompts) != len(embeds):
        raise UserError(
            f"inputs.prompt_embeds: got {len(embeds)} embeddings for {len(prompts)} prompts, need equal numbers"
        )
    return _Text(prompts=prompts, embeds=embeds, negative=negative)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Video ``number`` of the run, made from prompt ``index``."""

    number: int
    index: int
    prompt: str
    stem: str


def _jobs(recipe: Any, text: _Text) -> list[_Job]:
    count = recipe.num_videos_per_prompt
    jobs = []
    for index, prompt in enumerate(text.prompts):
        for copy in range(count):
            stem = f"{index:03d}-{slug(prompt)}" + (f"-{copy}" if count > 1 else "")
            jobs.append(_Job(number=len(jobs), index=index, prompt=prompt, stem=stem))
    return jobs


def _denoise(recipe: Any, ctx: RunContext, models: Models, text: _Text, processes: Any) -> list[_Made]:
    """The videos of this rank's group; groups take turns at the jobs."""
    from core.sample import generate  # noqa: PLC0415

    with ctx.stage("load_transformer"):
        transformer = models.transformer()
        share_transformer(transformer, processes)
        transformer.enable_forward_chunking(recipe.sampling.feed_forward_chunk)
    scheduler = models.scheduler(transformer.config, recipe.sampling.sampler)
    vae_config = models.vae_config(transformer.config)
    given = batched(recipe.inputs.latents, ("latents",), 5) if recipe.inputs.latents else None
    jobs = _jobs(recipe, text)
    if given is not None and len(given) not in (1, len(jobs)):
        raise UserError(f"inputs.latents: got {len(given)} sets, need 1 or {len(jobs)} (one a video)")
    mesh = processes.mesh
    mine = jobs[mesh.row(processes.rank) :: mesh.data]
    made, clock = [], _StepClock(ctx, *_step_size(recipe, transformer.config, vae_config, text))
    for job in ctx.progress(mine, "denoise", total=len(mine)):
        negative = None if text.negative is None else text.negative[job.index % len(text.negative)][None]
        with ctx.stage("denoise", items=1, frames=recipe.video.frames):
            clock.start(job.number * recipe.sampling.steps)
            latents = generate(
                transformer=transformer, scheduler=scheduler, vae_config=vae_config,
                height=recipe.video.height, width=recipe.video.width, num_frames=recipe.video.frames,
                sampling=_sampling(recipe), prompt_embeds=text.embeds[job.index][None], negative_prompt_embeds=negative,
                latents=None if given is None else given[job.number % len(given)][None],
                seed=recipe.seed, first_video=job.number, output_type="latents", on_step=clock.tick,
            )[0]  # fmt: skip
        ctx.digest(f"latents/{job.stem}", latents)
        if _keeps(processes):
            _save_latents(recipe, ctx, latents, job.stem, job.prompt)
        made.append(_Made(prompt=job.prompt, stem=job.stem, latents=latents))
    ctx.note("sampler", {"class": type(scheduler).__name__, "timesteps": scheduler.timesteps.tolist()})
    return made


def _step_size(recipe: Any, config: Any, vae_config: Any, text: _Text) -> tuple[Any, Size]:
    """The transformer's config and what one denoising step gives it: with guidance each video twice."""
    from core.sample import latent_shape  # noqa: PLC0415

    video = recipe.video
    (frames, _, height, width), _ = latent_shape(config, vae_config, video.height, video.width, video.frames)
    batch = 2 if recipe.sampling.guidance_scale > 1.0 else 1
    return config, Size(batch=batch, frames=frames, height=height, width=width, text_tokens=text.embeds.shape[1])


def _sampling(recipe: Any) -> Any:
    from core.sample import Sampling  # noqa: PLC0415

    section = recipe.sampling
    return Sampling(
        num_inference_steps=section.steps, guidance_scale=section.guidance_scale, timesteps=section.timesteps,
        use_dynamic_cfg=section.dynamic_guidance, previous=section.previous,
    )  # fmt: skip


class _StepClock:
    """Turns the sampler's step callbacks into recorded steps; the first of the run compiles."""

    def __init__(self, ctx: RunContext, config: Any, size: Size):
        self._ctx, self._index, self._last, self._compiled = ctx, 0, 0.0, False
        self._flops = work.inference(ctx, flops_of_transformer(config, size))
        self._tokens = size.batch * (size.text_tokens + size.video_tokens(config))

    def start(self, index: int) -> None:
        """The next steps are numbered from ``index``."""
        self._index = index
        synchronize()
        self._last = time.perf_counter()

    def tick(self, _index: int, timestep: int, latents: Any) -> None:
        synchronize()
        seconds = time.perf_counter() - self._last
        tags = () if self._compiled else ("compile",)
        self._compiled = True
        extra = {"timestep": timestep, "latents": array_digest(latents.asnumpy()), **self._flops}
        self._ctx.step(self._index, seconds, tags=tags, tokens=self._tokens, extra=extra)
        # Hashing is not part of the next step.
        self._index, self._last = self._index + 1, time.perf_counter()


def _save_latents(recipe: Any, ctx: RunContext, latents: np.ndarray, stem: str, prompt: str) -> None:
    if not recipe.save.latents and recipe.save.decode:
        return
    path = ctx.out / f"{stem}.npz"
    with atomic_path(path) as temporary:
        np.savez(temporary, latents=latents, fps=np.float32(recipe.video.fps))
    ctx.artifact("latents", path, prompt=prompt)


def write_video(
    ctx: RunContext,
    vae: Any,
    recipe: Any,
    latents: np.ndarray,
    stem: str,
    prompt: str,
    fps: float,
    *,
    keep: bool = True,
) -> None:
    """Decodes scaled latents ``[F, C, H, W]`` chunk by chunk and writes ``<out>/<stem>.<format>``.

    Decoder and writer take turns, so the seconds of the stage ``vae_decode`` hold both. Without ``keep`` only decodes.
    """
    from core.data.video_writer import VideoWriter  # noqa: PLC0415
    from core.sample import to_uint8  # noqa: PLC0415
    from core.vae.streaming import decode_pieces  # noqa: PLC0415

    kind, digest = recipe.save.format, PiecesDigest()
    path = ctx.out / _video_name(recipe, stem)
    unscaled = (latents.transpose(1, 0, 2, 3) / np.float32(vae.config.scaling_factor)).astype(np.float32)
    pieces = decode_pieces(vae, np.ascontiguousarray(unscaled), tiling_of(recipe.vae), ctx.out)
    with ctx.stage("vae_decode", items=1):
        if not keep:
            for piece in pieces:
                digest.add(piece)
            ctx.digest_value(f"video/{stem}", digest.value())
            return
        with VideoWriter(path, fps=fps, format=kind) as out:
            for piece in pieces:
                digest.add(piece)
                out.write(to_uint8(piece))
            codec, count = out.codec, out.frames
    ctx.digest_value(f"video/{stem}", digest.value())
    shown = path / "00000.png" if kind == "png" else path
    ctx.artifact("image" if kind == "png" else "video", shown, prompt=prompt, frames=count, fps=fps, codec=codec)


def _video_name(recipe: Any, stem: str) -> str:
    """File, or for pictures folder, of a video."""
    return stem if recipe.save.format == "png" else f"{stem}.{recipe.save.format}"
