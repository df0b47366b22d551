"""What a gate looks at: the named readings of one run, and whether its record can be believed at all. Pure.

A run is a list of (label, record): one record with the label "", or a pipeline's own record followed by those of its
stages. The readings of a stage are called ``train: step``, so a table says where something moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from bench.record import Record
from bench.record_parts import PhaseMemory, Step
from bench.timer import first_not_finite, summarize

Family = Literal["status", "counts", "bits", "bytes", "rss", "time", "shown"]
FAMILIES: tuple[Family, ...] = ("status", "counts", "bits", "bytes", "rss", "time")
Parts = Sequence[tuple[str, Record]]

# Readings that are a count or an identity: equal or not, however noisy the machine is.
EXACT = frozenset({"status", "counts", "bits"})
# Names of the bytes of a class: as a run counted them, as its plan says.
COUNTED, PLANNED = "class held ", "class planned "
# Reserved memory grows by whole blocks of the pool: a change of it says little, no change says nothing.
_PEAKS: tuple[tuple[str, str, Family], ...] = (
    ("device_allocated_peak_bytes", "device allocated", "bytes"),
    ("device_reserved_peak_bytes", "device reserved", "shown"),
    ("process_peak_bytes", "process peak", "rss"),
)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One value of one run. ``value`` None: not there, for ``reason``. ``shown`` readings are never judged."""

    name: str
    family: Family
    unit: str
    value: Any
    reason: str | None = None


def readings_of(parts: Parts) -> dict[str, Reading]:
    """Every reading of a run by name, in the order of a report."""
    found: dict[str, Reading] = {}
    for label, record in parts:
        if record.kind == "pipeline":
            own = [_reading("status", "status", "", record.status), _reading("wall", "shown", "s", record.seconds)]
        else:
            own = [*_counts(record), *_planned(record), *_bits(record), *_memory(record), *_times(record)]
            own += _metrics(record)
        for reading in own:
            name = f"{label}: {reading.name}" if label else reading.name
            found[name] = replace(reading, name=name)
    return found


def _reading(name: str, family: Family, unit: str, value: Any, reason: str | None = None) -> Reading:
    return Reading(name=name, family=family, unit=unit, value=value, reason=reason if value is None else None)


def _counts(record: Record) -> Iterator[Reading]:
    yield _reading("status", "status", "", record.status)
    yield _reading("failed inputs", "counts", "", len(record.failures))
    yield _reading("steps", "counts", "", [_step(step) for step in record.steps])
    yield _reading("stages", "counts", "", [_stage(stage) for stage in record.stages])
    yield _reading("ranks", "counts", "", [rank.rank for rank in record.memory.per_rank])
    yield _reading("artifacts", "counts", "", sorted(f"{a.kind} {a.path}" for a in record.artifacts))
    for note, value in record.notes.items():
        # What a component or an optimiser says it holds: numbers of parameters, bytes by class.
        if isinstance(value, dict) and isinstance(value.get("parameters"), int) and not note.endswith("_bytes"):
            yield _reading(f"{note} parameters", "counts", "", value["parameters"])
        if note.endswith("_bytes"):
            classes = value if isinstance(value, dict) else {"": value}
            for name, size in classes.items():
                if isinstance(size, int) and not isinstance(size, bool):
                    yield _reading(f"class {note.removesuffix('_bytes')} {name}".strip(), "bytes", "B", size)


def _planned(record: Record) -> Iterator[Reading]:
    """What the plan in the record says of each class that the run counted: not judged, shown beside it."""
    plan, held = record.notes.get("plan"), record.notes.get("held_bytes")
    if not isinstance(plan, dict) or not plan.get("planned") or not isinstance(held, dict):
        return
    # The phase in which every gradient is there, as the run counts them.
    update = next((phase["bytes"] for phase in plan["phases"] if phase["name"] == "optimiser update"), {})
    for name in held:
        yield _reading(PLANNED + name, "shown", "B", update.get(name, 0))


def _step(step: Step) -> str:
    amounts = [f"{getattr(step, what)} {what}" for what in ("samples", "frames", "tokens") if getattr(step, what)]
    return " ".join([str(step.index), *(f"#{tag}" for tag in step.tags), *amounts])


def _stage(stage: Any) -> str:
    amounts = [f"{getattr(stage, what)} {what}" for what in ("items", "frames") if getattr(stage, what) is not None]
    return " ".join([stage.name, *amounts])


def _bits(record: Record) -> Iterator[Reading]:
    losses = [f"{step.index} {step.loss_hex}" for step in record.steps if step.loss_hex is not None]
    if losses:
        yield _reading("loss", "bits", "", losses)
    for name, digest in sorted(record.digests.items()):
        yield _reading(f"digest {name}", "bits", "", digest)
    files: dict[str, list[str]] = {}
    for artifact in record.artifacts:
        files.setdefault(artifact.kind, []).append(f"{artifact.path} {artifact.sha256}")
    for kind, listed in sorted(files.items()):
        yield _reading(f"{kind} files", "bits", "", sorted(listed))


def _memory(record: Record) -> Iterator[Reading]:
    memory, reasons = record.memory, record.null_reasons
    for field, name, family in _PEAKS:
        yield _reading(name, family, "B", getattr(memory, field), reasons.get(f"memory.{field}"))
    if len(memory.per_rank) > 1:
        for index, rank in enumerate(memory.per_rank):
            for field, name, family in _PEAKS:
                reason = reasons.get(f"memory.per_rank.{index}.{field}")
                yield _reading(f"{name}, rank {rank.rank}", family, "B", getattr(rank, field), reason)
    for index, phase in enumerate(memory.phases):
        yield from _phase(phase, index, reasons, ranks=len(memory.per_rank) > 1)
    if (level := record.device_level) is not None:
        # Sampled, so a peak can be missed: judged by its interval as resident memory is, never as exact.
        yield _reading("device level, idle subtracted", "rss", "B", level.net_peak_bytes, level.reason)


def _phase(phase: PhaseMemory, index: int, reasons: dict[str, str], *, ranks: bool) -> Iterator[Reading]:
    where = f"{phase.name}, rank {phase.rank}" if ranks else phase.name
    for field, name, family in _PEAKS:
        reason = reasons.get(f"memory.phases.{index}.{field}")
        yield _reading(f"{name}, phase {where}", family, "B", getattr(phase, field), reason)


def _times(record: Record) -> Iterator[Reading]:
    reasons = record.null_reasons
    yield _reading("wall", "shown", "s", record.seconds, reasons.get("seconds"))
    if record.steps:
        median = record.summary.step_seconds_median
        yield _reading("step", "time", "s", median, reasons.get("summary.step_seconds_median"))
        yield _reading("compile", "time", "s", record.compile_seconds, reasons.get("compile_seconds"))
    totals: dict[str, float] = {}
    for stage in record.stages:
        totals[stage.name] = totals.get(stage.name, 0.0) + stage.seconds
    for name, seconds in totals.items():
        yield _reading(f"stage {name}", "time", "s", seconds or None, "the clock read 0")


def _metrics(record: Record) -> Iterator[Reading]:
    for name, metric in sorted(record.metrics.items()):
        # A share of time is as noisy as the clock; other metrics are computed from the outputs.
        family: Family = "shown" if name.endswith(("_share", "_seconds", "_per_second")) else "bits"
        yield _reading(f"metric {name}", family, metric.unit, metric.value, metric.reason)


def problems_of(parts: Parts) -> list[str]:
    """What contradicts itself in the records of a run; empty for records that can be believed."""
    return [f"{label}: {text}" if label else text for label, record in parts for text in _problems(record)]


def _problems(record: Record) -> Iterator[str]:
    from recipes.digest import digest  # noqa: PLC0415 - keeps start-up of the command short

    if digest(record.recipe) != record.recipe_digest:
        yield f"recipe_digest {record.recipe_digest[:8]} is not the digest of the recipe ({digest(record.recipe)[:8]})"
    if record.status != "ok" or record.kind == "pipeline":
        return
    yield from _step_problems(record)
    yield from _rank_problems(record)


def _step_problems(record: Record) -> Iterator[str]:
    if text := first_not_finite(record.steps):
        yield text
    for step in record.steps:
        if step.loss is not None and (step.loss_hex is None or float.fromhex(step.loss_hex) != step.loss):
            yield f"step {step.index}: loss {step.loss} is not its own bits {step.loss_hex}"
    work = [step.index for step in record.steps if "eval" not in step.tags]
    if work != list(range(work[0], work[0] + len(work)) if work else []):
        gap = next(i for i, index in enumerate(work) if index != work[0] + i)
        yield f"steps are not one after the other: step {work[gap]} follows step {work[gap - 1]}"
    wanted = (record.recipe.get("train") or {}).get("steps") if record.kind == "train" else None
    if wanted and (not work or work[-1] != wanted - 1):
        yield f"the last step is {work[-1] if work else 'missing'}, need {wanted - 1}: the log was cut"
    again, _ = summarize(record.steps, cards=None, no_cards_reason="not needed")
    for field in ("steps_counted", "steps_excluded", "step_seconds_median", "drift", "steady"):
        if getattr(again, field) != getattr(record.summary, field):
            yield f"summary.{field} is {getattr(record.summary, field)}, the steps give {getattr(again, field)}"


def _rank_problems(record: Record) -> Iterator[str]:
    ranks = record.memory.per_rank
    if [rank.rank for rank in ranks] != list(range(len(ranks))):
        yield f"ranks are {[rank.rank for rank in ranks]}, need 0 to {len(ranks) - 1} in order"
    for field, name, _ in _PEAKS:
        values = [value for rank in ranks if (value := getattr(rank, field)) is not None]
        total = getattr(record.memory, field)
        if values and total != max(values):
            yield f"{name} is {total}, the largest of its ranks is {max(values)}"
