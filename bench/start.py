"""Starts a job's process or ranks, and collects what they left behind."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import memory_cap, rank_merge
from bench.cluster import FOLDER, LAUNCHER_LOG, Cluster, msrun_command, rank_log
from bench.events import FILE_NAME, by_type, last, read_events
from bench.job import Job
from bench.lifeline import PARENT
from bench.memory import memory_of, memory_of_ranks
from bench.outcome import classify
from bench.phases import largest_process_peak, with_phases
from bench.process import Ended, run_process
from bench.rank_watch import RankWatch
from core.files import write_text

_TAIL_LINES, _TAIL_CHARS = 40, 6000


def _describe(job: Job, **more: Any) -> None:
    """Writes job.json for the child."""
    description = {
        "kind": job.kind,
        "recipe": job.data,
        "recipe_digest": job.digest,
        "out": str(job.out),
        "seed": job.seed,
        "parent_pid": os.getpid(),
        "memory_cap": job.memory_cap,
        "task_module": job.task_module,
    }
    write_text(job.run_dir / "job.json", json.dumps(description | more, indent=1) + "\n")


def _timeout(job: Job) -> float | None:
    return min((t for t in (job.runtime.get("timeout_s"), job.time_left) if t is not None), default=None)


def run_child(job: Job, env: dict[str, str], terminal: int | None) -> Ended:
    _describe(job, terminal_fd=terminal)
    (job.run_dir / FILE_NAME).unlink(missing_ok=True)
    return run_process(
        [sys.executable, "-m", "bench.child", str(job.run_dir.absolute())],
        env=env,
        log=job.run_dir / LAUNCHER_LOG,
        timeout=_timeout(job),
        forward=job.forward,
        pass_fds=() if terminal is None else (terminal,),
    )


def run_ranks(job: Job, cluster: Cluster, env: dict[str, str], terminal: int | None) -> tuple[Ended, RankWatch]:
    path = None if terminal is None else os.ttyname(terminal)
    _describe(job, workers=cluster.workers, here=len(cluster.local), terminal_path=path)
    (job.run_dir / FOLDER).mkdir(exist_ok=True)
    watch = RankWatch(job.run_dir, cluster.local)
    ended = run_process(
        msrun_command(cluster, job.run_dir),
        env=env | {PARENT: str(os.getpid())},
        log=job.run_dir / LAUNCHER_LOG,
        timeout=_timeout(job),
        forward=job.forward,
        shown=rank_log(job.run_dir, cluster.local[0]),
        watch=watch,
    )
    return ended, watch


@dataclass(frozen=True, kw_only=True)
class Left:
    """What the processes of a run left behind; ``dealt``: ranks worked on steps of their own."""

    events: list[dict]
    damaged: bool
    status: str
    reason: str | None
    tail: str
    memory: tuple[Any, dict[str, str]]
    pids: tuple[int, ...]
    ranks: tuple[Any, ...] = ()
    failing_rank: int | None = None
    dealt: bool = False
    notes: dict[str, Any] = field(default_factory=dict)


def _cap_of(capped: dict | None) -> dict[str, Any]:
    """The note of a run under a memory cap, whose control group ends here."""
    if capped is None:
        return {}
    memory_cap.clean(capped)
    return {"memory_cap": {key: capped[key] for key in ("bytes", "by")}}


def left_by_one(job: Job, ended: Ended) -> Left:
    events, damaged = read_events(job.run_dir / FILE_NAME)
    tail = log_tail(job.run_dir / LAUNCHER_LOG)
    capped = last(events, "memory_cap")
    status, reason = classify(ended, last(events, "end"), tail, capped=capped is not None)
    phases = by_type(events, "phase")
    peaks = [peak for peak in (ended.peak_bytes, largest_process_peak(phases)) if peak]
    memory, reasons = memory_of(max(peaks, default=None), last(events, "memory"))
    return Left(
        events=events,
        damaged=damaged,
        status=status,
        reason=reason,
        tail=tail,
        memory=(with_phases(memory, reasons, phases), reasons),
        pids=(ended.pid,),
        notes=_cap_of(capped),
    )


def left_by_ranks(job: Job, cluster: Cluster, ended: Ended, watch: RankWatch) -> Left:
    ranks = rank_merge.read_ranks(job.run_dir, cluster.local, watch.gone)
    guess = rank_merge.failing_rank(ranks)
    log = rank_log(job.run_dir, guess.rank) if guess else job.run_dir / LAUNCHER_LOG
    status, reason, blamed = rank_merge.classify_ranks(ended, ranks, log)
    rows, slow = rank_merge.rank_ends(ranks, blamed)
    facts = {"workers": cluster.workers, "nodes": cluster.nodes, "node_rank": cluster.node_rank, "slow_ranks": slow}
    events = rank_merge.merged_events(ranks)
    memory, reasons = memory_of_ranks({run.rank: last(run.events, "memory") for run in ranks})
    return Left(
        events=[*events, {"type": "note", "key": "cluster", "value": facts}],
        damaged=any(run.damaged for run in ranks),
        status=status,
        reason=reason,
        tail=log_tail(rank_merge.tail_of(job.run_dir, blamed)),
        memory=(with_phases(memory, reasons, by_type(events, "phase")), reasons),
        pids=tuple(run.started["pid"] for run in ranks if run.started),
        ranks=tuple(rows),
        failing_rank=blamed.rank if blamed else None,
        dealt=rank_merge.dealt(ranks),
    )


def log_tail(path: Path) -> str:
    """The last lines of a log, bounded in lines and characters."""
    text = path.read_bytes()[-4 * _TAIL_CHARS :].decode("utf-8", errors="replace") if path.exists() else ""
    return "\n".join(text.splitlines()[-_TAIL_LINES:])[-_TAIL_CHARS:]
