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

from bench import rank as ranks
from bench.cluster import rank_events
from bench.codes import FAILED, PASS, USAGE
from bench.context import RunContext
from bench.events import FILE_NAME, EventLog, inputs_failed
from bench.lifeline import PARENT, end_with_parent
from bench.memory import OOM_TEXT, device_peaks, process_hwm_bytes
from bench.tasks import task_for
from core.errors import UserError


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
    if workers > 1:
        number = ranks.rank_number()
        ranks.become(ranks.Rank(number, workers, ranks.identity_of(job["recipe_digest"])))
        events = EventLog(rank_events(folder, number))
        events.write("process", rank=number, pid=os.getpid(), host=socket.gethostname())
    else:
        events = EventLog(folder / FILE_NAME)
    status, reason, code, rows = _attempt(job, events)
    if rows and workers > 1:
        # msrun ends all ranks when one exits with another code, but the others have rows to work on.
        code = PASS
    events.write("memory", hwm=process_hwm_bytes(), device=_device_peaks())
    events.write("end", status=status, reason=reason, code=code, rows_failed=rows, at=time.time())
    return code


def _schedule(job: dict) -> int:
    """msrun's scheduler runs the same program as its workers: it brings them together and returns when they end."""
    if not getattr(sys.modules[task_for(job["kind"], job.get("task_module")).__module__], "COMMUNICATES", True):
        return PASS
    import mindspore as ms  # noqa: PLC0415 - only the scheduler of ranks that communicate
    from mindspore.communication import init  # noqa: PLC0415

    ms.set_device("CPU")
    init()
    return PASS


def _attempt(job: dict, events: EventLog) -> tuple[str, str | None, int, int]:
    """Status, reason and exit code of the task, and how many inputs failed where nothing else did."""
    try:
        failures = _run(job, events)
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


def _run(job: dict, events: EventLog) -> int:
    """Loads the recipe, calls the task, returns how many inputs failed."""
    task = task_for(job["kind"], job.get("task_module"))
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    with _terminal(job) as terminal:
        ctx = RunContext(_recipe(job), out, job["seed"], events, terminal, rank=ranks.current())
        task(ctx.recipe, ctx)
        return ctx.failures


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
