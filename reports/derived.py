"""Columns that are computed from published figures and from records by one formula; tables mark them as derived.

Cost of one forward pass over a joint sequence of S tokens (text and video), L blocks of width D, a multiplication and
an addition as two operations: ``L (24 D^2 S + 4 D S^2)``. Training needs it three times (forward, and a gradient for
each factor of a product); with LoRA the frozen weights have no gradient, so their products count twice. A denoising
step with guidance is two passes. Embeddings, modulation, text encoder and VAE are left out (below 1 % of a pass at the
published sizes); recomputation is no model FLOP.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from core.presets import PRESETS
from reports.published import Figure

TEXT_TOKENS = 226
_TILE = 16  # pixels per token along height and width: VAE 8 x patch 2


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What the formula needs of a transformer; ``patch_t`` latent frames make a token's time step."""

    layers: int
    width: int
    patch_t: int


def _preset(name: str) -> Architecture:
    config = PRESETS[name].transformer
    return Architecture(layers=config.num_layers, width=config.inner_dim, patch_t=config.patch_size_t or 1)


# First match counts. The 10B to 30B are mindone's widened configs (its configs/cogvideox1.5_*B.yaml), no weights.
_MODELS: tuple[tuple[str, Architecture], ...] = (
    (r"cogvideox-?1\.5-10b", Architecture(layers=48, width=48 * 96, patch_t=2)),
    (r"cogvideox-?1\.5-20b", Architecture(layers=48, width=48 * 128, patch_t=2)),
    (r"cogvideox-?1\.5-30b", Architecture(layers=64, width=48 * 128, patch_t=2)),
    (r"cogvideox-?1\.5-(\{t2v, i2v\}-)?5b", _preset("1.5-5b")),
    (r"cogvideox-(\{t2v, i2v\}-|t2v-|i2v-)?5b", _preset("5b")),
    (r"cogvideox-(t2v-)?2b", _preset("2b")),
)


def architecture(model: str) -> Architecture | None:
    """Of a published model name that begins with a CogVideoX; None for others and for those that add parts to one."""
    if "+" in model:
        return None
    return next((found for pattern, found in _MODELS if re.match(pattern, model, re.IGNORECASE)), None)


def sequence(arch: Architecture, height: int, width: int, frames: int, text: int = TEXT_TOKENS) -> int:
    """Tokens of one sample: text and video, latent frames padded to whole tokens."""
    latent = (frames - 1) // 4 + 1
    return text + -(-latent // arch.patch_t) * (height // _TILE) * (width // _TILE)


def linear_flops(arch: Architecture, tokens: int) -> int:
    """``24 L D^2 S``: the products with weights of one forward pass."""
    return 24 * arch.layers * arch.width**2 * tokens


def attention_flops(arch: Architecture, tokens: int) -> int:
    """``4 L D S^2``: queries by keys, weights by values."""
    return 4 * arch.layers * arch.width * tokens**2


def forward_flops(arch: Architecture, tokens: int) -> int:
    """One forward pass of one sample (``bench.flops.published_forward``, where that module is there)."""
    return linear_flops(arch, tokens) + attention_flops(arch, tokens)


def training_flops(arch: Architecture, tokens: int, *, lora: bool) -> int:
    """Model FLOPs of one sample's training step."""
    linear, attention = linear_flops(arch, tokens), attention_flops(arch, tokens)
    return (2 if lora else 3) * linear + 3 * attention


@dataclass(frozen=True, kw_only=True)
class Derived:
    """A computed value, or why it can't be computed from what the source states."""

    value: float | None
    reason: str = ""


def no(reason: str) -> Derived:
    """No value."""
    return Derived(value=None, reason=reason)


def size_of(figure: Figure) -> tuple[int, int, int] | None:
    """Height, width and frames of a published row that states all three as numbers."""
    found = re.fullmatch(r"(\d+)x(\d+)", figure.cells["resolution"].strip())
    frames = figure.cells["frames"].strip()
    return (int(found[1]), int(found[2]), int(frames)) if found and frames.isdecimal() else None


def samples_per_step(figure: Figure) -> Derived:
    """Samples in one optimizer step: the data-parallel degree times the batch of each of its ranks."""
    batch = re.fullmatch(r"(\d+)( per DP rank)?", figure.cells["batch"].strip())
    if batch is None:
        return no("the source does not state one batch size")
    parallelism, cards = figure.cells["parallelism"], figure.number("devices")
    degree = re.search(r"\bDP(\d+)\b", parallelism)
    shared = re.search(r"\bD?SP(\d+)\b", parallelism)
    if degree:
        ranks = int(degree[1])
    elif cards == 1:
        ranks = 1
    elif shared and cards:
        ranks = int(cards) // int(shared[1])
    else:
        return no("the source does not state the data-parallel degree")
    return Derived(value=ranks * int(batch[1]))


def training_rate(figure: Figure) -> Derived:
    """Samples per second and card of a published training row."""
    cards = _plain(figure, "devices")
    if cards is None:
        return no("the source does not state the number of cards")
    seconds = _plain(figure, "step_time_s")
    stated = re.match(r"(\d+(?:\.\d+)?) (?:videos|samples)/s\b", figure.cells["throughput"])
    if seconds is not None:
        samples = samples_per_step(figure)
        return samples if samples.value is None else Derived(value=samples.value / seconds / cards)
    if stated:
        return Derived(value=float(stated[1]) / cards)
    return no("the source states neither step time nor samples per second")


def training_speed(figure: Figure) -> Derived:
    """Model FLOP/s per card of a published training row."""
    rate, cost = training_rate(figure), _cost(figure)
    if isinstance(cost, Derived):
        return cost
    if rate.value is None:
        return rate
    return Derived(value=rate.value * training_flops(*cost, lora=figure.cells["task"] == "lora"))


_VIDEO_TIMES = (
    (r"~?(\d+(?:\.\d+)?) s/video", 1), (r"~?(\d+(?:\.\d+)?) min/video", 60), (r".*\((\d+) s\)/video", 1)
)  # fmt: skip


def seconds_per_video(figure: Figure) -> Derived:
    """Seconds of one video as the source states them: ``500 s/video``, ``~5 min/video``, ``25'34'' (1534 s)/video``."""
    text = figure.cells["throughput"]
    if text.startswith("<"):
        return no("the source states a bound only")
    for pattern, factor in _VIDEO_TIMES:
        if found := re.match(pattern, text):
            return Derived(value=float(found[1]) * factor)
    return no("the source does not state seconds per video")


def card_seconds(figure: Figure) -> Derived:
    """Seconds of one video times the cards it took."""
    seconds, cards = seconds_per_video(figure), _plain(figure, "devices")
    if seconds.value is None:
        return seconds
    return (
        no("the source does not state the number of cards") if cards is None else Derived(value=seconds.value * cards)
    )


_SKIPS_WORK = re.compile(r"TeaCache \w|PromptTea|SVG|cache_algorithm|sparsify", re.IGNORECASE)


def inference_speed(figure: Figure) -> Derived:
    """Model FLOP/s per card of a published inference row: of a denoising step where its time is stated, else a video.

    A step is two passes (guidance) unless the row times a single forward pass.
    """
    cells, cost, cards = figure.cells, _cost(figure), _plain(figure, "devices")
    if isinstance(cost, Derived):
        return cost
    if cards is None:
        return no("the source does not state the number of cards")
    if _SKIPS_WORK.search(cells["memory_opts"]):
        return no("skips work, so the model's operations were not all done")
    if (step := _plain(figure, "step_time_s")) is not None:
        passes = 1 if "forward" in cells["note"].lower() else 2
        return Derived(value=passes * forward_flops(*cost) / step / cards)
    video, steps = seconds_per_video(figure), re.search(r"\((\d+) steps", cells["throughput"])
    if video.value is None or steps is None:
        return video if video.value is None else no("the source does not state the number of steps")
    return Derived(value=2 * int(steps[1]) * forward_flops(*cost) / video.value / cards)


def _cost(figure: Figure) -> tuple[Architecture, int] | Derived:
    arch, size = architecture(figure.cells["model"]), size_of(figure)
    if arch is None:
        return no("not a CogVideoX of published sizes")
    if size is None:
        return no("the source does not state height, width and frames")
    return arch, sequence(arch, *size)


def _plain(figure: Figure, column: str) -> float | None:
    """A number that is no bound and no range."""
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text := figure.cells[column].strip()) else None
