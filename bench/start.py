"""Starts a job's process or ranks, and collects what they left behind."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import rank_merge
from bench.cluster import FOLDER, LAUNCHER_LOG, Cluster, msrun_command, rank_log
from bench.events import FILE_NAME, last, read_events
from bench.job import Job
from bench.lifeline import PARENT
from bench.memory import memory_of, memory_of_ranks
from bench.outcome import classify
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
    _describe(job, workers=cluster.workers, terminal_path=None if terminal is None else os.ttyname(terminal))
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


def left_by_one(job: Job, ended: Ended) -> Left:
    events, damaged = read_events(job.run_dir / FILE_NAME)
    tail = log_tail(job.run_dir / LAUNCHER_LOG)
    status, reason = classify(ended, last(events, "end"), tail)
    return Left(
        events=events,
        damaged=damaged,
        status=status,
        reason=reason,
        tail=tail,
        memory=memory_of(ended.peak_bytes, last(events, "memory")),
        pids=(ended.pid,),
    )


def left_by_ranks(job: Job, cluster: Cluster, ended: Ended, watch: RankWatch) -> Left:
    ranks = rank_merge.read_ranks(job.run_dir, cluster.local, watch.gone)
    guess = rank_merge.failing_rank(ranks)
    log = rank_log(job.run_dir, guess.rank) if guess else job.run_dir / LAUNCHER_LOG
    status, reason, blamed = rank_merge.classify_ranks(ended, ranks, log)
    rows, slow = rank_merge.rank_ends(ranks, blamed)
    facts = {"workers": cluster.workers, "nodes": cluster.nodes, "node_rank": cluster.node_rank, "slow_ranks": slow}
    return Left(
        events=[*rank_merge.merged_events(ranks), {"type": "note", "key": "cluster", "value": facts}],
        damaged=any(run.damaged for run in ranks),
        status=status,
        reason=reason,
        tail=log_tail(rank_merge.tail_of(job.run_dir, blamed)),
        memory=memory_of_ranks({run.rank: last(run.events, "memory") for run in ranks}),
        pids=tuple(run.started["pid"] for run in ranks if run.started),
        ranks=tuple(rows),
        failing_rank=blamed.rank if blamed else None,
        dealt=rank_merge.dealt(ranks),
    )


def log_tail(path: Path) -> str:
    """The last lines of a log, bounded in lines and characters."""
    text = path.read_bytes()[-4 * _TAIL_CHARS :].decode("utf-8", errors="replace") if path.exists() else ""
    return "\n".join(text.splitlines()[-_TAIL_LINES:])[-_TAIL_CHARS:]
