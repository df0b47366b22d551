"""Text to video: guidance, the denoising loop and decoding.

Letters: B videos, F latent frames, C latent channels, H, W latent height and width, T pixel frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import mindspore as ms
import numpy as np
from mindspore import mint

from core import draws
from core.configs import TransformerConfig, VAEConfig
from core.errors import UserError
from core.schedulers.base import Scheduler
from core.schedulers.ddim import CogVideoXDDIMScheduler
from core.schedulers.dpm import CogVideoXDPMScheduler
from core.schedulers.guidance import dynamic_guidance_scale, guided
from core.vae.tiling import TilingConfig

Noise = Callable[[int], np.ndarray]
OnStep = Callable[[int, int, ms.Tensor], None]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to denoise; names as in diffusers' ``CogVideoXPipeline``.

    ``timesteps`` is a kind (``trailing``, ``linspace``, ``leading``, ``linear-quadratic``), a decreasing list, or None
    for the scheduler's own kind. ``guidance_scale`` of 1 or less runs the model without the negative prompt.
    ``previous`` is where a step ends, see ``Scheduler.set_timesteps``.
    """

    num_inference_steps: int
    guidance_scale: float
    use_dynamic_cfg: bool = False
    timesteps: str | Sequence[int] | None = None
    previous: Literal["reference", "list"] | None = None


def latent_shape(
    config: TransformerConfig, vae: VAEConfig, height: int, width: int, num_frames: int
) -> tuple[tuple[int, int, int, int], int]:
    """``(F, C, H, W)`` of the latents that make ``num_frames`` pixel frames, and how many of F are padding.

    The 1.5 models take frames in pairs: an odd number of latent frames is padded at the front, and the padding is
    dropped after sampling, as in diffusers' pipeline.

    Raises:
        UserError: sizes that the model cannot make; the text names the nearest ones it can.
    """
    multiple = vae.spatial_compression_ratio * config.patch_size
    for name, value in (("height", height), ("width", width)):
        if value < multiple or value % multiple:
            low = max(multiple, value // multiple * multiple)
            raise UserError(f"{name}: got {value}, need a multiple of {multiple}, e.g. {low} or {low + multiple}")
    ratio = int(vae.temporal_compression_ratio)
    if num_frames < 1 or (num_frames - 1) % ratio:
        low = max(0, num_frames - 1) // ratio * ratio + 1
        raise UserError(f"frames: got {num_frames}, need {ratio}N+1, e.g. {low} or {low + ratio}")
    frames = (num_frames - 1) // ratio + 1
    padding = -frames % (config.patch_size_t or 1)
    spatial = vae.spatial_compression_ratio
    return (frames + padding, config.out_channels, height // spatial, width // spatial), padding


def initial_latents(shape: tuple[int, ...], seed: int, count: int, first: int = 0) -> np.ndarray:
    """Noise ``[count, F, C, H, W]``; video number ``first + i`` has its own stream, whatever the batch it is in."""
    return np.stack([draws.normal(shape, seed, "latents", first + i) for i in range(count)])


def encode_prompts(
    text_encoder: Any, tokenizer: Any, prompts: Sequence[str], max_length: int
) -> tuple[np.ndarray, list[str]]:
    """Prompts to embeddings ``[B, L, D]`` fp32, and a warning for each prompt that was cut. CogVideoX uses no mask."""
    tokens = tokenizer.encode(prompts, max_length=max_length)
    embeds = text_encoder(ms.Tensor(tokens.input_ids))
    return embeds.astype(ms.float32).asnumpy(), tokens.warnings


def denoise(
    transformer: Any,
    scheduler: Scheduler,
    latents: np.ndarray,
    prompt_embeds: np.ndarray,
    negative_prompt_embeds: np.ndarray | None,
    sampling: Sampling,
    noise: Noise,
    on_step: OnStep | None = None,
) -> np.ndarray:
    """The denoising loop: noise ``[B, F, C, H, W]`` -> clean latents of the same shape, fp32.

    Args:
        noise: called with the step number, gives ``[B, F, C, H, W]``; only the DPM sampler asks.
        on_step: called after each step with ``(index, timestep, latents)``, the latents that the step made.
    """
    _choose_timesteps(scheduler, sampling)
    with_guidance = sampling.guidance_scale > 1.0
    if with_guidance and negative_prompt_embeds is None:
        raise UserError(f"guidance_scale {sampling.guidance_scale}: need negative prompt embeddings (or a scale of 1)")
    halves = [prompt_embeds] if negative_prompt_embeds is None else [negative_prompt_embeds, prompt_embeds]
    text = ms.Tensor(np.concatenate(halves if with_guidance else [prompt_embeds]).astype(np.float32))
    sample = ms.Tensor(latents.astype(np.float32)) * scheduler.init_noise_sigma
    estimate = None
    steps = scheduler.timesteps
    for index, timestep in enumerate(steps.tolist()):
        output = _predict(transformer, sample, text, timestep, sampling, len(steps), with_guidance)
        if isinstance(scheduler, CogVideoXDPMScheduler):
            back = int(steps[index - 1]) if index else None
            draw = ms.Tensor(noise(index)) if scheduler.needs_noise(timestep) else None
            sample, estimate = scheduler.step(output, estimate, timestep, back, sample, noise=draw)
        else:
            assert isinstance(scheduler, CogVideoXDDIMScheduler)
            sample, _ = scheduler.step(output, timestep, sample)
        if on_step:
            on_step(index, timestep, sample)
    return sample.asnumpy()


def _choose_timesteps(scheduler: Scheduler, sampling: Sampling) -> None:
    if sampling.timesteps is None or isinstance(sampling.timesteps, str):
        scheduler.set_timesteps(sampling.num_inference_steps, kind=sampling.timesteps, previous=sampling.previous)
    else:
        scheduler.set_timesteps(timesteps=sampling.timesteps, previous=sampling.previous)


def _predict(transformer, sample, text, timestep: int, sampling: Sampling, count: int, with_guidance: bool):
    """The model's velocity, guided: ``[B, F, C, H, W]`` fp32."""
    model_input = mint.cat((sample, sample), dim=0) if with_guidance else sample
    timesteps = ms.Tensor(np.full(model_input.shape[0], timestep, np.int64))
    output = transformer(model_input, text, timesteps).astype(ms.float32)
    if not with_guidance:
        return output
    scale = sampling.guidance_scale
    if sampling.use_dynamic_cfg:
        scale = dynamic_guidance_scale(scale, timestep, count)
    unconditional, conditional = mint.chunk(output, 2, 0)
    return guided(unconditional, conditional, scale)


def decode(vae: Any, latents: np.ndarray, tiling: TilingConfig | None = None) -> np.ndarray:
    """Scaled latents ``[B, F, C, H, W]`` -> video ``[B, 3, T, height, width]`` around [-1, 1], fp32, not clipped."""
    scaled = np.ascontiguousarray(latents.transpose(0, 2, 1, 3, 4)) / np.float32(vae.config.scaling_factor)
    return vae.decode(ms.Tensor(scaled.astype(np.float32)), tiling).astype(ms.float32).asnumpy()


def to_uint8(video: np.ndarray) -> np.ndarray:
    """Video ``[..., 3, T, H, W]`` in [-1, 1] -> frames ``[..., T, H, W, 3]`` of 8 bits, rounded, clipped."""
    pixels = np.clip(video * 0.5 + 0.5, 0.0, 1.0) * 255.0
    return np.ascontiguousarray(np.moveaxis(pixels.round().astype(np.uint8), -4, -1))


def generate(
    *,
    transformer: Any,
    scheduler: Scheduler,
    vae: Any = None,
    vae_config: VAEConfig | None = None,
    height: int,
    width: int,
    num_frames: int,
    sampling: Sampling,
    prompt: str | Sequence[str] | None = None,
    negative_prompt: str = "",
    prompt_embeds: np.ndarray | None = None,
    negative_prompt_embeds: np.ndarray | None = None,
    text_encoder: Any = None,
    tokenizer: Any = None,
    max_sequence_length: int = 226,
    latents: np.ndarray | None = None,
    seed: int = 0,
    first_video: int = 0,
    noise: Noise | None = None,
    output_type: Literal["latents", "video"] = "video",
    tiling: TilingConfig | None = None,
    on_step: OnStep | None = None,
) -> np.ndarray:
    """Prompts or their embeddings, and optionally the initial latents, to latents or video.

    Args:
        prompt: one or B prompts; needs ``text_encoder`` and ``tokenizer``. Or ``prompt_embeds [B, L, D]``.
        vae: decodes; for ``latents`` alone ``vae_config`` is enough.
        latents: initial noise ``[B, F, C, H, W]`` including padding frames; None draws it from ``seed``.
        noise: noise of each step for the DPM sampler; None draws it from ``seed``.
        first_video: number of the first video; keeps streams apart when a run makes videos in several batches.
        output_type: ``latents [B, F, C, H, W]`` (scaled, padding dropped) or ``video [B, 3, T, height, width]``.

    Raises:
        UserError: sizes or inputs that do not fit, one line each.
    """
    sizes = vae_config if vae is None else vae.config
    if sizes is None or (vae is None and output_type == "video"):
        raise UserError("generate: need vae, or vae_config with output_type 'latents'")
    shape, padding = latent_shape(transformer.config, sizes, height, width, num_frames)
    if prompt_embeds is None:
        if prompt is None or text_encoder is None or tokenizer is None:
            raise UserError("generate: need prompt with text_encoder and tokenizer, or prompt_embeds")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        prompt_embeds, _ = encode_prompts(text_encoder, tokenizer, prompts, max_sequence_length)
        if sampling.guidance_scale > 1.0 and negative_prompt_embeds is None:
            negative_prompt_embeds, _ = encode_prompts(text_encoder, tokenizer, [negative_prompt], max_sequence_length)
    count = len(prompt_embeds)
    negative_prompt_embeds = _like_prompts(negative_prompt_embeds, prompt_embeds)
    if latents is None:
        latents = initial_latents(shape, seed, count, first_video)
    elif latents.shape != (count, *shape):
        raise UserError(f"latents: got shape {list(latents.shape)}, need {[count, *shape]} (padding frames included)")

    def drawn(index: int) -> np.ndarray:
        return np.stack([draws.normal(shape, seed, "sampler", index, first_video + i) for i in range(count)])

    clean = denoise(
        transformer, scheduler, latents, prompt_embeds, negative_prompt_embeds, sampling, noise or drawn, on_step
    )[:, padding:]
    return clean if output_type == "latents" else decode(vae, clean, tiling)


def _like_prompts(negative: np.ndarray | None, prompts: np.ndarray) -> np.ndarray | None:
    """One negative embedding serves all prompts; otherwise shapes must agree."""
    if negative is None:
        return None
    if len(negative) == 1:
        negative = np.broadcast_to(negative, (len(prompts), *negative.shape[1:]))
    if negative.shape != prompts.shape:
        raise UserError(f"negative_prompt_embeds: got shape {list(negative.shape)}, need {list(prompts.shape)}")
    return negative
