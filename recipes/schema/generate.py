"""Kinds that make videos: generate, decode-latents."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, FiniteFloat

from recipes.schema.common import (
    VAE,
    Model,
    Parallel,
    PathStr,
    Pixels16,
    Positive,
    Rate,
    Recipe,
    Section,
    Texts,
    need,
)

SpacingName = Literal["trailing", "linspace", "leading", "linear-quadratic"]
Timestep = Annotated[int, Field(ge=0, le=999)]
Format = Literal["mp4", "gif", "png", "npy"]


def _timesteps(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class GenerateVideo(Section):
    """Size of the videos."""

    height: Pixels16
    """Height in pixels: a multiple of 16 (VAE 8 x patch 2)."""
    width: Pixels16
    """Width in pixels."""
    frames: Positive
    """Frames: 8n+1, which the VAE decodes exactly; 16n+1 is recommended for the 1.5 models."""
    fps: Rate = 8.0
    """Frames per second of the file; the 1.0 models were trained at 8, the 1.5 models at 16."""


class Sampling(Section):
    """How noise becomes latents."""

    steps: Positive = 50
    """Denoising steps."""
    sampler: Literal["ddim", "dpm"] = "ddim"
    """``ddim`` is the published scheduler; ``dpm`` (DPM-Solver++ SDE) is the 5B and 1.5 cards' recommendation."""
    timesteps: Annotated[
        SpacingName | tuple[Timestep, ...],
        BeforeValidator(_timesteps, json_schema_input_type=SpacingName | list[Timestep]),
        Field(**need("trailing, linspace, leading, linear-quadratic or a list of integers from 999 down to 0")),
    ] = "trailing"
    """Spacing of the steps in the 1000 training timesteps, or the timesteps themselves."""
    guidance_scale: Annotated[FiniteFloat, Field(ge=0)] = 6.0
    """Classifier-free guidance; 1 or less runs no unconditional pass."""
    dynamic_guidance: bool = False
    """Guidance that grows over the steps along a cosine."""
    previous: Literal["reference", "list"] | None = None
    """Where a step ends: ``reference`` at t - 1000 // steps as published, ``list`` at the next timestep of the list
    (docs/design/004); null: reference for trailing, linspace and leading, list for the others."""
    feed_forward_chunk: Positive | None = None
    """Tokens (of both passes with guidance) that go through a block's feed-forward at a time; null: all. Its hidden
    layer, four times the model's width, is then never there for all tokens."""


class PromptLength(Section):
    """The prompts."""

    max_length: Positive = 226
    """Tokens; shorter prompts are padded."""


class Inputs(Section):
    """Tensors from files (.npy or .npz) instead of computed ones."""

    prompt_embeds: PathStr | None = None
    """[length, width] or [prompts, length, width], instead of prompts."""
    negative_prompt_embeds: PathStr | None = None
    """The same for the unconditional pass."""
    latents: PathStr | None = None
    """Initial noise [frames, C, h, w] or with a leading batch."""


class Save(Section):
    """What is kept."""

    format: Format = "mp4"
    """File format of the videos."""
    latents: bool = False
    """Also keep the latents as .npz, which decode-latents reads."""
    decode: bool = True
    """Decode to a video; false keeps only latents."""


class GenerateRecipe(Recipe):
    """Text to video."""

    kind: Literal["generate"]
    model: Model
    prompts: Texts | None = None
    """One prompt or a list."""
    prompts_file: PathStr | None = None
    """Text file with a prompt a line."""
    negative_prompt: str = ""
    """Text of the unconditional pass."""
    num_videos_per_prompt: Positive = 1
    """Videos for each prompt, with different noise."""
    video: GenerateVideo
    sampling: Sampling = Sampling()
    text: PromptLength = PromptLength()
    inputs: Inputs = Inputs()
    vae: VAE = VAE()
    save: Save = Save()
    parallel: Parallel = Parallel()


class DecodeVideo(Section):
    """The decoded video."""

    fps: Rate | None = None
    """Frames per second of the file; null: the rate stored with the latents, 8 if there is none."""


class DecodeSave(Section):
    """What is kept."""

    format: Format = "mp4"
    """File format of the videos."""


class DecodeLatentsRecipe(Recipe):
    """Latents to video: the second half of generate, or a check of encode-video."""

    kind: Literal["decode-latents"]
    model: Model
    latents: PathStr
    """File (.npy, .npz) or folder of such files."""
    video: DecodeVideo = DecodeVideo()
    vae: VAE = VAE()
    save: DecodeSave = DecodeSave()
