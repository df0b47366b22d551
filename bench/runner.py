"""Runs one recipe of one kind in a child process and writes its record. Pipelines: ``bench.pipeline``."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import memory_cap, tensors
from bench import record as records
from bench.child_env import full_environment
from bench.codes import FAILED, PASS, UNSTEADY, USAGE
from bench.environment import code, code_root, collect
from bench.events import FILE_NAME, read_events
from bench.memory import CAPPED_TEXT, OOM_TEXT, memory_of
from bench.npu import DeviceWatch
from bench.phases import largest_process_peak, with_phases
from bench.process import Ended, remove_partial_files, run_process
from bench.record import Record
from bench.record_parts import Summary
from bench.timer import compile_seconds, first_not_finite, summarize
from bench.utilisation import metrics_of
from core.errors import UserError
from core.files import write_text

_TAIL_LINES, _TAIL_CHARS = 40, 6000


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process run: ``data`` is the effective recipe, ``run_dir`` a folder without a record.

    ``recorded``: the recipe as the record shows it when it differs from what runs (``@stage`` references unresolved).
    ``time_left``: seconds that remain to the pipeline it belongs to.
    ``memory_cap``: bytes that the process may take (``bench.memory_cap``). ``notes`` are added to the record's.
    ``task_module`` replaces the kind's task; only tests set it.
    """

    kind: str
    name: str
    data: dict[str, Any]
    digest: str
    run_dir: Path
    command: tuple[str, ...]
    id: str | None = None
    recorded: dict[str, Any] | None = None
    origins: dict[str, str] = field(default_factory=dict)
    repeat: int = 1
    of: int = 1
    forward: bool = False
    require_steady: bool = False
    time_left: float | None = None
    memory_cap: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    task_module: str | None = None

    @property
    def out(self) -> Path:
        """Absolute output folder: the recipe's ``output.folder`` or ``<run dir>/out``."""
        folder = (self.data.get("output") or {}).get("folder")
        return Path(folder).absolute() if folder else (self.run_dir / "out").absolute()


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
    env = full_environment(job.data, code_root())
    reasons: dict[str, str] = {}
    environment, more = collect(env)
    facts = {"environment": environment, "code": code(reasons), "started": utc_now()}
    watch = DeviceWatch(wanted=_runtime(job).get("device") == "ascend")
    with _terminal() as terminal, watch:
        ended = _run_child(job, env, terminal)
    if ended.signal or ended.interrupted or ended.timed_out:
        remove_partial_files([job.run_dir, job.out], ended.pid)
    facts["device_level"] = watch.result()
    record = _record_of(job, ended, facts, reasons | more)
    records.write(record, job.run_dir)
    if ended.interrupted:
        raise KeyboardInterrupt
    return record


def _run_child(job: Job, env: dict[str, str], terminal: int | None) -> Ended:
    description = {
        "kind": job.kind,
        "recipe": job.data,
        "recipe_digest": job.digest,
        "out": str(job.out),
        "seed": _seed(job),
        "parent_pid": os.getpid(),
        "terminal_fd": terminal,
        "memory_cap": job.memory_cap,
        "task_module": job.task_module,
    }
    write_text(job.run_dir / "job.json", json.dumps(description, indent=1) + "\n")
    (job.run_dir / FILE_NAME).unlink(missing_ok=True)
    return run_process(
        [sys.executable, "-m", "bench.child", str(job.run_dir.absolute())],
        env=env,
        log=job.run_dir / "log.txt",
        timeout=min((t for t in (_runtime(job).get("timeout_s"), job.time_left) if t is not None), default=None),
        forward=job.forward,
        pass_fds=() if terminal is None else (terminal,),
    )


def _record_of(job: Job, ended: Ended, facts: dict[str, Any], reasons: dict[str, str]) -> Record:
    events, damaged = read_events(job.run_dir / FILE_NAME)
    parts = gather(events, job.run_dir)
    if groups := tensors.groups_of(events):
        parts["digests"] |= {tensors.FILE_NAME: tensors.write(job.run_dir, groups)}
    cards = None if _runtime(job).get("device", "cpu") == "cpu" else int(_runtime(job).get("workers") or 1)
    roofline = last(events, "roofline")
    parts["metrics"] = metrics_of(parts["steps"], roofline, cards=cards) | parts["metrics"]
    if roofline is not None:
        parts["notes"]["roofline"] = {key: value for key, value in roofline.items() if key != "type"}
    summary, more = summarize(parts["steps"], cards=cards, no_cards_reason="ran on the CPU: there is no card")
    reasons |= more
    compiling, why = compile_seconds(parts["steps"], parts["stages"])
    if why:
        reasons["compile_seconds"] = why
    peaks = [peak for peak in (ended.peak_bytes, largest_process_peak(by_type(events, "phase"))) if peak]
    memory, more = memory_of(max(peaks, default=None), last(events, "memory"))
    reasons |= more
    memory = with_phases(memory, reasons, by_type(events, "phase"))
    tail = log_tail(job.run_dir / "log.txt")
    capped = last(events, "memory_cap")
    if capped is not None:
        parts["notes"]["memory_cap"] = {key: capped[key] for key in ("bytes", "by")}
        memory_cap.clean(capped)
    parts["notes"] |= job.notes
    status, reason = classify(ended, last(events, "end"), tail, capped=capped is not None)
    if status == "ok":
        status, reason = _validity(job, parts["steps"], summary, damaged, reasons.get("summary.steady"))
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
        exit_code=ended.exit_code,
        signal=ended.signal,
        repeat={"index": job.repeat, "of": job.of},
        seeds={"recipe": _seed(job)},
        compile_seconds=compiling,
        summary=summary,
        memory=memory,
        load=by_type(events, "load")[-1] if by_type(events, "load") else None,
        null_reasons=reasons,
        log_tail=None if status == "ok" else tail,
        **facts,
        **parts,
    )


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


def _seed(job: Job) -> int:
    return int(job.data.get("seed") or 0)


def _runtime(job: Job) -> dict[str, Any]:
    return job.data.get("runtime") or {}


def classify(ended: Ended, end: dict | None, tail: str, *, capped: bool = False) -> tuple[str, str | None]:
    """Status and reason from how the process ended, its own last event and the end of its log.

    ``capped``: it ran under a memory cap, where a thread that can't be started is a lack of memory as well.
    """
    how = f"killed by {ended.signal}" if ended.signal else f"exit code {ended.exit_code}"
    if ended.timed_out:
        return "timeout", f"stopped after {ended.seconds:.1f} s: longer than runtime.timeout_s allows"
    if ended.interrupted:
        return "failed", "interrupted by the user"
    if ended.oom_killer:
        return "oom", f"killed by the kernel for lack of memory ({ended.oom_killer})"
    if end is None:
        return _died(ended, how, tail, CAPPED_TEXT if capped else OOM_TEXT)
    if capped and end["status"] == "failed" and (found := CAPPED_TEXT.search(end["reason"] or "")):
        return "oom", f"{end['reason']} (the memory cap left no room: {found[0]!r})"
    clean = ended.signal is None and (ended.exit_code == 0) == (end["status"] == "ok")
    return (end["status"], end["reason"]) if clean else ("failed", f"the task ended, then the process died: {how}")


def _died(ended: Ended, how: str, tail: str, out_of_memory: re.Pattern[str]) -> tuple[str, str]:
    """Status and reason of a process that could not say how its task ended."""
    if found := out_of_memory.search(tail):
        return "oom", f"{how}; the log says {found[0]!r}"
    if ended.exit_code == 0:
        return "failed", "the process ended with exit code 0 in the middle of its task"
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    # The last lines of a crash are often a list of modules or frames.
    telling = [line for line in lines if "error" in line.lower()] or lines
    return "failed", f"{how} in the middle of the task; log: {telling[-1] if telling else 'empty'}"


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


def by_type(events: list[dict], kind: str) -> list[dict]:
    """The fields of the events of a type, in order."""
    return [{key: value for key, value in event.items() if key != "type"} for event in events if event["type"] == kind]


def last(events: list[dict], kind: str) -> dict | None:
    """The last event of a type, None when there is none."""
    return next((e for e in reversed(events) if e["type"] == kind), None)


def log_tail(path: Path) -> str:
    """The last lines of a log, bounded in lines and characters."""
    text = path.read_bytes()[-4 * _TAIL_CHARS :].decode("utf-8", errors="replace") if path.exists() else ""
    return "\n".join(text.splitlines()[-_TAIL_LINES:])[-_TAIL_CHARS:]


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
