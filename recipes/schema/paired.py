"""The kind paired: one piece of work, done by us and by diffusers in turn."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from recipes.schema.common import VAE, AsTuple, Pixels16, Positive, PresetName, Recipe, Section
from recipes.schema.train import LoRA, Optimizer, RecomputeMode


class PairedModel(Section):
    """Sizes: a preset's, some of them replaced. The weights are random; both sides read the same files."""

    preset: PresetName
    """Named sizes."""
    num_layers: Positive | None = None
    """Transformer blocks; null: the preset's."""
    num_attention_heads: Positive | None = None
    """Heads of the transformer; null: the preset's."""
    attention_head_dim: Annotated[int, Field(ge=16, multiple_of=16)] | None = None
    """Width of a head; null: the preset's."""
    vae_channels: Annotated[tuple[Positive, ...], AsTuple, Field(min_length=4, max_length=4)] | None = None
    """Channels of the VAE's four levels; null: the preset's."""
    text_layers: Positive | None = None
    """Blocks of the text encoder; null: the preset's."""
    text_heads: Positive | None = None
    """Heads of the text encoder (of 64 each, its width is 64 times as much); null: the preset's sizes."""
    init_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the random weights."""


class PairedVideo(Section):
    """The clip."""

    height: Pixels16
    """Height in pixels: a multiple of 16 (VAE 8 x patch 2)."""
    width: Pixels16
    """Width in pixels."""
    frames: Positive
    """Frames: 8n+1."""


class PairedTraining(Section):
    """A training step, for ``case: train``."""

    method: Literal["sft", "lora"] = "sft"
    """``sft`` trains every parameter, ``lora`` low-rank additions to some."""
    recompute: RecomputeMode = "none"
    """``all``: blocks are computed again in the backward pass on both sides (diffusers: gradient checkpointing)."""
    feed_forward_chunk: Positive | None = None
    """Ours alone (diffusers' blocks have no such thing): tokens that go through a feed-forward at a time; null: all."""
    max_grad_norm: Annotated[FiniteFloat, Field(gt=0)] | None = 1.0
    """Global norm that gradients are scaled down to; null: never."""
    optimizer_in_backward: bool = False
    """Parameters are updated as soon as their gradients are there, which are freed then; with max_grad_norm gradients
    are computed twice, first for their norm."""


class PairedSampling(Section):
    """Denoising, for ``case: generate``: the DDIM sampler, without guidance by dynamic scale."""

    steps: Positive = 8
    """Denoising steps."""
    guidance_scale: Annotated[FiniteFloat, Field(ge=1)] = 6.0
    """Classifier-free guidance; 1 runs without."""


class PairedRecipe(Recipe):
    """Ours and diffusers' on the same weights and inputs, call by call in turn, each in its own process."""

    kind: Literal["paired"]
    case: Literal["transformer", "train", "vae-encode", "vae-decode", "text-encode", "generate"]
    """What is done: a forward pass, an optimizer step, one pass through VAE or T5, or prompt to pixels."""
    model: PairedModel
    video: PairedVideo
    batch_size: Positive = 1
    """Samples a call."""
    text_length: Positive = 64
    """Tokens of the text."""
    pairs: Annotated[int, Field(ge=6)] = 12
    """Measured calls of each side; six are the fewest with a 95 % interval of their ratio."""
    warmup: Positive = 2
    """Calls of each side before that; the first compiles."""
    train: PairedTraining = PairedTraining()
    lora: LoRA = LoRA()
    """With ``train.method: lora``."""
    optimizer: Optimizer = Optimizer()
    vae: VAE = VAE()
    sampling: PairedSampling = PairedSampling()
