"""Starts one child process, waits for it, and says how it ended. Knows nothing of recipes and records."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.memory import maxrss_bytes, oom_kill_count, own_peak, process_hwm_bytes

# How often a sleeping parent looks at its child; cheap enough not to disturb a measurement.
_POLL_SECONDS = 0.05
# Time a child gets after SIGTERM to remove its temporary files.
_GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Ended:
    """How a child ended: one of ``exit_code`` and ``signal`` is set; ``peak_bytes`` is its peak resident memory.

    ``oom_killer`` names the kernel counter that rose when the child was killed, ``interrupted`` that the parent was.
    """

    pid: int
    seconds: float
    exit_code: int | None
    signal: str | None
    peak_bytes: int | None
    timed_out: bool = False
    interrupted: bool = False
    oom_killer: str | None = None


def run_process(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    log: Path,
    timeout: float | None,
    forward: bool,
    pass_fds: Sequence[int] = (),
) -> Ended:
    """Runs ``command`` in its own session with both outputs in ``log``; returns when it and its group are gone.

    ``timeout`` in seconds kills it; a KeyboardInterrupt here kills it too and is reported as ``interrupted``.
    With ``forward`` the log is copied to stderr as it grows.
    """
    before = oom_kill_count()
    start = time.monotonic()
    timed_out = interrupted = False
    with log.open("wb") as sink, log.open("rb") as source:
        process = subprocess.Popen(
            list(command),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=pass_fds,
        )
        copy = (lambda: _forward(source)) if forward else (lambda: None)
        result = None
        try:
            deadline = None if timeout is None else start + timeout
            result = _wait(process.pid, deadline, copy)
            timed_out = result is None
        except KeyboardInterrupt:
            interrupted = True
        result = result or _stop(process.pid, copy)
        copy()
        _kill_group(process.pid)
        status, usage = result
        process.returncode = os.waitstatus_to_exitcode(status)  # Popen must not wait for a pid that is gone
    code = process.returncode
    return Ended(
        pid=process.pid,
        seconds=time.monotonic() - start,
        exit_code=code if code >= 0 else None,
        signal=signal.Signals(-code).name if code < 0 else None,
        peak_bytes=own_peak(maxrss_bytes(usage), process_hwm_bytes()),
        timed_out=timed_out,
        interrupted=interrupted,
        oom_killer=_risen(before, oom_kill_count()) if code == -signal.SIGKILL and not timed_out else None,
    )


def _wait(pid: int, deadline: float | None, copy) -> tuple | None:
    """(status, rusage) when the process ends, None at the deadline."""
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        copy()
        if done:
            return status, usage
        if deadline is not None and time.monotonic() >= deadline:
            return None
        time.sleep(_POLL_SECONDS)


def _stop(pid: int, copy) -> tuple:
    """Ends the whole group: SIGTERM, then SIGKILL after a grace time or at a second Ctrl-C."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGTERM)
    try:
        result = _wait(pid, time.monotonic() + _GRACE_SECONDS, copy)
    except KeyboardInterrupt:
        result = None
    if result is None:
        _kill_group(pid)
        result = os.wait4(pid, 0)[1:]
    return result


def _kill_group(pid: int) -> None:
    # The leader may be gone while a grandchild lives on.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _risen(before: dict[str, int], after: dict[str, int]) -> str | None:
    return next((file for file, count in after.items() if count > before.get(file, count)), None)


def _forward(source) -> None:
    if text := source.read():
        sys.stderr.write(text.decode("utf-8", errors="replace"))
        sys.stderr.flush()


def remove_partial_files(folders: Sequence[Path], pid: int) -> list[Path]:
    """Removes the temporary files (``core.files.atomic_path``) that process ``pid`` left below ``folders``."""
    found = [f for folder in folders if folder.is_dir() for f in folder.rglob(f".*.{pid}.*.part*")]
    for file in found:
        file.unlink(missing_ok=True)
    return found
