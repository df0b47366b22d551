"""The child process: ``python -m bench.child JOBDIR`` runs the task that JOBDIR/job.json describes.

Exit codes: 0 the task ended, 2 the user's mistake, 4 anything else. The parent writes the record from
events.jsonl and the way this process ended; nothing here has to survive for that.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TextIO

from bench import memory_cap
from bench import rank as ranks
from bench.cluster import rank_events
from bench.codes import FAILED, PASS, USAGE
from bench.context import RunContext
from bench.device import schedule_ranks
from bench.events import FILE_NAME, EventLog, inputs_failed
from bench.lifeline import PARENT, end_with_parent
from bench.load import LoadWatch
from bench.memory import OOM_TEXT, data_segment_bytes, data_segment_peak_bytes, device_peaks
from bench.phases import PhaseMeter
from bench.tasks import task_for
from core.errors import UserError, unwritable


def main(arguments: list[str]) -> int:
    """Runs the job in folder ``arguments[0]`` and returns the exit code."""
    folder = Path(arguments[0])
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    workers = job.get("workers", 1)
    end_with_parent(int(os.environ[PARENT]) if workers > 1 else job["parent_pid"], signal.SIGTERM)
    # SIGTERM as an exception lets `finally` blocks remove temporary files.
    signal.signal(signal.SIGTERM, _interrupt)
    if workers > 1 and ranks.is_scheduler():
        return _schedule(job)
    events = _events_of_rank(job, folder, workers) if workers > 1 else EventLog(folder / FILE_NAME)
    meter, load = PhaseMeter(events.write), LoadWatch()
    if job.get("memory_cap"):
        events.write("memory_cap", **memory_cap.confine(job["memory_cap"]))
    status, reason, code, rows = _attempt(job, events, meter, load)
    if rows and workers > 1:
        # msrun ends all ranks when one exits with another code, but the others have rows to work on.
        code = PASS
    device = meter.device_lifetime(_device_peaks())
    # MindSpore's pool returns nothing, so what the process has now is about the most that it had.
    events.write(
        "memory",
        hwm=meter.process_lifetime(),
        device=device,
        data_segment=data_segment_bytes(),
        data_segment_peak=data_segment_peak_bytes(),
    )
    if found := load.finish():
        events.write("load", **found)
    events.write("end", status=status, reason=reason, code=code, rows_failed=rows, at=time.time())
    return code


def _events_of_rank(job: dict, folder: Path, workers: int) -> EventLog:
    """Makes this process the rank that msrun started it as; its log of events."""
    number = ranks.rank_number()
    ranks.become(ranks.Rank(number, workers, ranks.identity_of(job["recipe_digest"]), here=job["here"]))
    events = EventLog(rank_events(folder, number))
    events.write("process", rank=number, pid=os.getpid(), host=socket.gethostname())
    return events


def _schedule(job: dict) -> int:
    """msrun's scheduler runs the same program as its workers; it has work where they communicate."""
    if getattr(sys.modules[task_for(job["kind"], job.get("task_module")).__module__], "COMMUNICATES", True):
        schedule_ranks()
    return PASS


def _attempt(job: dict, events: EventLog, meter: PhaseMeter, load: LoadWatch) -> tuple[str, str | None, int, int]:
    """Status, reason and exit code of the task, and how many inputs failed where nothing else did."""
    try:
        failures = _run_writing(job, events, meter, load)
    except UserError as error:
        # One line, whatever the error holds: logs and records are read line by line.
        text = " | ".join(line.strip() for line in str(error).splitlines() if line.strip())
        return _say("failed", text, USAGE)
    except KeyboardInterrupt:
        return _say("failed", "interrupted")
    except SystemExit as error:
        return _say("failed", f"the task called sys.exit({error.code!r})")
    except Exception as error:
        traceback.print_exc()
        text = f"{type(error).__name__}: {error}".strip().removesuffix(":")
        out_of_memory = isinstance(error, MemoryError) or OOM_TEXT.search(text)
        return "oom" if out_of_memory else "failed", text.splitlines()[0], FAILED, 0
    if failures:
        return "failed", inputs_failed(failures), FAILED, failures
    return "ok", None, PASS, 0


def _say(status: str, reason: str, code: int = FAILED) -> tuple[str, str, int, int]:
    print(f"error: {reason}", file=sys.stderr, flush=True)
    return status, reason, code, 0


def _run_writing(job: dict, events: EventLog, meter: PhaseMeter, load: LoadWatch) -> int:
    """``_run``; UserError where the results can't be written."""
    try:
        return _run(job, events, meter, load)
    except OSError as error:
        if (place := unwritable(error)) is not None:
            raise UserError(place) from error
        raise


def _run(job: dict, events: EventLog, meter: PhaseMeter, load: LoadWatch) -> int:
    """Loads the recipe, calls the task, returns how many inputs failed."""
    task = task_for(job["kind"], job.get("task_module"))
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    with _terminal(job) as terminal:
        more = {"rank": ranks.current(), "meter": meter, "load": load}
        ctx = RunContext(_recipe(job), out, job["seed"], events, terminal, **more)
        task(ctx.recipe, ctx)
        if getattr(getattr(ctx.recipe, "runtime", None), "measure_peak", False):
            ctx.roofline(_peak(ctx))
        return ctx.failures


def _peak(ctx: RunContext) -> dict:
    """The peak of matrix products, measured after the work so that it disturbs none of it."""
    if not ctx.products:
        return {"reason": "the task runs no matrix products that are counted"}
    from bench.roofline import measure  # noqa: PLC0415
    from core import ops  # noqa: PLC0415 - imports mindspore, as the task did

    device = {"cpu": "CPU", "ascend": "Ascend"}[ctx.recipe.runtime.device]
    with ctx.stage("measure_peak"):
        return measure(ctx.products, device, ops.compute_dtype(ctx.recipe.runtime.dtype)[0])


def _recipe(job: dict):
    if job.get("task_module"):
        return job["recipe"]
    from recipes.load import from_dict  # noqa: PLC0415 - test tasks take the plain dict

    return from_dict(job["recipe"])


def _terminal(job: dict) -> AbstractContextManager[TextIO | None]:
    """The user's terminal for progress bars: a descriptor that was inherited, or for rank 0 of several its path."""
    if ranks.current().of > 1:
        path = job.get("terminal_path") if ranks.current().index == 0 else None
        # Not as this session's own terminal: its signals are for the parent.
        return nullcontext() if path is None else os.fdopen(os.open(path, os.O_WRONLY | os.O_NOCTTY), "w", buffering=1)
    fd = job.get("terminal_fd")
    return nullcontext() if fd is None else os.fdopen(fd, "w", encoding="utf-8", buffering=1)


def _device_peaks() -> dict:
    try:
        return device_peaks()
    except Exception as error:
        # A device that failed can't be asked; the reason goes to the record instead of a number.
        return {"allocated": None, "reserved": None, "reason": f"reading the counters failed: {type(error).__name__}"}


def _interrupt(_signum: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # typed as TextIO, is a TextIOWrapper
    sys.exit(main(sys.argv[1:]))
