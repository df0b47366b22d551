"""The plan of a recipe as plain data: phases, peak, work, time, whether it fits, what to change first."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bench.plan import advice, cost, encoders
from bench.plan.memory import Phase, peak, training_phases
from bench.plan.profiles import Profile
from bench.plan.workload import ITEMSIZE, Sizes, Training, buckets_of, training_of
from bench.tasks.models import tiling_of
from core.vae.tiling import TilingConfig

_UNPLANNED = {
    "make-clips": "draws frames one by one with NumPy",
    "make-model": "writes random weights tensor by tensor",
    "judge": "looks at finished videos with NumPy",
    "train-vae": "its graph keeps what the compiler keeps; only the tiny world is trained",
}


def plan_recipe(recipe: Any, sizes: Sizes | None, profile: Profile) -> dict[str, Any]:
    """The plan of one recipe that is no pipeline; ``sizes`` None only for kinds without a model."""
    kind = recipe.kind
    if kind in _UNPLANNED or sizes is None:
        return {"kind": kind, "planned": False, "reason": _UNPLANNED.get(kind, "it names no model")}
    made = {
        "train": _train,
        "generate": _generate,
        "encode-video": _encode_video,
        "decode-latents": _decode_latents,
        "encode-text": _encode_text,
    }[kind](recipe, sizes, profile)
    phases: list[Phase] = made.pop("phases")
    highest = peak(phases)
    limit = profile.memory
    return {
        "kind": kind,
        "planned": True,
        "sizes": sizes.source,
        "profile": profile.name,
        "phases": [{"name": p.name, "total": p.total, "bytes": p.bytes} for p in phases],
        "peak": {"phase": highest.name, "total": highest.total, "bytes": highest.bytes},
        "limit": limit,
        "fits": None if limit is None else highest.total <= limit,
        **made,
    }


def _itemsize(recipe: Any, section: Any = None) -> int:
    dtype = (section.dtype if section is not None else None) or recipe.runtime.dtype
    # The CPU has no half precision kernels (core.ops.compute_dtype).
    return ITEMSIZE[dtype] if recipe.runtime.device == "ascend" else 4


def _reserved(phase: Phase, profile: Profile) -> Phase:
    return Phase(name=phase.name, bytes=phase.bytes | ({"reserve": profile.idle} if profile.idle else {}))


def _train(recipe: Any, sizes: Sizes, profile: Profile) -> dict[str, Any]:
    lora = (recipe.lora.rank, recipe.lora.targets) if recipe.train.method == "lora" and recipe.lora else None
    resident = {}
    encoding: list[Phase] = []
    if recipe.data.encode == "online":
        encoding = _online(recipe, sizes)
        resident = {"text encoder": encoding[0].bytes["parameters"], "vae": encoding[1].bytes["parameters"]}
    works = {size: training_of(recipe, sizes, size=size) for size in buckets_of(recipe)}
    made = {s: training_phases(w, reserve=profile.idle or 0, resident=resident) for s, w in works.items()}
    largest = max(made, key=lambda s: peak(made[s]).total)
    work, phases = works[largest], made[largest]
    for phase in encoding:  # the states stay while a clip is encoded
        held = {k: v for k, v in phases[-1].bytes.items() if k in ("parameters", "masters", "optimizer", "ema")}
        extra = {k: v for k, v in phase.bytes.items() if k != "parameters"}
        both = held | resident
        both |= {k: both.get(k, 0) + v for k, v in extra.items()}
        phases.append(_reserved(Phase(name=phase.name, bytes=both), profile))
    return {
        "phases": phases,
        "size": dict(zip(("frames", "height", "width", "batch"), largest, strict=True)),
        "tokens": work.tokens,
        **_train_cost(recipe, work, profile, lora),
        "suggestions": [asdict(s) for s in advice.suggestions(work, profile, profile.memory or 0, lora)],
    }


def _online(recipe: Any, sizes: Sizes) -> list[Phase]:
    frames, height, width, _ = max(buckets_of(recipe), key=lambda s: s[0] * s[1] * s[2])
    tokens = recipe.text.max_length or sizes.transformer.max_text_seq_length
    text = encoders.text_phase(
        sizes.text, batch=1, tokens=tokens, itemsize=_itemsize(recipe), device=recipe.runtime.device
    )
    video = encoders.vae_phase(
        sizes.vae, "encoder", frames=frames, height=height, width=width, tiling=tiling_of(recipe.vae),
        itemsize=_itemsize(recipe, recipe.vae), streamed=False, device=recipe.runtime.device,
    )  # fmt: skip
    return [text, video]


def _train_cost(recipe: Any, work: Training, profile: Profile, lora: Any) -> dict[str, Any]:
    rank, targets = lora or (None, ())
    done = cost.training_work(work, lora_rank=rank, lora_targets=targets)
    sent = cost.communication_bytes(work)
    each = advice.seconds_per_sample(work, profile, lora)
    samples = work.batch * work.accumulation * work.ranks // work.sequence_parallel
    seconds = None if each is None else each * samples
    split = cost.time_of(done.model_flops, sum(sent.values()), profile, work.ranks)
    hours = None if seconds is None else seconds * recipe.train.steps * work.ranks / 3600
    return {
        "flops": {"model": done.model_flops, "hardware": done.hardware_flops},
        "communication": sent,
        "time": {
            "step_seconds": seconds,
            "samples_per_step": samples,
            "communication_seconds": split.communication,
            "efficiency": profile.efficiency,
            "efficiency_source": profile.sources["efficiency"],
            "reason": split.reason,
        },
        "cards": work.ranks,
        "card_hours": hours,
    }


def _generate(recipe: Any, sizes: Sizes, profile: Profile) -> dict[str, Any]:
    video, config = recipe.video, sizes.transformer
    ratio, patch_t = sizes.vae.spatial_compression_ratio, config.patch_size_t or 1
    latents = (video.frames - 1) // 4 + 1
    padded = -(-latents // patch_t) * patch_t
    height, width = video.height // ratio, video.width // ratio
    tokens = recipe.text.max_length + padded // patch_t * (height // config.patch_size) * (width // config.patch_size)
    guided = 2 if recipe.sampling.guidance_scale > 1 else 1
    tiling = tiling_of(recipe.vae)
    phases = []
    if recipe.inputs.prompt_embeds is None:
        phases.append(
            encoders.text_phase(
                sizes.text,
                batch=1,
                tokens=recipe.text.max_length,
                itemsize=_itemsize(recipe),
                device=recipe.runtime.device,
            )
        )
    shards = recipe.parallel.sequence_parallel
    denoising = {"batch": guided, "tokens": tokens, "itemsize": _itemsize(recipe), "shards": shards}
    phases.append(encoders.denoise_phase(config, **denoising, chunk=recipe.sampling.feed_forward_chunk))
    denoise = cost.generation_flops(
        sizes, frames=padded, height=height, width=width, tokens=recipe.text.max_length, batch=guided,
        steps=recipe.sampling.steps,
    )  # fmt: skip
    decode, sent = 0, {}
    if recipe.save.decode:
        grid = {"height": height, "width": width, "itemsize": _itemsize(recipe, recipe.vae)}
        sent = cost.vae_bytes(recipe, sizes.vae, "decoder", length=latents, **grid)
        phases.append(_vae(recipe, sizes, "decoder", video.frames, video.height, video.width))
        decode = cost.decode_flops(sizes, latent_frames=latents, height=height, width=width, tiling=tiling)
    return {
        "phases": [_reserved(p, profile) for p in phases],
        "tokens": tokens,
        "suggestions": [
            *_vae_suggestions(recipe, sizes, phases, profile),
            *_pieces(phases, encoders.denoise_phase(config, **denoising, chunk=advice.PIECE), profile),
        ],
        **_stage_cost({"denoise": denoise // shards, "decode": decode}, profile, recipe.runtime.workers, sent),
    }


def _resident(recipe: Any, side: str) -> str:
    """As ``bench.tasks.models.Models.vae`` loads it."""
    if recipe.model.preset:
        return "all"
    return "none" if recipe.runtime.device == "cpu" else side


def _vae(recipe: Any, sizes: Sizes, side: str, frames: int, height: int, width: int, tiling: Any = "recipe") -> Phase:
    return encoders.vae_phase(
        sizes.vae, side, frames=frames, height=height, width=width,
        tiling=tiling_of(recipe.vae) if tiling == "recipe" else tiling, itemsize=_itemsize(recipe, recipe.vae),
        device=recipe.runtime.device, resident=_resident(recipe, side),
    )  # fmt: skip


def _encode_video(recipe: Any, sizes: Sizes, profile: Profile) -> dict[str, Any]:
    video = recipe.video
    if video.buckets:
        each = [(b.frames, b.height, b.width) for b in video.buckets]
    else:
        each = [(video.max_frames or 81, video.height, video.width)]
    found = {size: _vae(recipe, sizes, "encoder", *size) for size in each}
    size = max(found, key=lambda s: found[s].total)
    frames, height, width = size
    work = cost.encode_flops(sizes, frames=frames, height=height, width=width, tiling=tiling_of(recipe.vae))
    ratio = sizes.vae.spatial_compression_ratio
    sent = cost.vae_bytes(
        recipe, sizes.vae, "encoder", length=frames, height=height // ratio, width=width // ratio,
        itemsize=_itemsize(recipe, recipe.vae),
    )  # fmt: skip
    return {
        "phases": [_reserved(found[size], profile)],
        "size": {"frames": frames, "height": height, "width": width},
        "suggestions": _vae_suggestions(recipe, sizes, [found[size]], profile, "encoder", size),
        **_stage_cost({"encode a clip": work}, profile, 1, sent),
    }


def _decode_latents(recipe: Any, sizes: Sizes, profile: Profile) -> dict[str, Any]:
    # The recipe does not say what the latents' size is: the model's own size stands in.
    height, width = 768, 1360
    phase = _vae(recipe, sizes, "decoder", 81, height, width)
    return {
        "phases": [_reserved(phase, profile)],
        "size": {"frames": 81, "height": height, "width": width, "why": "assumed: the recipe has no size"},
        "suggestions": _vae_suggestions(recipe, sizes, [phase], profile, "decoder", (81, height, width)),
        **_stage_cost({}, profile, 1),
    }


def _encode_text(recipe: Any, sizes: Sizes, profile: Profile) -> dict[str, Any]:
    section = recipe.text
    phase = encoders.text_phase(
        sizes.text, batch=section.batch_size, tokens=section.max_length, itemsize=_itemsize(recipe),
        device=recipe.runtime.device,
    )  # fmt: skip
    return {"phases": [_reserved(phase, profile)], "suggestions": [], **_stage_cost({}, profile, 1)}


def _stage_cost(
    work: dict[str, int], profile: Profile, ranks: int, sent: dict[str, int] | None = None
) -> dict[str, Any]:
    total = sum(work.values())
    time = cost.time_of(total, 0, profile, 1)
    return {
        "flops": {"model": total, "hardware": total, "by": work},
        "communication": sent or {},
        "time": {
            "seconds": time.seconds if total else None,
            "efficiency": profile.efficiency,
            "efficiency_source": profile.sources["efficiency"],
            "reason": time.reason if total else "the recipe does not say how much there is to do",
        },
        "cards": ranks,
        "card_hours": time.seconds * ranks / 3600 if total and time.seconds is not None else None,
    }


def _pieces(phases: list[Phase], in_pieces: Phase, profile: Profile) -> list[dict[str, Any]]:
    """Feed-forwards in pieces, where denoising is the peak and pieces lower it."""
    now = peak(phases)
    if now.name != in_pieces.name or in_pieces.total >= now.total:
        return []
    after = peak([in_pieces, *(phase for phase in phases if phase is not now)]).total
    total = after + (profile.idle or 0)
    return [
        {
            "change": f"sampling.feed_forward_chunk: {advice.PIECE}", "peak": total, "saved": now.total - after,
            "fits": total <= (profile.memory or 0), "seconds_per_sample": None, "slower_percent": 0.0,
            "note": "no feed-forward's hidden layer of all tokens",
        }
    ]  # fmt: skip


def _vae_suggestions(
    recipe: Any, sizes: Sizes, phases: list[Phase], profile: Profile, side: str = "decoder", size: Any = None
) -> list[dict[str, Any]]:
    """Tiles of the published size, where there are none or larger ones, if the VAE's stage is the peak."""
    now = peak(phases)
    if not now.name.startswith("vae"):
        return []
    frames, height, width = size or (recipe.video.frames, recipe.video.height, recipe.video.width)
    tiles = TilingConfig.reference(sizes.vae)
    after = _vae(recipe, sizes, side, frames, height, width, tiles)
    if after.total > 0.99 * now.total:
        return []
    work = (cost.decode_flops, cost.encode_flops)[side == "encoder"]
    ratio = sizes.vae.spatial_compression_ratio
    grid = {"height": height, "width": width, "frames": frames}
    if side == "decoder":
        grid = {"height": height // ratio, "width": width // ratio, "latent_frames": (frames - 1) // 4 + 1}
    slower = 100 * (work(sizes, tiling=tiles, **grid) / work(sizes, tiling=tiling_of(recipe.vae), **grid) - 1)
    overlaps = round(tiles.tile_height * tiles.overlap_height), round(tiles.tile_width * tiles.overlap_width)
    change = (
        f"vae.tiling: {{tile_height: {tiles.tile_height}, tile_width: {tiles.tile_width}, "
        f"overlap_height: {overlaps[0]}, overlap_width: {overlaps[1]}}}"
    )
    total = after.total + (profile.idle or 0)
    return [
        {
            "change": change, "peak": total, "saved": now.total - after.total,
            "fits": total <= (profile.memory or 0), "seconds_per_sample": None, "slower_percent": slower,
            "note": "overlaps are computed twice; group norms see a tile",
        }
    ]  # fmt: skip
