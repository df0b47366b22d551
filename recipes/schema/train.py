"""The kind train."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, FiniteFloat

from recipes.schema.common import (
    VAE,
    AsTuple,
    Buckets,
    Model,
    Parallel,
    PathStr,
    Pixels16,
    Positive,
    Rate,
    Recipe,
    Section,
    Share,
    Text,
    Texts,
    Upscale,
    need,
)

Beta = Annotated[FiniteFloat, Field(ge=0, lt=1)]
Betas = Annotated[
    tuple[Beta, ...], AsTuple, Field(min_length=2, max_length=3, **need("a list of 2 or 3 numbers >= 0 and < 1"))
]
TwoEps = Annotated[tuple[Rate, Rate], AsTuple, Field(**need("a list of 2 numbers > 0"))]
RecomputeMode = Literal["none", "all", "keep_attention"]
TrainTimestep = Annotated[int, Field(ge=0, lt=1000)]


def _recompute(value: Any) -> Any:
    return {True: "all", False: "none"}[value] if isinstance(value, bool) else value


class TrainData(Section):
    """The data set, encoded before (caches) or while training (online)."""

    csv: PathStr
    """CSV file with a header row."""
    encode: Literal["cache", "online"] = "cache"
    """``cache``: text and latents from the two folders below; ``online``: videos and captions, encoded each time."""
    text_embed_folder: PathStr | None = None
    """Result of encode-text; needed with ``cache``, not read otherwise."""
    video_embed_folder: PathStr | None = None
    """Result of encode-video; needed with ``cache``, not read otherwise."""
    video_folder: PathStr | None = None
    """Folder that the paths in the CSV are relative to; needed with ``online``, not read otherwise."""
    video_column: Text = "video"
    """Column with the video's relative path."""
    caption_column: Text = "caption"
    """Column with the caption; read with ``online``, where the cache does not hold the text."""
    memory_mib: Annotated[int, Field(ge=0)] = 0
    """MiB of cache files that each process keeps in memory once they were read; for many small clips."""


class TrainVideo(Section):
    """What is trained on: one size, or buckets of several."""

    height: Pixels16 | None = None
    """Height in pixels: a multiple of 16 (VAE 8 x patch 2)."""
    width: Pixels16 | None = None
    """Width in pixels."""
    frames: Positive | None = None
    """Frames: 4n+1, the first one alone in its latent frame and then four to a latent frame."""
    latent_frames: Positive | None = None
    """Latent frames: (frames - 1) / 4 + 1; null: computed. Spelled, it must agree."""
    buckets: Buckets | None = None
    """Sizes instead of height, width and frames; a clip goes to the one that crops it least."""
    max_crop: Share | None = None
    """With buckets: largest share of the picture's area that may be cut off; other clips are left out."""
    max_upscale: Upscale = 2.0
    """With buckets: largest factor by which a picture may be enlarged; other clips are left out. Only with ``online``:
    caches have their size already."""


class Online(Section):
    """How clips become frames with ``data.encode: online``; the meaning of each key is encode-video's."""

    frame_stride: Positive = 1
    """Every n-th frame is used."""
    fps: Rate | None = None
    """Resample to this rate; null: the clip's own."""
    backend: Literal["auto", "decord", "pyav"] = "auto"
    """Decoder of the files."""
    random_start: bool = True
    """Cut the clip at a random frame, as the original does; false: at the first."""


class TrainText(Section):
    """The text."""

    max_length: Positive | None = None
    """Tokens that every cached embedding must have; null: what the cache holds, and 226 online (the published)."""


class LossScaling(Section):
    """Loss scaling, against gradients too small for fp16. A step whose gradients overflow is skipped and counted."""

    kind: Literal["none", "static", "dynamic"] = "none"
    """``none``: a gradient that is not finite ends the run. The original's is static 1: the same but for the skip."""
    value: Rate = 65536.0
    """The scale, or with ``dynamic`` the first one (2**16, as torch's GradScaler)."""
    factor: Annotated[FiniteFloat, Field(gt=1)] = 2.0
    """``dynamic``: divides the scale after an overflow, multiplies it after ``window`` good steps (the original's)."""
    window: Positive = 2000
    """``dynamic``: good steps in a row until the scale grows (the usual number)."""
    max_skips: Positive = 20
    """Skipped steps in a row that end the run: more than halving 2**16 down to 1 takes."""


class Training(Section):
    """What a training run does."""

    method: Literal["sft", "lora"] = "sft"
    """``sft`` trains every parameter, ``lora`` low-rank additions to some. Text encoder and VAE are never trained."""
    steps: Positive
    """Optimizer steps."""
    batch_size: Positive = 1
    """Samples per process and forward pass (the original's 1); buckets have their own."""
    gradient_accumulation_steps: Positive = 1
    """Forward passes per optimizer step."""
    loss: Literal["velocity", "x0_weighted"] = "velocity"
    """Squared error of the velocity (the original), or of x0 with weight 1 / (1 - alpha_bar) (diffusers, THUDM)."""
    timesteps: Literal["uniform", "uniform_per_rank"] = "uniform"
    """``uniform_per_rank``: each sample of a step draws in an interval of its own (CogVideoX paper, 3.3)."""
    text_drop_prob: Annotated[FiniteFloat, Field(ge=0, le=1)] = 0.1
    """Chance that a caption is replaced by the empty text (the original's)."""
    horizontal_flip: bool = False
    """Mirror every second clip by chance; only with ``data.encode: online``. Wrong where captions say left or right."""
    max_grad_norm: Rate | None = 1.0
    """Gradients are scaled down to this global L2 norm (the original's); null: never."""
    recompute: Annotated[RecomputeMode, BeforeValidator(_recompute, json_schema_input_type=RecomputeMode | bool)] = (
        "none"
    )
    """Blocks computed again in the backward pass; ``keep_attention`` keeps their attention. true: all, false: none."""
    recompute_every: Positive = 1
    """With recompute: only every n-th block."""
    feed_forward_chunk: Positive | None = None
    """Tokens of the batch that go through a block's feed-forward at a time, forward and backward; null: all. Its hidden
    layer, four times the model's width, is then never there for all tokens, and is computed once more."""
    optimizer_in_backward: bool = False
    """Each block is updated in the backward pass, as soon as its gradients are there, which are freed then. For one
    process, method sft, without accumulation or loss scale. With max_grad_norm gradients are computed twice, first for
    their norm: twice the time."""
    loss_scale: LossScaling = LossScaling()
    odd_latents: Literal["pad_first", "pad_last", "refuse"] = "pad_first"
    """For models with patch_size_t 2 and an odd number of latent frames: repeat the first or last, or refuse."""
    save_every: Positive | None = None
    """Steps between checkpoints, with one more after the last step; null: none, only the trained model."""
    keep_checkpoints: Positive | None = None
    """So many of the newest checkpoints are kept; null: all."""
    resume: PathStr | None = None
    """``latest``: go on from the newest checkpoint in the output folder, if any; or a checkpoint's folder."""
    merge_lora: bool = False
    """With method lora: also write the merged ``transformer`` folder."""
    log_every: Positive = 1
    """Steps between printed losses; the record has every step."""


class LoRA(Section):
    """Low-rank additions ``alpha / rank * B A`` to linear layers."""

    rank: Positive = 128
    """Rank (THUDM's trainer)."""
    alpha: Rate = 64.0
    """Scale numerator (THUDM's trainer)."""
    targets: Texts = ("to_q", "to_k", "to_v", "to_out.0")
    """Layers by the end of their name or by pattern (THUDM's trainer)."""


class EMA(Section):
    """A moving average of the parameters, saved beside them."""

    decay: Annotated[FiniteFloat, Field(gt=0, lt=1)] = 0.9999
    """Weight of the old average (the original's)."""
    warmup: bool = True
    """Smaller decay in the first steps, so that the average forgets the start."""


class Validation(Section):
    """Loss on other clips at fixed time steps with fixed noise, with the EMA's parameters where there is an EMA."""

    csv: PathStr
    """CSV file with a header row; columns as in ``data``."""
    text_embed_folder: PathStr | None = None
    """Result of encode-text, needed with ``data.encode: cache``."""
    video_embed_folder: PathStr | None = None
    """Result of encode-video, needed with ``data.encode: cache``."""
    video_folder: PathStr | None = None
    """Folder of the videos, needed with ``data.encode: online``."""
    every: Positive
    """Steps between validations; there is one more after the last step."""
    timesteps: Annotated[tuple[TrainTimestep, ...], AsTuple, Field(min_length=1)] = (100, 300, 500, 700, 900)
    """Time steps of the 1000 (ours: spread over the range)."""
    batch_size: Positive = 1
    """Samples per forward pass."""


class Optimizer(Section):
    """The optimizer; ``came`` needs three betas and two eps."""

    name: Literal["adamw", "came"] = "adamw"
    """Algorithm (the original: adamw in its config, came in its command)."""
    lr: Rate = 1e-4
    """Learning rate after the warm-up (the original's)."""
    betas: Betas = (0.9, 0.95)
    """Decay rates of the running averages: two for adamw (the original's), three for came."""
    eps: TwoEps | Rate = 1e-8
    """Added to denominators: one number for adamw, two for came (squared gradient, confidence)."""
    weight_decay: Annotated[FiniteFloat, Field(ge=0)] = 1e-4
    """Decoupled weight decay (the original's)."""
    decay: Literal["all", "matrices"] = "all"
    """What is decayed: every parameter (torch's default), or none of one dimension (biases, norms)."""


class LrSchedule(Section):
    """The learning rate over the steps: linear warm-up from 0, then ``name``."""

    name: Literal["constant", "linear", "cosine", "polynomial", "cosine_restarts"] = "constant"
    """After the warm-up: stay, or fall to ``end`` at the last step."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of the warm-up."""
    end: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    """Rate at the last step, for all but ``constant``."""
    power: Rate = 1.0
    """Exponent of ``polynomial``."""
    cycles: Positive = 1
    """Number of falls of ``cosine_restarts``."""


class TrainRecipe(Recipe):
    """Fine-tuning of the transformer on clips and captions."""

    kind: Literal["train"]
    model: Model
    data: TrainData
    video: TrainVideo
    online: Online = Online()
    text: TrainText = TrainText()
    vae: VAE = VAE()
    """How the VAE runs with ``data.encode: online``."""
    train: Training
    lora: LoRA | None = None
    """With ``train.method: lora``."""
    ema: EMA | None = None
    """null: no moving average."""
    validation: Validation | None = None
    """null: no validation."""
    optimizer: Optimizer = Optimizer()
    lr_schedule: LrSchedule = LrSchedule()
    parallel: Parallel = Parallel()
