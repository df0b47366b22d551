"""What every kind of recipe shares: field types, the sections ``runtime``, ``model``, ``output``, the base class."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, model_validator

from recipes.rules import broken_rules

Dtype = Literal["fp32", "bf16", "fp16"]
PresetName = Literal[
    "2b", "5b", "5b-i2v", "1.5-5b", "1.5-5b-i2v", "1.5-2b", "tiny-1.0-2b", "tiny-1.0-5b", "tiny-1.5", "tiny-world"
]


class PathMark:
    """Marks a field that holds a path, which in a pipeline may be a reference such as ``@stage/rest``."""


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _texts(value: Any) -> Any:
    return (value,) if isinstance(value, str) else _tuple(value)


def need(text: str) -> dict[str, Any]:
    """The words of an error message for a field whose type says too little ("need ...")."""
    return {"json_schema_extra": {"x-need": text}}


AsTuple = BeforeValidator(_tuple)
PathStr = Annotated[str, Field(min_length=1, **need("a path")), PathMark()]
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[
    tuple[Text, ...], BeforeValidator(_texts, json_schema_input_type=Text | list[Text]), Field(min_length=1)
]
Positive = Annotated[int, Field(ge=1)]
Pixels16 = Annotated[int, Field(ge=16, multiple_of=16)]
Pixels8 = Annotated[int, Field(ge=8, multiple_of=8)]
Rate = Annotated[FiniteFloat, Field(gt=0)]
Overlap = Annotated[int, Field(ge=0, multiple_of=8)]
Share = Annotated[FiniteFloat, Field(ge=0, lt=1)]
Upscale = Annotated[FiniteFloat, Field(ge=1)]
Memory = Annotated[str, Field(pattern=r"^[1-9][0-9]*(\.[0-9]+)?GB$", **need("text such as 59GB"))]


class Section(BaseModel):
    """Base of every section: immutable, no conversion between types, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True)


class Runtime(Section):
    """How the run is executed."""

    device: Literal["cpu", "ascend"] = "cpu"
    """Device that computes."""
    mode: Literal["pynative", "graph"] = "graph"
    """``graph`` compiles; ``pynative`` runs operation by operation."""
    jit_level: Literal["O0", "O1", "O2"] = "O0"
    """MindSpore's optimisation level in graph mode."""
    dtype: Dtype = "fp32"
    """Type that the model computes in; norms, softmax, loss and optimizer state stay fp32."""
    deterministic: bool = True
    """Ask the backend for the same bits every time."""
    max_device_memory: Memory | None = None
    """Device memory that MindSpore may take, such as ``59GB`` (its unit: 2**30 bytes); null: all of it."""
    workers: Positive = 1
    """Processes, one a card."""
    timeout_s: Rate | None = None
    """The run is ended after this many seconds; null: never."""
    repeats: Positive = 1
    """Process runs, each with its own record."""
    convolution_isa: Literal["auto", "default", "avx2"] = "auto"
    """Instruction set of oneDNN's convolutions on CPU; ``auto`` chooses what is known to work."""
    kernels: Literal["auto", "operators"] = "auto"
    """On CPU: ``auto`` compiles our kernels where a C++ compiler is found; ``operators`` does without (other bits)."""
    measure_peak: bool = False
    """After the work, measure the rate of matrix products on the model's shapes: the record then has MFU and HFU."""
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    """Least severe MindSpore message that is kept."""


class Model(Section):
    """Weights: a folder in a published layout, folders of single components, or a preset with random weights.

    ``path`` may be a diffusers folder (``transformer/ vae/ text_encoder/ tokenizer/ scheduler/``) or the original's
    ``models/CogVideoX-1.5-5b`` (``transformer/ vae/``, also capitalised), with T5 in another folder.
    """

    path: PathStr | None = None
    """Folder of the whole model."""
    transformer: PathStr | None = None
    """Folder of the transformer, instead of the one in ``path``."""
    vae: PathStr | None = None
    """Folder of the VAE."""
    text_encoder: PathStr | None = None
    """Folder of the T5 encoder."""
    tokenizer: PathStr | None = None
    """Folder of the tokenizer's files."""
    scheduler: PathStr | None = None
    """Folder of ``scheduler_config.json``."""
    preset: PresetName | None = None
    """Named sizes with random weights; excludes the folders."""
    lora: PathStr | None = None
    """LoRA for the transformer: a folder with ``pytorch_lora_weights.safetensors``, or such a file; null: none."""
    lora_scale: FiniteFloat = 1.0
    """Factor of the LoRA beside its alpha / rank; 0 switches it off."""
    init_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of a preset's random weights."""


class Output(Section):
    """Where results go."""

    folder: PathStr | None = None
    """Folder of the results; null: ``out`` in the run's folder."""


class Parallel(Section):
    """How one model is spread over ``runtime.workers`` processes."""

    sequence_parallel: Positive = 1
    """Processes that share one sample's tokens (Ulysses); the rest is data parallel."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """What ZeRO shards: 1 optimizer state, 2 and gradients, 3 and parameters."""
    zero_ranks: Positive | None = None
    """Neighbouring processes that ZeRO shards over, such as those of one machine; null: all. The others are copies."""


class Tiling(Section):
    """Tiles of the VAE, in pixels of the video. The published tiles are 240 x 360 with overlaps of 40 and 72."""

    tile_height: Pixels8
    """Height of a tile in pixels."""
    tile_width: Pixels8
    """Width of a tile in pixels."""
    overlap_height: Overlap
    """Rows in pixels that neighbours share and blend; at most half a tile."""
    overlap_width: Overlap
    """Columns in pixels that neighbours share and blend; at most half a tile."""
    tiles_at_once: Positive = 1
    """Tiles of equal shape that go through the VAE as one batch; 1 needs the least memory. Changes no number."""


class VideoBucket(Section):
    """One size of clips: pixels and frames, how many clips make a batch, how likely a clip stays in it."""

    frames: Positive
    """Frames: 4n+1."""
    height: Pixels16
    """Height in pixels: a multiple of 16 (VAE 8 x patch 2)."""
    width: Pixels16
    """Width in pixels."""
    batch_size: Positive = 1
    """Clips per process and forward pass; encode-video ignores it."""
    keep_probability: Annotated[FiniteFloat, Field(gt=0, le=1)] = 1.0
    """Chance that a clip stays in this bucket in an epoch, else it goes to one of fewer frames; only for training."""


Buckets = Annotated[tuple[VideoBucket, ...], AsTuple, Field(min_length=1)]


class VAE(Section):
    """How the VAE runs."""

    tiling: Tiling | None = None
    """Tiles; null: the whole frame at once."""
    dtype: Dtype | None = None
    """Type that the VAE computes in; null: ``runtime.dtype``."""
    parallel: Literal["auto", "tiles", "time"] = "auto"
    """What the processes that share a clip deal out: its tiles, or its chunks in time (same bits). auto: in generate
    tiles where there are some, else time; encode-video and decode-latents share no clip, rows are dealt."""


class Recipe(Section):
    """What every kind has."""

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    """Version of the recipe format."""
    kind: Any
    """What the recipe does; every kind narrows it to its own name."""
    name: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
            max_length=100,
            **need("letters, digits, '.', '_' and '-' (at most 100, it names the run's folder)"),
        ),
    ]
    """Label of the run; not part of the digest."""
    description: str | None = None
    """For readers; not part of the digest."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of everything random but the weights."""
    runtime: Runtime = Runtime()
    """How the run is executed."""
    output: Output = Output()
    """Where results go."""

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        if issues := broken_rules(self.kind, self.model_dump(by_alias=True)):
            raise ValueError("; ".join(str(issue) for issue in issues))
        return self
