"""The parent's hold on one side of a pair: it starts it, asks it, and keeps it stopped while the other one works."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError


class SideError(UserError):
    """A side died, hung, or answered what it should not; one line."""


class SideProcess:
    """One side. Between ``ask`` calls its process is stopped, so no thread of it can spin on the other's cores.

    Args:
        side: ``ours`` or ``diffusers``.
        job: file for ``bench.paired_child``.
        log: receives what the process prints.
        patience: seconds that one answer may take.
    """

    def __init__(self, side: str, job: Path, env: Mapping[str, str], log: Path, patience: float):
        self.side, self.log, self.patience = side, log, patience
        command = [sys.executable, "-m", "bench.paired_child", side, str(job)]
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command, env=dict(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=log.parent
            )
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._stdout, selectors.EVENT_READ)

    @property
    def _stdout(self) -> Any:
        assert self._process.stdout is not None
        return self._process.stdout

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        """Lets the process run until it has answered.

        Raises:
            SideError: it ended, or needed more than ``patience``; it is gone then.
        """
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps({"do": do, **more}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._dead(do) from None
        if not self._selector.select(self.patience):
            self.close()
            raise SideError(f"{self.side}: no answer to {do!r} within {self.patience:g} s: raise runtime.timeout_s")
        line = self._stdout.readline()
        if not line:
            raise self._dead(do)
        self._stop()
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _stop(self) -> None:
        """Returns when every thread stands still: on a busy machine that takes until each was scheduled once more."""
        self._signal(signal.SIGSTOP)
        with contextlib.suppress(ChildProcessError):
            # WNOWAIT: if it died instead, its status is still there for Popen.
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    def _dead(self, do: str) -> SideError:
        status = self._process.wait()
        lines = [line.strip() for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines()]
        telling = [line for line in lines if line and "warn" not in line.lower()] or ["nothing"]
        return SideError(f"{self.side}: ended with status {status} at {do!r}: {telling[-1]} (log: {self.log})")
