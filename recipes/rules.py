"""Rules between fields, checked on the plain values so that one bad field does not hide the others.

A value that is missing or invalid is absent from ``data``; a rule that needs it says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from core.presets import PRESETS
from recipes.render import scalar

FOLDERS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")


@dataclass(frozen=True)
class Issue:
    """A broken rule: the dotted key it is shown at, what was got and what is needed."""

    key: str
    message: str
    suggestion: str = ""

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" + (f"; {self.suggestion}" if self.suggestion else "")


Data = dict[str, Any]
Rule = Callable[[Data], Iterator[Issue]]


def get(data: Data, key: str) -> Any:
    """The value at a dotted key; None if any part of it is absent or null."""
    value: Any = data
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def present(data: Data, section: str, *keys: str) -> bool:
    """Whether the section and all these keys were read (a null counts as read)."""
    return isinstance(data.get(section), dict) and all(key in data[section] for key in keys)


def nearest(value: int, step: int, offset: int = 1) -> str:
    """The legal numbers ``step * n + offset`` around ``value``, as words."""
    low = max(0, (value - offset) // step) * step + offset
    return f"nearest: {low}" if low >= value else f"nearest: {low} or {low + step}"


def broken_rules(kind: str, data: Data) -> list[Issue]:
    """Every broken rule of a recipe of this kind."""
    return [issue for rule in _RULES.get(kind, ()) for issue in rule(data)]


def _needed_folders(data: Data, kind: str) -> tuple[str, ...]:
    if kind == "encode-text":
        return ("text_encoder", "tokenizer")
    if kind in ("encode-video", "decode-latents"):
        return ("vae",)
    if kind == "train":
        return ("transformer",)
    text = () if get(data, "inputs.prompt_embeds") else ("text_encoder", "tokenizer")
    return ("transformer", *(("vae",) if get(data, "save.decode") else ()), *text)


def _model_for(kind: str) -> Rule:
    def rule(data: Data) -> Iterator[Issue]:
        if not present(data, "model", "path", "preset", *FOLDERS):
            return
        model = data["model"]
        given = [key for key in ("path", *FOLDERS) if model[key] is not None]
        if model["preset"] is not None:
            if given:
                message = f"got {' and '.join(given)} together with preset, need folders or a preset"
                yield Issue(f"model.{given[0]}", message, "set one of them to null")
            return
        missing = [key for key in _needed_folders(data, kind) if model[key] is None]
        if model["path"] is None and missing:
            yield Issue("model", f"got no folder of {', '.join(missing)}, need path, these folders or a preset")

    return rule


def _patch_size_t(data: Data) -> int | None:
    preset = PRESETS.get(get(data, "model.preset") or "")
    return preset.transformer.patch_size_t if preset else None


def _generate_frames(data: Data) -> Iterator[Issue]:
    frames = get(data, "video.frames")
    if frames is None or frames % 8 == 1:
        return
    advice = " (16n+1 is recommended for models with patch_size_t 2: the 1.5 models)"
    yield Issue(
        "video.frames", f"got {frames}, need 8n+1 frames, which the VAE decodes exactly{advice}", nearest(frames, 8)
    )


def _train_frames(data: Data) -> Iterator[Issue]:
    frames = get(data, "video.frames")
    if frames is None:
        return
    if frames % 4 != 1:
        need = "4n+1 frames (1 + 4 for each further latent frame; with patch_size_t 2, 8n+5 gives an even number)"
        yield Issue("video.frames", f"got {frames}, need {need}", nearest(frames, 4))
        return
    latents = (frames - 1) // 4 + 1
    stated = get(data, "video.latent_frames")
    if stated not in (None, latents):
        fitting = f"write {latents}, null, or frames: {4 * stated - 3}"
        yield Issue("video.latent_frames", f"got {stated}, need (frames - 1) / 4 + 1 = {latents}", fitting)
    if _patch_size_t(data) == 2 and latents % 2 and get(data, "train.odd_latents") == "refuse":
        message = f"got {frames}: {latents} latent frames, need an even number (frames 8n+5), for patch_size_t is 2"
        remedy = f"{nearest(frames, 8, 5)}, or set train.odd_latents to pad_first or pad_last"
        yield Issue("video.frames", message, remedy)


def _encode_frames(data: Data) -> Iterator[Issue]:
    most, rule = get(data, "video.max_frames"), get(data, "video.frames_rule")
    if most is None or rule is None:
        return
    shortest = int(rule.removesuffix("n+1")) + 1
    if 1 < most < shortest:
        yield Issue("video.max_frames", f"got {most}, need 1 or at least {shortest} with frames_rule {rule}")


def _tiling(data: Data) -> Iterator[Issue]:
    for side in ("height", "width"):
        tile, overlap = get(data, f"vae.tiling.tile_{side}"), get(data, f"vae.tiling.overlap_{side}")
        if tile and overlap and 2 * overlap > tile:
            why = "with more, three tiles would meet in a seam"
            yield Issue(f"vae.tiling.overlap_{side}", f"got {overlap}, need at most half of tile_{side} {tile}: {why}")


def _optimizer(data: Data) -> Iterator[Issue]:
    name, betas, eps = (get(data, f"optimizer.{key}") for key in ("name", "betas", "eps"))
    if name is None:
        return
    count, example = (3, "[0.9, 0.95, 0.99]") if name == "came" else (2, "[0.9, 0.95]")
    if betas is not None and len(betas) != count:
        message = f"got {scalar(list(betas))}, need {count} numbers with {name}, such as {example}"
        yield Issue("optimizer.betas", message)
    pair = isinstance(eps, list | tuple)
    if eps is not None and pair != (name == "came"):
        shown = scalar(list(eps)) if isinstance(eps, list | tuple) else scalar(eps)
        need = "2 numbers with came, such as [1e-30, 1e-16]" if name == "came" else "1 number with adamw, such as 1e-8"
        yield Issue("optimizer.eps", f"got {shown}, need {need}")


def _parallel(data: Data) -> Iterator[Issue]:
    shards, workers = get(data, "parallel.sequence_parallel"), get(data, "runtime.workers")
    if shards is None:
        return
    if workers is not None and workers % shards:
        yield Issue("parallel.sequence_parallel", f"got {shards}, need a divisor of runtime.workers {workers}")
    preset = PRESETS.get(get(data, "model.preset") or "")
    heads = preset.transformer.num_attention_heads if preset else None
    if heads and heads % shards:
        message = f"got {shards}, need a divisor of the model's {heads} attention heads"
        yield Issue("parallel.sequence_parallel", message)


def _prompts(data: Data) -> Iterator[Issue]:
    given = [key for key in ("prompts", "prompts_file", "inputs.prompt_embeds") if get(data, key)]
    readable = "prompts" in data and "prompts_file" in data and present(data, "inputs", "prompt_embeds")
    if not given and readable:
        yield Issue("prompts", "got no prompt, need prompts, prompts_file or inputs.prompt_embeds")
    elif len(given) > 1:
        yield Issue(given[1], f"got {' and '.join(given)}, need one of them")


def _text_sources(data: Data) -> Iterator[Issue]:
    if all(key in data and not data[key] for key in ("data", "prompts", "prompts_file")):
        yield Issue("data", "got nothing to encode, need data, prompts or prompts_file")
    elif get(data, "prompts") and get(data, "prompts_file"):
        yield Issue("prompts_file", "got prompts and prompts_file, need one of them")


def _timesteps(data: Data) -> Iterator[Issue]:
    steps, times = get(data, "sampling.steps"), get(data, "sampling.timesteps")
    if not isinstance(times, list | tuple):
        return
    if any(later >= earlier for earlier, later in pairwise(times)):
        yield Issue("sampling.timesteps", f"got {scalar(list(times))}, need every timestep smaller than the one before")
    if steps is not None and steps != len(times):
        yield Issue("sampling.steps", f"got {steps}, need {len(times)}: sampling.timesteps lists so many")


def _saved(data: Data) -> Iterator[Issue]:
    if get(data, "save.decode") is False and get(data, "save.latents") is False:
        message = "got false and save.latents false: nothing would be kept"
        yield Issue("save.decode", message, "set save.latents to true")


_RULES: dict[str, tuple[Rule, ...]] = {
    "encode-text": (_model_for("encode-text"), _text_sources),
    "encode-video": (_model_for("encode-video"), _encode_frames, _tiling),
    "train": (_model_for("train"), _train_frames, _optimizer, _parallel),
    "generate": (_model_for("generate"), _prompts, _generate_frames, _timesteps, _saved, _parallel, _tiling),
    "decode-latents": (_model_for("decode-latents"), _tiling),
}
