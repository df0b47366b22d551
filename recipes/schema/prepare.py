"""Kinds that prepare data and models: make-clips, make-model, encode-text, encode-video."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from recipes.schema.common import (
    VAE,
    AsTuple,
    Buckets,
    Model,
    PathStr,
    Pixels16,
    Positive,
    PresetName,
    Rate,
    Recipe,
    Section,
    Share,
    Text,
    Texts,
    Upscale,
)

Extent = Annotated[float, Field(gt=0, le=1)]
Color = Literal["red", "green", "blue", "yellow", "white", "orange", "purple", "cyan"]


class Clips(Section):
    """Captioned clips of one moving shape each."""

    count: Positive
    """Number of clips."""
    height: Annotated[int, Field(ge=16, multiple_of=2)]
    """Height in pixels (even: the codec halves the colour planes)."""
    width: Annotated[int, Field(ge=16, multiple_of=2)]
    """Width in pixels."""
    frames: Positive
    """Frames of each clip."""
    fps: Rate = 8.0
    """Frames per second."""
    shapes: Annotated[tuple[Literal["circle", "square", "triangle"], ...], AsTuple, Field(min_length=1)] = (
        "circle",
        "square",
        "triangle",
    )
    """Shapes to draw from."""
    colors: Annotated[tuple[Color, ...], AsTuple, Field(min_length=1)] = (
        "red",
        "green",
        "blue",
        "yellow",
        "white",
    )
    """Colours to draw from; orange, purple and cyan only if they are listed."""
    motions: Annotated[tuple[Literal["left", "right", "up", "down"], ...], AsTuple, Field(min_length=1)] = (
        "left",
        "right",
        "up",
        "down",
    )
    """Directions of the movement."""
    size: Annotated[tuple[Extent, Extent], AsTuple] = (0.25, 0.4)
    """Smallest and largest extent of the shape, in shorter sides of the picture."""
    caption_drop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Chance that a caption leaves the colour out, likewise the motion and the background; it always says the shape."""
    hold_out: Annotated[int, Field(ge=0)] = 0
    """Combinations of shape, colour and motion that the part ``train`` leaves out."""
    hold_out_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Which combinations these are. The lists above must be the same in the recipes of both parts."""
    part: Literal["train", "held_out", "all"] = "all"
    """Which combinations the clips show."""


class MakeClipsRecipe(Recipe):
    """Draws captioned clips: ``video_caption.csv`` and ``video_folder/part01/vid001.mp4``, ..."""

    kind: Literal["make-clips"]
    clips: Clips


class NewModel(Section):
    """Which model to make."""

    preset: PresetName
    """Named sizes."""
    init_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the random weights."""


class Components(Section):
    """Parts that exist already, such as a trained VAE: copied instead of drawn."""

    transformer: PathStr | None = None
    """Folder of a transformer (or of a model that holds one)."""
    vae: PathStr | None = None
    """Folder of a VAE."""
    text_encoder: PathStr | None = None
    """Folder of a T5 encoder."""
    tokenizer: PathStr | None = None
    """Folder of a tokenizer's files."""


class MakeModelRecipe(Recipe):
    """Writes a diffusers folder with random weights (and a small tokenizer for tiny presets) in ``runtime.dtype``."""

    kind: Literal["make-model"]
    model: NewModel
    components: Components = Components()


class CaptionTable(Section):
    """The captions of a data set."""

    csv: PathStr
    """CSV file with a header row."""
    video_column: Text = "video"
    """Column with the video's relative path."""
    caption_column: Text = "caption"
    """Column with the caption."""


class TextEncoding(Section):
    """How captions become embeddings."""

    max_length: Positive = 226
    """Tokens; shorter captions are padded. The published models use 226, the original's SFT 224."""
    batch_size: Positive = 1
    """Captions at a time."""
    empty_text: bool = True
    """Also write ``empty_text.npz``, which training with ``text_drop_prob`` > 0 needs."""


class EncodeTextRecipe(Recipe):
    """T5 cache: ``<out>/<video path>.npz`` with ``text_emb`` [length, width] fp32 and ``mask`` [length] uint8."""

    kind: Literal["encode-text"]
    model: Model
    data: CaptionTable | None = None
    """Captions from a CSV file."""
    prompts: Texts | None = None
    """One prompt or a list; written as ``NNN-prompt.npz``."""
    prompts_file: PathStr | None = None
    """Text file with a prompt a line."""
    text: TextEncoding = TextEncoding()
    overwrite: bool = False
    """Encode again what is there already."""


class VideoTable(Section):
    """The videos of a data set."""

    csv: PathStr
    """CSV file with a header row."""
    video_folder: PathStr
    """Folder that the paths in the CSV are relative to."""
    video_column: Text = "video"
    """Column with the video's relative path."""


class VideoEncoding(Section):
    """How a clip becomes frames."""

    height: Pixels16 | None = None
    """Height in pixels after the transform: a multiple of 16 (VAE 8 x patch 2)."""
    width: Pixels16 | None = None
    """Width in pixels after the transform."""
    max_frames: Positive | None = None
    """Longest sequence; a clip gives as many frames as ``frames_rule`` allows up to here."""
    buckets: Buckets | None = None
    """Sizes instead of height, width and max_frames: each clip is encoded at the one that crops it least."""
    max_crop: Share | None = None
    """With buckets: largest share of the picture's area that may be cut off; other clips are refused."""
    max_upscale: Upscale = 2.0
    """With buckets: largest factor by which a picture may be enlarged; other clips are refused."""
    frame_stride: Positive = 1
    """Every n-th frame is used."""
    fps: Rate | None = None
    """Resample to this rate; null: the clip's own."""
    transform: Literal["crop_resize", "center"] = "crop_resize"
    """Fit the frame: ``crop_resize`` crops to the aspect ratio, then resizes; ``center`` resizes, then crops."""
    backend: Literal["auto", "decord", "pyav"] = "auto"
    """Decoder of the files."""
    frames_rule: Literal["4n+1", "8n+1", "16n+1"] = "4n+1"
    """Legal numbers of frames: the VAE encodes 4n+1; 8n+1 also decodes to as many; 16n+1 is the 1.5 card's rule."""


class EncodeVideoRecipe(Recipe):
    """VAE cache: ``<out>/<video path>.npz`` of ``latent_mean``, ``latent_std`` [t, C, h, w], ``fps``, ``ori_size``."""

    kind: Literal["encode-video"]
    model: Model
    data: VideoTable
    video: VideoEncoding
    vae: VAE = VAE()
    overwrite: bool = False
    """Encode again what is there already."""
