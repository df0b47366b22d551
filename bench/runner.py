"""Runs one recipe of one kind in a child process and writes its record. Pipelines: ``bench.pipeline``."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import record as records
from bench import tensors
from bench.child_env import full_environment
from bench.cluster import cluster_of
from bench.codes import FAILED, PASS, UNSTEADY, USAGE
from bench.environment import code, code_root, collect
from bench.events import FILE_NAME, fields_of, last
from bench.job import Job
from bench.npu import DeviceWatch
from bench.plan.beside import planned
from bench.process import Ended, remove_partial_files
from bench.record import Record
from bench.record_parts import Summary
from bench.start import Left, left_by_one, left_by_ranks, run_child, run_ranks
from bench.timer import compile_seconds, first_not_finite, summarize
from bench.utilisation import metrics_of
from core.errors import UserError

_NO_CARD = "ran on the CPU: there is no card"


def refuse_simulation(variables: Mapping[str, str] = os.environ) -> None:
    """UserError when MindSpore would only simulate: losses would be 0.0 and the exit code 0."""
    level = variables.get("MS_SIMULATION_LEVEL")
    if level is not None:
        raise UserError(f"MS_SIMULATION_LEVEL={level} is set: results would be simulated, not run: unset it")


def new_run_dir(name: str, digest: str, repeat: int, base: Path = Path("runs")) -> Path:
    """Creates ``runs/<name>-<digest8>-<UTC stamp>-<repeat>``; a name that exists gets a further number."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    stem = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}-{digest[:8]}-{stamp}-{repeat}"
    for number in range(1000):
        folder = base / (stem if number == 0 else f"{stem}.{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise UserError(f"{base / stem}: exists a thousand times: choose --out")


def claim_run_dir(folder: Path) -> Path:
    """Creates ``folder`` (--out); UserError when it holds a record, since records are never replaced."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder}: is a file: give a folder")
    if (folder / records.FILE_NAME).exists():
        raise UserError(f"--out {folder}: holds a record already and records are never replaced: choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run_job(job: Job) -> Record:
    """Runs the job and returns its record, written to ``job.run_dir``; KeyboardInterrupt after writing it."""
    refuse_simulation()
    cluster = cluster_of(job.runtime, job.nodes)
    env = full_environment(job.data, code_root())
    reasons: dict[str, str] = {}
    environment, more = collect(env)
    facts = {"environment": environment, "code": code(reasons), "started": utc_now()}
    watch = DeviceWatch(wanted=job.runtime.get("device") == "ascend")
    with _terminal() as terminal, watch:
        if cluster is None:
            ended = run_child(job, env, terminal)
            left = left_by_one(job, ended)
        else:
            ended, ranks = run_ranks(job, cluster, env, terminal)
            left = left_by_ranks(job, cluster, ended, ranks)
    if ended.signal or ended.interrupted or ended.timed_out or ended.stopped or left.status != "ok":
        for pid in left.pids:
            remove_partial_files([job.run_dir, job.out], pid)
    facts["device_level"] = watch.result()
    record = _record_of(job, ended, left, facts, reasons | more)
    records.write(record, job.run_dir)
    if ended.interrupted:
        raise KeyboardInterrupt
    return record


def _record_of(job: Job, ended: Ended, left: Left, facts: dict[str, Any], reasons: dict[str, str]) -> Record:
    parts = gather(left.events, job.run_dir)
    if groups := tensors.groups_of(left.events):
        parts["digests"] |= {tensors.FILE_NAME: tensors.write(job.run_dir, groups)}
    cards = None if job.runtime.get("device", "cpu") == "cpu" else int(job.runtime.get("workers") or 1)
    roofline = last(left.events, "roofline")
    parts["metrics"] = metrics_of(parts["steps"], roofline, cards=cards) | parts["metrics"]
    if roofline is not None:
        parts["notes"]["roofline"] = {key: value for key, value in roofline.items() if key != "type"}
    parts["notes"] |= left.notes | job.notes
    if job.task_module is None:
        parts["notes"]["plan"] = planned(job.data)
    summary, more = summarize(parts["steps"], cards=cards, no_cards_reason=_NO_CARD, dealt=left.dealt)
    reasons |= more
    compiling, why = compile_seconds(parts["steps"], parts["stages"])
    if why:
        reasons["compile_seconds"] = why
    memory, more = left.memory
    reasons |= more
    exit_code, signal = _how_it_ended(ended, left)
    status, reason = left.status, left.reason
    if status == "ok":
        status, reason = _validity(job, parts["steps"], summary, left.damaged, reasons.get("summary.steady"))
    return records.make(
        id=job.id or job.run_dir.name,
        status=status,
        reason=reason,
        kind=job.kind,
        name=job.name,
        recipe=job.recorded or job.data,
        recipe_digest=job.digest,
        origins=job.origins,
        command=job.command,
        seconds=ended.seconds,
        exit_code=exit_code,
        signal=signal,
        repeat={"index": job.repeat, "of": job.of},
        seeds={"recipe": job.seed},
        compile_seconds=compiling,
        summary=summary,
        memory=memory,
        load=fields_of(last(left.events, "load")),
        null_reasons=reasons,
        ranks=left.ranks,
        failing_rank=left.failing_rank,
        log_tail=None if status == "ok" else left.tail,
        **facts,
        **parts,
    )


def _how_it_ended(ended: Ended, left: Left) -> tuple[int | None, str | None]:
    """Exit code and signal: those of the rank to blame, since msrun's own are the same whatever happened."""
    if left.failing_rank is None:
        if not left.ranks or ended.signal:
            return ended.exit_code, ended.signal
        return (PASS if left.status == "ok" else ended.exit_code or FAILED), None
    blamed = next(row for row in left.ranks if row.rank == left.failing_rank)
    return blamed.exit_code, blamed.signal


def _validity(job: Job, steps: list, summary: Summary, damaged: bool, unproven: str | None) -> tuple[str, str | None]:
    """Status and reason of a run whose process ended well: are its numbers usable?"""
    if damaged:
        return "failed", f"{FILE_NAME} is damaged: steps or results are missing"
    if problem := first_not_finite(steps):
        return "failed", problem
    if job.require_steady and not summary.steady:
        moved = f"step times moved by {100 * (summary.drift or 0):+.0f} % from the first to the last third"
        return "unsteady", unproven or moved
    return "ok", None


def gather(events: list[dict], run_dir: Path) -> dict[str, Any]:
    """The record's fields that come from events: stages, steps, metrics, failures, artifacts, digests, notes."""
    by: dict[str, list[dict]] = {}
    for event in events:
        by.setdefault(event["type"], []).append({k: v for k, v in event.items() if k != "type"})
    artifacts = [a | {"path": relative_to(Path(a["path"]), run_dir)} for a in by.get("artifact", [])]
    return {
        "stages": [records.Stage(**e) for e in by.get("stage", [])],
        "steps": [records.Step(**e) for e in by.get("step", [])],
        "metrics": {e.pop("name"): e for e in by.get("metric", [])},
        "failures": by.get("failure", []),
        "artifacts": artifacts,
        "digests": {e["name"]: e["value"] for e in by.get("digest", [])},
        "notes": {e["key"]: e["value"] for e in by.get("note", [])},
    }


def relative_to(path: Path, folder: Path) -> str:
    """``path`` relative to ``folder`` with forward slashes when it lies inside, else as it is."""
    root = folder.absolute()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def utc_now() -> str:
    """Now in UTC, ISO 8601 with milliseconds and Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def exit_code_of(record: Record) -> int:
    """The exit code of ``cogbench run`` for a record."""
    if record.status in ("ok", "skipped"):
        return PASS
    if record.status == "unsteady":
        return UNSTEADY
    return USAGE if record.exit_code == USAGE else FAILED


@contextmanager
def _terminal() -> Iterator[int | None]:
    """A duplicate of the terminal's descriptor for the child's progress bars, None when stderr is no terminal.

    A duplicate, because number 2 itself is the log in the child.
    """
    try:
        fd = os.dup(sys.stderr.fileno()) if sys.stderr.isatty() else None
    except (OSError, ValueError):
        fd = None
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)
