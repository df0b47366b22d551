"""The kind train."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from recipes.schema.common import (
    AsTuple,
    Model,
    Parallel,
    PathStr,
    Pixels16,
    Positive,
    Rate,
    Recipe,
    Section,
    Text,
    need,
)

Beta = Annotated[FiniteFloat, Field(ge=0, lt=1)]
Betas = Annotated[
    tuple[Beta, ...], AsTuple, Field(min_length=2, max_length=3, **need("a list of 2 or 3 numbers >= 0 and < 1"))
]
TwoEps = Annotated[tuple[Rate, Rate], AsTuple, Field(**need("a list of 2 numbers > 0"))]


class Caches(Section):
    """The encoded data set."""

    csv: PathStr
    """CSV file with a header row."""
    text_embed_folder: PathStr
    """Result of encode-text."""
    video_embed_folder: PathStr
    """Result of encode-video."""
    video_column: Text = "video"
    """Column with the video's relative path."""


class TrainVideo(Section):
    """What part of the cached latents is trained on."""

    height: Pixels16
    """Height in pixels: a multiple of 16 (VAE 8 x patch 2)."""
    width: Pixels16
    """Width in pixels."""
    frames: Positive
    """Frames: 4n+1, the first one alone in its latent frame and then four to a latent frame."""
    latent_frames: Positive | None = None
    """Latent frames: (frames - 1) / 4 + 1; null: computed. Spelled, it must agree."""


class TrainText(Section):
    """The cached text."""

    max_length: Positive | None = None
    """Tokens that every cached embedding must have; null: what the cache holds."""


class Training(Section):
    """What a training run does."""

    method: Literal["sft"] = "sft"
    """``sft`` trains every parameter."""
    steps: Positive
    """Optimizer steps."""
    batch_size: Positive = 1
    """Samples per process and forward pass."""
    gradient_accumulation_steps: Positive = 1
    """Forward passes per optimizer step."""
    text_drop_prob: Annotated[FiniteFloat, Field(ge=0, le=1)] = 0.1
    """Chance that a caption is replaced by the empty text."""
    max_grad_norm: Rate | None = 1.0
    """Gradients are scaled down to this global L2 norm; null: never."""
    recompute: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    odd_latents: Literal["pad_first", "pad_last", "refuse"] = "pad_first"
    """For models with patch_size_t 2 and an odd number of latent frames: repeat the first or last, or refuse."""
    save_every: Positive | None = None
    """Steps between checkpoints; null: only at the end."""
    log_every: Positive = 1
    """Steps between printed losses; the record has every step."""


class Optimizer(Section):
    """The optimizer; ``came`` needs three betas and two eps."""

    name: Literal["adamw", "came"] = "adamw"
    """Algorithm."""
    lr: Rate = 1e-4
    """Learning rate after the warm-up."""
    betas: Betas = (0.9, 0.95)
    """Decay rates of the running averages: two for adamw, three for came."""
    eps: TwoEps | Rate = 1e-8
    """Added to denominators: one number for adamw, two for came (squared gradient, confidence)."""
    weight_decay: Annotated[FiniteFloat, Field(ge=0)] = 1e-4
    """Decoupled weight decay."""


class LrSchedule(Section):
    """The learning rate over the steps: linear warm-up from 0, then ``name``."""

    name: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: stay, or fall to 0 at the last step along a line or a half cosine."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of the warm-up."""


class TrainRecipe(Recipe):
    """Fine-tuning on cached latents and text embeddings."""

    kind: Literal["train"]
    model: Model
    data: Caches
    video: TrainVideo
    text: TrainText = TrainText()
    train: Training
    optimizer: Optimizer = Optimizer()
    lr_schedule: LrSchedule = LrSchedule()
    parallel: Parallel = Parallel()
