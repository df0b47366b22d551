"""Runs the stages of a pipeline in order, each in its own child process with its own record."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import record as records
from bench.child_env import full_environment
from bench.environment import code, code_root, collect
from bench.memory import no_memory
from bench.record import Record
from bench.record_parts import Memory, RankMemory
from bench.runner import Job, refuse_simulation, run_job, utc_now
from bench.timer import summarize

_SKIPPED = "it is marked only_if_used and nothing that runs refers to it"


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage: ``data`` is its effective recipe with ``@stage/rest`` references, ``digest`` the digest of that."""

    name: str
    kind: str
    data: dict[str, Any]
    digest: str
    skipped: bool = False


def run_pipeline(
    job: Job, stages: Sequence[StagePlan], announce: Callable[[str], None] = lambda text: None
) -> tuple[Record, list[Record]]:
    """Runs the stages below ``job.run_dir/stages`` and returns the pipeline's record and its stages' records.

    Stops at the first stage that isn't ok; the pipeline takes over its status. ``announce`` gets a line per stage.
    KeyboardInterrupt is raised again once both records are written.
    """
    refuse_simulation()
    facts = _facts(job)
    limit = (job.data.get("runtime") or {}).get("timeout_s")
    deadline = None if limit is None else time.monotonic() + limit
    done: list[tuple[StagePlan, Path, Record]] = []
    outputs: dict[str, Path] = {}
    interrupted = False
    for number, stage in enumerate(stages, 1):
        part = _stage_job(job, stage, job.run_dir / "stages" / f"{number:02d}-{stage.name}", outputs, deadline)
        announce(f"[{number}/{len(stages)}] {stage.name} ({stage.kind})" + (": skipped" if stage.skipped else ""))
        try:
            record = _skip(part, facts) if stage.skipped else run_job(part)
        except KeyboardInterrupt:
            interrupted, record = True, records.read(part.run_dir)
        done.append((stage, part.run_dir, record))
        outputs[stage.name] = part.out
        if record.status not in ("ok", "skipped"):
            break
    parent = _parent_record(job, facts, done)
    records.write(parent, job.run_dir)
    if interrupted:
        raise KeyboardInterrupt
    return parent, [record for _, _, record in done]


def _stage_job(job: Job, stage: StagePlan, folder: Path, outputs: dict[str, Path], deadline: float | None) -> Job:
    from recipes.references import resolve_references  # noqa: PLC0415 - keeps start-up of the parent short

    folder.mkdir(parents=True)
    start = f"stages.{stage.name}."
    return replace(
        job,
        kind=stage.kind,
        name=f"{job.name}/{stage.name}",
        data=stage.data if stage.skipped else resolve_references(stage.data, outputs),
        recorded=stage.data,
        digest=stage.digest,
        run_dir=folder,
        id=f"{job.id or job.run_dir.name}/{stage.name}",
        origins={key.removeprefix(start): origin for key, origin in job.origins.items() if key.startswith(start)},
        time_left=None if deadline is None else max(0.0, deadline - time.monotonic()),
    )


def _facts(job: Job) -> dict[str, Any]:
    """What every record made without a process of its own needs."""
    reasons: dict[str, str] = {}
    environment, more = collect(full_environment(job.data, code_root()))
    ran = code(reasons)
    return {"environment": environment, "code": ran, "started": utc_now(), "null_reasons": reasons | more}


def _skip(job: Job, facts: dict[str, Any]) -> Record:
    memory, reasons = no_memory("the stage was skipped")
    summary, more = summarize([], cards=None, no_cards_reason="")
    more = dict.fromkeys(more, "the stage was skipped")
    reasons |= more | {"seconds": "the stage was skipped", "compile_seconds": "the stage was skipped"}
    fields = facts | {"null_reasons": facts["null_reasons"] | reasons, "started": utc_now()}
    record = records.make(
        status="skipped", reason=_SKIPPED, seconds=None, summary=summary, memory=memory, **_identity(job), **fields
    )
    records.write(record, job.run_dir)
    return record


def _parent_record(job: Job, facts: dict[str, Any], done: list[tuple[StagePlan, Path, Record]]) -> Record:
    ran = [(stage, record) for stage, _, record in done if record.status != "skipped"]
    bad = next(((stage, record) for stage, record in ran if record.status != "ok"), None)
    memory, reasons = _largest([record for _, record in ran])
    summary, more = summarize([], cards=None, no_cards_reason="")
    reasons |= dict.fromkeys(more, "a pipeline has no steps of its own: see children")
    reasons["compile_seconds"] = "a pipeline compiles nothing itself: see children"
    children = [(folder / records.FILE_NAME).relative_to(job.run_dir).as_posix() for _, folder, _ in done]
    return records.make(
        status=bad[1].status if bad else "ok",
        reason=f"stage {bad[0].name}: {bad[1].reason}" if bad else None,
        seconds=sum(record.seconds or 0.0 for _, record in ran),
        exit_code=bad[1].exit_code if bad else 0,
        signal=bad[1].signal if bad else None,
        stages=[{"name": stage.name, "seconds": record.seconds} for stage, record in ran],
        summary=summary,
        memory=memory,
        children=children,
        failures=bad[1].failures if bad else (),
        log_tail=bad[1].log_tail if bad else None,
        **_identity(job),
        **facts | {"null_reasons": facts["null_reasons"] | reasons},
    )


def _identity(job: Job) -> dict[str, Any]:
    return {
        "id": job.id or job.run_dir.name,
        "kind": job.kind,
        "name": job.name,
        "recipe": job.recorded or job.data,
        "recipe_digest": job.digest,
        "origins": job.origins,
        "command": job.command,
        "repeat": {"index": job.repeat, "of": job.of},
        "seeds": {"recipe": int(job.data.get("seed") or 0)},
        "notes": job.notes,
    }


def _largest(ran: list[Record]) -> tuple[Memory, dict[str, str]]:
    """The largest value of each memory reading over the stages: they run one after another, so never a sum."""
    if not ran:
        return no_memory("no stage ran")
    fields = ("device_allocated_peak_bytes", "device_reserved_peak_bytes", "process_peak_bytes", "process_hwm_bytes")
    values: dict[str, Any] = {
        f: max((v for r in ran if (v := getattr(r.memory, f)) is not None), default=None) for f in fields
    }
    reasons = {
        f"memory.{f}": next(r.null_reasons[f"memory.{f}"] for r in ran) for f, value in values.items() if value is None
    }
    rank = RankMemory(rank=0, **{f: values[f] for f in fields[:3]})
    reasons |= {f"memory.per_rank.0.{f}": reasons[f"memory.{f}"] for f in fields[:3] if values[f] is None}
    values |= {"per_rank": (rank,), "max_rank": 0}
    return Memory(**values), reasons
