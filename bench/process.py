"""Starts a child process, waits for it, and says how it ended. Knows nothing of recipes, ranks and records."""

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
from typing import Any, Protocol

from bench.memory import maxrss_bytes, oom_kill_count, own_peak, process_hwm_bytes

# How often a sleeping parent looks at its child; cheap enough not to disturb a measurement.
_POLL_SECONDS = 0.05
# Time a child gets after SIGTERM to remove its temporary files.
_GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Ended:
    """How a child ended: one of ``exit_code`` and ``signal`` is set; ``peak_bytes`` is its peak resident memory.

    ``oom_killer`` names the kernel counter that rose when the child was killed, ``interrupted`` that the parent was,
    ``stopped`` that the watch asked for the end, ``oom_kills`` the counter that rose meanwhile, whoever was killed.
    """

    pid: int
    seconds: float
    exit_code: int | None
    signal: str | None
    peak_bytes: int | None
    timed_out: bool = False
    interrupted: bool = False
    oom_killer: str | None = None
    stopped: bool = False
    oom_kills: str | None = None


class Watch(Protocol):
    """Follows a child that starts processes in sessions of their own, which a signal to its group does not reach."""

    def look(self, pid: int) -> bool:
        """Called a few times a second; True ends the child and all below it."""
        ...

    def below(self) -> list[Any]:
        """Every process seen below the child (``psutil.Process``), ended ones too."""
        ...


def run_process(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    log: Path,
    timeout: float | None,
    forward: bool,
    pass_fds: Sequence[int] = (),
    shown: Path | None = None,
    watch: Watch | None = None,
) -> Ended:
    """Runs ``command`` in its own session with both outputs in ``log``; returns when it and its group are gone.

    ``timeout`` in seconds kills it; a KeyboardInterrupt here kills it too and is reported as ``interrupted``.
    With ``forward`` the log, or the file ``shown``, is copied to stderr as it grows. With a ``watch`` the processes
    that it saw end too.
    """
    before = oom_kill_count()
    start = time.monotonic()
    timed_out = interrupted = stopped = False
    with log.open("wb") as sink, _Follower(shown or log) as source:
        process = subprocess.Popen(
            list(command),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=pass_fds,
        )
        copy = source.forward if forward else (lambda: None)
        result = None
        try:
            deadline = None if timeout is None else start + timeout
            result, stopped = _wait(process.pid, deadline, copy, watch)
            timed_out = result is None and not stopped
        except KeyboardInterrupt:
            interrupted = True
        result = result or _stop(process.pid, copy, watch)
        copy()
        _kill_group(process.pid)
        _kill_all(watch)
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
        stopped=stopped,
        oom_kills=_risen(before, oom_kill_count()),
    )


def _wait(pid: int, deadline: float | None, copy, watch: Watch | None = None) -> tuple[tuple | None, bool]:
    """(status, rusage) when the process ends, None at the deadline; and whether the watch wants it to end."""
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        copy()
        if done:
            return (status, usage), False
        if deadline is not None and time.monotonic() >= deadline:
            return None, False
        if watch is not None and watch.look(pid):
            return None, True
        time.sleep(_POLL_SECONDS)


def _stop(pid: int, copy, watch: Watch | None) -> tuple:
    """Ends the whole group and what the watch saw: SIGTERM, then SIGKILL after a grace time or at a second Ctrl-C."""
    if watch is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGTERM)
    else:
        # Not to the child: it would kill the processes below it before they have cleaned up.
        watch.look(pid)
        _signal_all(watch, signal.SIGTERM)
    try:
        result, _ = _wait(pid, time.monotonic() + _GRACE_SECONDS, copy)
    except KeyboardInterrupt:
        result = None
    if result is None:
        _kill_all(watch)
        _kill_group(pid)
        result = os.wait4(pid, 0)[1:]
    return result


def _kill_all(watch: Watch | None) -> None:
    if watch is not None:
        _signal_all(watch, signal.SIGKILL)


def _signal_all(watch: Watch, signum: int) -> None:
    import psutil  # noqa: PLC0415 - keeps start-up of the command short

    for process in watch.below():
        # psutil compares the time of birth: a number that another process has by now is left alone.
        with contextlib.suppress(psutil.Error):
            process.send_signal(signum)


def _kill_group(pid: int) -> None:
    # The leader may be gone while a grandchild lives on.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _risen(before: dict[str, int], after: dict[str, int]) -> str | None:
    return next((file for file, count in after.items() if count > before.get(file, count)), None)


class _Follower:
    """Copies a file to stderr as it grows; it need not be there yet."""

    def __init__(self, path: Path):
        self._path, self._file = path, None

    def __enter__(self) -> _Follower:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def forward(self) -> None:
        """Copies what is new."""
        if self._file is None:
            if not self._path.exists():
                return
            self._file = self._path.open("rb")
        if text := self._file.read():
            sys.stderr.write(text.decode("utf-8", errors="replace"))
            sys.stderr.flush()


def remove_partial_files(folders: Sequence[Path], pid: int) -> list[Path]:
    """Removes the temporary files (``core.files.atomic_path``) that process ``pid`` left below ``folders``."""
    found = [f for folder in folders if folder.is_dir() for f in folder.rglob(f".*.{pid}.*.part*")]
    for file in found:
        file.unlink(missing_ok=True)
    return found
