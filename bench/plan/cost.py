"""FLOPs, bytes on the wire, and time of a planned step or stage. Pure functions, no MindSpore."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench import flops, flops_vae
from bench.comm_cost import Sample, copies_bytes, ulysses_bytes, zero_bytes
from bench.plan.profiles import Profile
from bench.plan.workload import Sizes, Training
from bench.tasks.models import tiling_of
from core.configs import VAEConfig
from core.vae.ends import shared_bytes
from core.vae.tiling import TilingConfig, plan_tiles

BALANCE_NOTE = "compute and communication are added, not overlapped"


@dataclass(frozen=True, kw_only=True)
class Work:
    """FLOPs of one step of one rank: needed by the mathematics, and executed with recomputation."""

    model_flops: int
    hardware_flops: int


def training_work(work: Training, *, lora_rank: int | None = None, lora_targets: tuple[str, ...] = ()) -> Work:
    """FLOPs of one optimiser step; sequence parallel ranks share a sample's evenly."""
    size = flops.Size(
        batch=work.batch, frames=work.frames, height=work.height, width=work.width, text_tokens=work.text_tokens
    )
    step = flops.training_step(
        work.config,
        size,
        micro_batches=work.accumulation,
        recompute=work.recompute,
        recompute_every=work.recompute_every,
        in_pieces=work.in_pieces,
        norm_first=work.norm_first,
        lora_rank=lora_rank,
        lora_targets=lora_targets,
    )
    shards = work.sequence_parallel
    return Work(model_flops=step.model // shards, hardware_flops=step.hardware // shards)


def communication_bytes(work: Training) -> dict[str, int]:
    """Bytes that one rank sends in one optimiser step, by purpose: ``bench.comm_cost``'s formulas for this step.

    Ours reduces gradients in fp32, whatever their type; stage 3 gathers half-precision parameters as they are stored.
    """
    found: dict[str, int] = {}
    if work.ranks > 1:
        stored, parts = work.trained_itemsize, work.parts(from_stage=1) if work.zero_stage else work.ranks
        zero = zero_bytes(
            {name: tuple(spec.shape) for name, spec in work.trained.items()},
            parts, work.zero_stage, recompute=work.recompute, every=work.recompute_every, stored_size=stored,
            computed_size=stored if work.ours and stored < 4 else work.computed,
            gradient_size=4 if work.ours else stored, micro_batches=work.accumulation,
        )  # fmt: skip
        found["gradient reduce-scatter" if work.zero_stage else "gradient all-reduce"] = zero.gradients
        found["gradient all-reduce of copies"] = copies_bytes(
            work.held(work.trained, from_stage=1), work.ranks // parts
        )
        found["parameter all-gather"] = zero.parameters
    if work.sequence_parallel > 1:
        sample = Sample(text=work.text_tokens, video=work.video_tokens, batch=work.batch)
        sent = ulysses_bytes(
            work.config, sample, work.sequence_parallel, work.recompute, itemsize=work.computed,
            every=work.recompute_every,
        )  # fmt: skip
        found["sequence all-to-all"] = work.accumulation * (sent.forward + sent.backward)
        found["output all-gather"] = work.accumulation * sent.output
    return {name: value for name, value in found.items() if value}


def vae_bytes(
    recipe: Any, config: VAEConfig, side: str, *, length: int, height: int, width: int, itemsize: int
) -> dict[str, int]:
    """Bytes that a rank sends to share a clip of ``length`` (latent) frames, ``height x width`` latents, in time."""
    ranks, section = recipe.runtime.workers, recipe.vae
    tiling, shared = tiling_of(section), section.parallel == "time"
    if recipe.kind == "generate":
        ranks, shared = recipe.parallel.sequence_parallel, shared or (section.parallel == "auto" and tiling is None)
    plan = plan_tiles(height, width, tiling, config.spatial_compression_ratio)
    sent = shared_bytes(config, side, length, plan, ranks, itemsize) if shared else {}
    return {f"vae chunks {name}": value for name, value in sent.items() if value}


@dataclass(frozen=True, kw_only=True)
class Time:
    """Predicted seconds and what they are made of; ``reason`` says why there are none."""

    seconds: float | None
    compute: float | None = None
    communication: float | None = None
    reason: str | None = None


def time_of(model_flops: int, sent: int, profile: Profile, ranks: int) -> Time:
    """Seconds by roofline: model FLOPs over efficiency times peak, and bytes over the link's rate where ranks > 1."""
    if profile.flops_per_second is None or profile.efficiency is None:
        return Time(seconds=None, reason=f"profile {profile.name}: {profile.sources['flops_per_second']}")
    compute = model_flops / (profile.flops_per_second * profile.efficiency)
    if ranks == 1 or not sent:
        return Time(seconds=compute, compute=compute, communication=0.0)
    if profile.link_bytes_per_second is None:
        return Time(seconds=None, reason=f"profile {profile.name}: {profile.sources['link_bytes_per_second']}")
    wire = sent / profile.link_bytes_per_second
    return Time(seconds=compute + wire, compute=compute, communication=wire)


def generation_flops(sizes: Sizes, *, frames: int, height: int, width: int, tokens: int, batch: int, steps: int) -> int:
    """FLOPs of all denoising steps of one video; ``frames, height, width`` are latents, padded in time."""
    size = flops.Size(batch=batch, frames=frames, height=height, width=width, text_tokens=tokens)
    return steps * flops.total(flops.transformer(sizes.transformer, size))


def decode_flops(sizes: Sizes, *, latent_frames: int, height: int, width: int, tiling: TilingConfig | None) -> int:
    """FLOPs of decoding one video of latents ``latent_frames x height x width``."""
    ratio = sizes.vae.spatial_compression_ratio  # there the size is in pixels
    products = flops_vae.vae_decode(
        sizes.vae, batch=1, latent_frames=latent_frames, height=height * ratio, width=width * ratio, tiling=tiling
    )
    return flops.total(products)


def encode_flops(sizes: Sizes, *, frames: int, height: int, width: int, tiling: TilingConfig | None) -> int:
    """FLOPs of encoding one clip of pixels."""
    return flops.total(
        flops_vae.vae_encode(sizes.vae, batch=1, frames=frames, height=height, width=width, tiling=tiling)
    )
