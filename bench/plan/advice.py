"""What to change first where a plan does not fit: variations of the recipe, planned like the recipe itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from bench.plan.cost import communication_bytes, time_of, training_work
from bench.plan.memory import peak, training_phases
from bench.plan.profiles import Profile
from bench.plan.workload import Training

PIECE = 4096  # tokens of the feed-forward that are suggested: a choice, a tenth of a sample of 768x1360x77


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """One change, the peak and seconds a sample after it, and what it costs in words."""

    change: str
    peak: int
    saved: int
    fits: bool
    seconds_per_sample: float | None
    slower_percent: float | None
    note: str


def seconds_per_sample(work: Training, profile: Profile, lora: tuple[int, tuple[str, ...]] | None) -> float | None:
    """Predicted seconds of a sample over all ranks, None where the profile has no speed."""
    rank, targets = lora or (None, ())
    done = training_work(work, lora_rank=rank, lora_targets=targets)
    sent = sum(communication_bytes(work).values())
    # Recomputation is work too: the efficiency of a profile is in model FLOPs of a step with full recomputation but
    # for attention, so a change of mode changes time in proportion to what is executed.
    published = replace(work, recompute="keep_attention", feed_forward_chunk=None, norm_first=False)
    usual = training_work(published, lora_rank=rank, lora_targets=targets)
    scale = done.hardware_flops / usual.hardware_flops
    seconds = time_of(round(done.model_flops * scale), sent, profile, work.ranks).seconds
    samples = work.batch * work.accumulation * work.ranks / work.sequence_parallel
    return None if seconds is None else seconds / samples


def suggestions(
    work: Training, profile: Profile, limit: int, lora: tuple[int, tuple[str, ...]] | None = None
) -> list[Suggestion]:
    """Changes that lower the peak: those that fit first, cheapest in time first; then the others by what they save."""
    now = peak(training_phases(work, reserve=profile.idle or 0)).total
    before = seconds_per_sample(work, profile, lora)
    found = []
    for change, note, other in _variations(work):
        total = peak(training_phases(other, reserve=profile.idle or 0)).total
        if total >= now:
            continue
        seconds = seconds_per_sample(other, profile, lora)
        slower = None if seconds is None or before is None else 100 * (seconds / before - 1)
        found.append(
            Suggestion(
                change=change, peak=total, saved=now - total, fits=total <= limit, seconds_per_sample=seconds,
                slower_percent=slower, note=note,
            )
        )  # fmt: skip
    return sorted(found, key=lambda s: (not s.fits, (s.slower_percent or 0.0) if s.fits else 0.0, s.peak))


def _in_backward(work: Training) -> Iterator[tuple[str, str, Training]]:
    if work.ranks == work.accumulation == 1 and work.lora is None and not work.in_backward:
        change = "train.optimizer_in_backward: true, train.max_grad_norm: null"
        yield change, "one block's gradients at a time; no clipping", replace(work, in_backward=True)
        clipped = replace(work, in_backward=True, norm_first=True)
        yield "train.optimizer_in_backward: true", "the same with clipping: gradients are computed twice", clipped


def _variations(work: Training) -> Iterator[tuple[str, str, Training]]:
    for mode, note in (("keep_attention", "all but attention is computed twice"), ("all", "blocks are computed twice")):
        if mode != work.recompute or work.recompute_every > 1:
            change = f"train.recompute: {mode}" + (", train.recompute_every: 1" if work.recompute_every > 1 else "")
            yield change, note, replace(work, recompute=mode, recompute_every=1)  # pyright: ignore[reportArgumentType]
    rows = work.batch * work.local_tokens
    if work.ours and rows > PIECE and not work.in_pieces:
        note = (
            "no feed-forward's hidden layer of all tokens; one of its products once more. Not for graph mode on the CPU"
        )
        yield f"train.feed_forward_chunk: {PIECE}", note, replace(work, feed_forward_chunk=PIECE)
    if work.ranks > 1:
        for stage in range(work.zero_stage + 1, 4):
            more = "parameters are gathered for each block" if stage == 3 else "no further communication"
            yield f"parallel.zero_stage: {stage}", more, replace(work, zero_stage=stage)
    if work.parts(from_stage=1) not in (1, work.ranks):
        yield (
            "parallel.zero_ranks: null",
            "no copies: a smaller part each, gathered over all cards",
            replace(work, zero_ranks=None),
        )
    shards = work.sequence_parallel * 2
    if work.ranks % shards == 0 and work.config.num_attention_heads % shards == 0:
        note = "half as many samples a step: add gradient_accumulation_steps to keep the batch"
        yield f"parallel.sequence_parallel: {shards}", note, replace(work, sequence_parallel=shards)
    if work.optimizer == "adamw":
        yield "optimizer.name: came", "another optimiser: its learning curve differs", replace(work, optimizer="came")
    yield from _in_backward(work)
    if work.ema:
        yield "ema: null", "no averaged weights", replace(work, ema=False)
    if work.batch > 1:
        other = replace(work, batch=1, accumulation=work.accumulation * work.batch, in_backward=False, norm_first=False)
        yield (
            f"train.batch_size: 1, train.gradient_accumulation_steps: {other.accumulation}",
            "the same step in smaller passes; the gradients' sum is held",
            other,
        )
    yield (
        f"runtime.workers: {2 * work.ranks}",
        "twice the cards",
        replace(work, ranks=2 * work.ranks, zero_stage=max(1, work.zero_stage), in_backward=False, norm_first=False),
    )
    if work.ranks > 1:
        shards = next((s for s in (8, 4, 2) if work.ranks % s == 0 and work.config.num_attention_heads % s == 0), 1)
        both = replace(work, zero_stage=3, sequence_parallel=max(shards, work.sequence_parallel), recompute="all")
        yield "parallel.zero_stage: 3, sequence_parallel: most, train.recompute: all", "everything at once", both
