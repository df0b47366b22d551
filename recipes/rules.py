"""Rules between fields, checked on the plain values so that one bad field does not hide the others.

A value that is missing or invalid is absent from ``data``; a rule that needs it says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from core.presets import PRESETS
from recipes.issues import Data, Issue, Rule, get, nearest, present
from recipes.render import scalar
from recipes.rules_train import OPTIMIZER_RULES, TRAIN_RULES, in_backward
from recipes.rules_world import held_out, shape_sizes, vae_frames

FOLDERS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")


def broken_rules(kind: str, data: Data) -> list[Issue]:
    """Every broken rule of a recipe of this kind."""
    return [issue for rule in _RULES.get(kind, ()) for issue in rule(data)]


def _needed_folders(data: Data, kind: str) -> tuple[str, ...]:
    if kind == "encode-text":
        return ("text_encoder", "tokenizer")
    if kind in ("encode-video", "decode-latents", "train-vae"):
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


def _generate_frames(data: Data) -> Iterator[Issue]:
    frames = get(data, "video.frames")
    if frames is None or frames % 8 == 1:
        return
    advice = " (16n+1 is recommended for models with patch_size_t 2: the 1.5 models)"
    yield Issue(
        "video.frames", f"got {frames}, need 8n+1 frames, which the VAE decodes exactly{advice}", nearest(frames, 8)
    )


def _encode_frames(data: Data) -> Iterator[Issue]:
    most, rule = get(data, "video.max_frames"), get(data, "video.frames_rule")
    if most is None or rule is None:
        return
    shortest = int(rule.removesuffix("n+1")) + 1
    if 1 < most < shortest:
        yield Issue("video.max_frames", f"got {most}, need 1 or at least {shortest} with frames_rule {rule}")


def bucket_rules(data: Data, last: str) -> Iterator[Issue]:
    """The size of ``video`` is either height, width and ``last`` (its key for frames), or buckets and max_crop."""
    single = ("height", "width", last)
    if not present(data, "video", *single, "buckets", "max_crop"):
        return
    video = data["video"]
    given = [key for key in single if video[key] is not None]
    forms = f"need {', '.join(single)} or buckets and max_crop"
    if video["buckets"] is None:
        for key in single:
            if video[key] is None:
                yield Issue(f"video.{key}", f"missing, {forms}")
        if video["max_crop"] is not None:
            yield Issue("video.max_crop", "got a bound without buckets: one size is cropped as far as it takes")
        return
    if given:
        yield Issue(f"video.{given[0]}", f"got {' and '.join(given)} together with buckets, {forms}")
    if video["max_crop"] is None:
        yield Issue("video.max_crop", "missing, need the largest share of a picture that may be cut off, such as 0.2")
    yield from _bucket_list(data)


def _bucket_list(data: Data) -> Iterator[Issue]:
    rule = get(data, "video.frames_rule") or "4n+1"
    step, seen = int(rule.removesuffix("n+1")), []
    for index, bucket in enumerate(data["video"]["buckets"]):
        size = (bucket["frames"], bucket["height"], bucket["width"])
        if bucket["frames"] % step != 1:
            key = f"video.buckets.{index}.frames"
            yield Issue(key, f"got {bucket['frames']}, need {rule} frames", nearest(bucket["frames"], step))
        if size in seen:
            message = f"got {'x'.join(map(str, size))} twice, need different sizes"
            yield Issue(f"video.buckets.{index}", message, f"remove it: bucket {seen.index(size)} is the same")
        seen.append(size)


def _train_size(data: Data) -> Iterator[Issue]:
    yield from bucket_rules(data, "frames")


def _encode_buckets(data: Data) -> Iterator[Issue]:
    yield from bucket_rules(data, "max_frames")
    if get(data, "video.buckets") and get(data, "video.transform") == "center":
        yield Issue("video.transform", "got center, need crop_resize with buckets: their crop is what is bounded")


def _tiling(data: Data) -> Iterator[Issue]:
    for side in ("height", "width"):
        tile, overlap = get(data, f"vae.tiling.tile_{side}"), get(data, f"vae.tiling.overlap_{side}")
        if tile and overlap and 2 * overlap > tile:
            why = "with more, three tiles would meet in a seam"
            yield Issue(f"vae.tiling.overlap_{side}", f"got {overlap}, need at most half of tile_{side} {tile}: {why}")


def _vae_parallel(kind: str) -> Rule:
    """``vae.parallel`` says how ranks share a clip, so there must be some that do, and something to share."""

    def rule(data: Data) -> Iterator[Issue]:
        chosen, workers = get(data, "vae.parallel"), get(data, "runtime.workers")
        if chosen in (None, "auto"):
            return
        if kind in ("train", "paired"):
            yield Issue("vae.parallel", f"got {chosen}, need auto: each process of kind {kind} encodes for itself")
        elif kind != "generate" and chosen == "tiles":
            yield Issue("vae.parallel", "got tiles, need time (all processes share each clip) or auto (rows are dealt)")
        elif chosen == "tiles" and present(data, "vae", "tiling") and get(data, "vae.tiling") is None:
            yield Issue("vae.parallel", "got tiles without vae.tiling, need vae.tiling, or time")
        elif kind == "generate" and (workers or 1) > 1 and get(data, "parallel.sequence_parallel") == 1:
            message = f"got {chosen} with parallel.sequence_parallel 1: {workers} processes share no video"
            yield Issue("vae.parallel", f"{message}, need a larger sequence_parallel, or auto")

    return rule


def _parallel(data: Data) -> Iterator[Issue]:
    shards, workers = get(data, "parallel.sequence_parallel"), get(data, "runtime.workers")
    parts = get(data, "parallel.zero_ranks")
    if parts is not None and workers is not None and workers % parts:
        yield Issue("parallel.zero_ranks", f"got {parts}, need a divisor of runtime.workers {workers}")
    if parts is not None and get(data, "parallel.zero_stage") == 0:
        message = f"got {parts} with zero_stage 0, which shards nothing, need zero_stage 1, 2 or 3"
        yield Issue("parallel.zero_ranks", message)
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


def _paired(data: Data) -> Iterator[Issue]:
    """diffusers recomputes whole blocks only, and both sides compute in fp32 on the CPU."""
    if get(data, "train.recompute") == "keep_attention":
        yield Issue("train.recompute", "got keep_attention, which diffusers does not have, need none or all")
    for key, only in (("runtime.device", "cpu"), ("runtime.dtype", "fp32")):
        if (got := get(data, key)) not in (None, only):
            yield Issue(key, f"got {scalar(got)}, need {only}: a pair runs on the CPU, where both compute in fp32")


_RULES: dict[str, tuple[Rule, ...]] = {
    "make-clips": (held_out, shape_sizes),
    "encode-text": (_model_for("encode-text"), _text_sources),
    "encode-video": (
        _model_for("encode-video"),
        _encode_frames,
        _encode_buckets,
        _tiling,
        _vae_parallel("encode-video"),
    ),
    "train": (_model_for("train"), _train_size, *TRAIN_RULES, _parallel, _vae_parallel("train")),
    "train-vae": (_model_for("train-vae"), vae_frames, *OPTIMIZER_RULES),
    "generate": (
        _model_for("generate"),
        _prompts,
        _generate_frames,
        _timesteps,
        _saved,
        _parallel,
        _tiling,
        _vae_parallel("generate"),
    ),
    "decode-latents": (_model_for("decode-latents"), _tiling, _vae_parallel("decode-latents")),
    "paired": (_generate_frames, _tiling, *OPTIMIZER_RULES, in_backward, _paired, _vae_parallel("paired")),
}
