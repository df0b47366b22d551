"""FLOPs, bytes on the wire, and time of a planned step or stage. Pure functions, no MindSpore."""

from __future__ import annotations

from dataclasses import dataclass

from bench import flops, flops_vae
from bench.plan.profiles import Profile
from bench.plan.workload import Sizes, Training, elements
from core.vae.tiling import TilingConfig

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
        lora_rank=lora_rank,
        lora_targets=lora_targets,
    )
    shards = work.sequence_parallel
    return Work(model_flops=step.model // shards, hardware_flops=step.hardware // shards)


def communication_bytes(work: Training) -> dict[str, int]:
    """Bytes that one rank sends in one optimiser step, by purpose.

    A ring all-reduce of M bytes over n ranks sends 2 (n - 1) / n M, gather and reduce-scatter half of it; an
    all-to-all sends (n - 1) / n of what a rank holds. Ulysses exchanges q, k, v and the output (4 D) of every block
    forward, the same backward, and once more where the block is computed again.
    """
    ranks, item = work.ranks, work.trained_itemsize
    found: dict[str, int] = {}
    whole = elements(work.trained) * item
    share = (ranks - 1) / ranks
    if ranks > 1:
        if work.zero_stage <= 1:
            found["gradient all-reduce"] = round(2 * share * whole)
        else:
            found["gradient reduce-scatter"] = round(share * whole)
        if work.zero_stage in (1, 2):
            found["parameter all-gather"] = round(share * whole)
        if work.zero_stage >= 3:
            gathers = 2 if work.recompute == "none" else 3
            found["parameter all-gather"] = round(gathers * share * elements(work.table) * work.stored)
            found["parameter all-gather"] *= work.accumulation
    shards = work.sequence_parallel
    if shards > 1:
        one = 4 * work.batch * work.local_tokens * work.config.inner_dim * work.computed * (shards - 1) / shards
        passes = 2 if work.recompute == "none" else (3 if work.recompute == "all" else 2.75)
        found["sequence all-to-all"] = round(one * passes * work.config.num_layers * work.accumulation)
    return found


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
    return flops.total(
        flops_vae.vae_decode(sizes.vae, batch=1, latent_frames=latent_frames, height=height, width=width, tiling=tiling)
    )


def encode_flops(sizes: Sizes, *, frames: int, height: int, width: int, tiling: TilingConfig | None) -> int:
    """FLOPs of encoding one clip of pixels."""
    return flops.total(
        flops_vae.vae_encode(sizes.vae, batch=1, frames=frames, height=height, width=width, tiling=tiling)
    )
