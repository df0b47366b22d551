"""The kind train-vae."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from recipes.schema.common import Model, Pixels8, Positive, Rate, Recipe, Section
from recipes.schema.prepare import VideoTable
from recipes.schema.train import LrSchedule, Optimizer


class VAEVideo(Section):
    """What part of a clip is trained on."""

    height: Pixels8
    """Height in pixels after cropping and resizing: a multiple of 8."""
    width: Pixels8
    """Width in pixels."""
    frames: Positive
    """Frames: 8n+1, which the VAE decodes to as many; longer clips are cut at a random place."""


class VAETraining(Section):
    """What a training run of the autoencoder does."""

    steps: Positive
    """Optimizer steps."""
    batch_size: Positive = 1
    """Clips per step."""
    reconstruction: Literal["l1", "l2"] = "l1"
    """Mean absolute or mean squared difference of pixels in [-1, 1]."""
    kl_weight: Annotated[FiniteFloat, Field(ge=0)] = 1e-6
    """Weight of the mean KL divergence per latent value from a standard normal."""
    initial_logvar: Annotated[FiniteFloat, Field(ge=-30, le=20)] | None = None
    """Log variance that the encoder's last bias starts with: with -6 hardly any noise hides what is learnt first;
    null: as the weights have it (0, the prior's, for a preset)."""
    initial_branch: Annotated[FiniteFloat, Field(ge=0)] | None = None
    """For a preset: start nearly linear, with the last convolution of each residual block times this (0.1 is good) and
    the other convolutions keeping variance (docs/design/010); null: as the weights are."""
    max_grad_norm: Rate | None = 1.0
    """Gradients are scaled down to this global L2 norm; null: never."""
    log_every: Positive = 1
    """Steps between printed losses; the record has every step."""
    statistics_clips: Positive = 256
    """Training clips, evenly spaced, over which ``scaling_factor`` is measured at the end."""


class TrainVAERecipe(Recipe):
    """Trains the autoencoder of a tiny model on pixels and writes ``<out>/vae`` with a measured scaling factor."""

    kind: Literal["train-vae"]
    model: Model
    data: VideoTable
    validation: VideoTable | None = None
    """Clips that are not trained on, for the PSNR; null: it is measured on training clips and says so."""
    video: VAEVideo
    train: VAETraining
    optimizer: Optimizer = Optimizer()
    lr_schedule: LrSchedule = LrSchedule()
