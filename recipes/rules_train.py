"""Rules between the fields of a train recipe (``recipes.rules`` has those that kinds share)."""

from __future__ import annotations

from collections.abc import Iterator

from core.presets import PRESETS
from recipes.issues import Data, Issue, Rule, get, nearest, present
from recipes.render import scalar

_FOUR_N = "4n+1 frames (1 + 4 for each further latent frame; with patch_size_t 2, 8n+5 gives an even number)"


def _patch_size_t(data: Data) -> int | None:
    preset = PRESETS.get(get(data, "model.preset") or "")
    return preset.transformer.patch_size_t if preset else None


def _frames(data: Data) -> Iterator[Issue]:
    frames = get(data, "video.frames")
    if frames is None:
        return
    if frames % 4 != 1:
        yield Issue("video.frames", f"got {frames}, need {_FOUR_N}", nearest(frames, 4))
        return
    latents = (frames - 1) // 4 + 1
    stated = get(data, "video.latent_frames")
    if stated not in (None, latents):
        fitting = f"write {latents}, null, or frames: {4 * stated - 3}"
        yield Issue("video.latent_frames", f"got {stated}, need (frames - 1) / 4 + 1 = {latents}", fitting)
    yield from _odd(data, "video.frames", frames)


def _odd(data: Data, key: str, frames: int) -> Iterator[Issue]:
    latents = (frames - 1) // 4 + 1
    if _patch_size_t(data) == 2 and latents % 2 and get(data, "train.odd_latents") == "refuse":
        message = f"got {frames}: {latents} latent frames, need an even number (frames 8n+5), for patch_size_t is 2"
        remedy = f"{nearest(frames, 8, 5)}, or set train.odd_latents to pad_first or pad_last"
        yield Issue(key, message, remedy)


def _bucket_frames(data: Data) -> Iterator[Issue]:
    buckets = get(data, "video.buckets")
    if not buckets:
        return
    for index, bucket in enumerate(buckets):
        if bucket["frames"] % 4 == 1:
            yield from _odd(data, f"video.buckets.{index}.frames", bucket["frames"])
    if get(data, "video.latent_frames") is not None:
        yield Issue("video.latent_frames", "got a number together with buckets, each of which has its own: write null")
    if get(data, "train.batch_size") not in (None, 1):
        size = get(data, "train.batch_size")
        yield Issue("train.batch_size", f"got {size} together with buckets: set batch_size in each bucket instead")


def _sources(data: Data) -> Iterator[Issue]:
    """The folders that ``data.encode`` needs are given, for the clips trained on and those validated on."""
    encode = get(data, "data.encode")
    if encode is None:
        return
    needed = ("video_folder",) if encode == "online" else ("text_embed_folder", "video_embed_folder")
    why = f"need a path with data.encode {encode}"
    other = "or data.encode: online with data.video_folder" if encode == "cache" else "or data.encode: cache"
    for section in ("data", "validation"):
        for key in needed:
            if present(data, section, key) and data[section][key] is None:
                yield Issue(f"{section}.{key}", f"missing, {why}", other)
    if get(data, "train.horizontal_flip") and encode == "cache":
        yield Issue(
            "train.horizontal_flip",
            "got true with data.encode cache, need false: cached latents were made of frames that were not flipped, "
            "and a flipped latent is not the latent of a flipped frame",
            "set data.encode: online and data.video_folder",
        )


def _online_model(data: Data) -> Iterator[Issue]:
    if get(data, "data.encode") != "online" or not present(data, "model", "path", "preset"):
        return
    model = data["model"]
    if model["preset"] is not None:
        yield Issue("model.preset", f"got {model['preset']} with data.encode online: a preset has no tokenizer")
        return
    missing = [key for key in ("vae", "text_encoder", "tokenizer") if key in model and model[key] is None]
    if model["path"] is None and missing:
        yield Issue("model", f"got no folder of {', '.join(missing)}, need path or these folders to encode online")


def _method(data: Data) -> Iterator[Issue]:
    method, lora = get(data, "train.method"), get(data, "lora")
    if method is None or "lora" not in data:
        return
    start = get(data, "model.lora")
    if method == "lora" and lora is None and start is None:
        yield Issue("lora", "missing, need {rank: 128, alpha: 64} or the like with train.method lora")
    if method == "sft" and lora is not None:
        yield Issue("lora", "got a section with train.method sft, which trains every parameter", "set method: lora")
    if method == "sft" and get(data, "train.merge_lora"):
        yield Issue("train.merge_lora", "got true with train.method sft: there is nothing to merge")


def _recompute(data: Data) -> Iterator[Issue]:
    every, mode = get(data, "train.recompute_every"), get(data, "train.recompute")
    if every not in (None, 1) and mode in ("none", False):
        yield Issue("train.recompute_every", f"got {every} with recompute none: no block is computed again")


def in_backward(data: Data) -> Iterator[Issue]:
    """What needs all gradients before the first update."""
    if not get(data, "train.optimizer_in_backward"):
        return
    needs = {
        "train.gradient_accumulation_steps": (1, "gradients are not summed over micro-batches"),
        "train.loss_scale.kind": ("none", "an overflow is seen too late to skip the step"),
        "train.method": ("sft", "a LoRA's gradients are small"),
        "runtime.workers": (1, "gradients are not summed over processes"),
    }
    for key, (need, why) in needs.items():
        got = get(data, key)
        if got not in (None, need):
            message = f"got {scalar(got)} with optimizer_in_backward, need {scalar(need)}: {why}"
            yield Issue(key, message, f"write {scalar(need)}, or leave out optimizer_in_backward")


def _checkpoints(data: Data) -> Iterator[Issue]:
    if (
        get(data, "train.keep_checkpoints")
        and present(data, "train", "save_every")
        and not get(data, "train.save_every")
    ):
        yield Issue("train.keep_checkpoints", "got a number without save_every: no checkpoint is written on the way")


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


def _schedule(data: Data) -> Iterator[Issue]:
    name, warmup, steps = (get(data, key) for key in ("lr_schedule.name", "lr_schedule.warmup_steps", "train.steps"))
    end, base = get(data, "lr_schedule.end"), get(data, "optimizer.lr")
    if end is not None and base is not None and end > base:
        yield Issue("lr_schedule.end", f"got {end:g}, need at most optimizer.lr {base:g}")
    if name not in (None, "constant") and warmup and steps and warmup >= steps:
        yield Issue("lr_schedule.warmup_steps", f"got {warmup}, need less than train.steps {steps} with {name}")


OPTIMIZER_RULES: tuple[Rule, ...] = (_optimizer, _schedule)
TRAIN_RULES: tuple[Rule, ...] = (
    _frames,
    _bucket_frames,
    _sources,
    _online_model,
    _method,
    _recompute,
    in_backward,
    _checkpoints,
    *OPTIMIZER_RULES,
)
