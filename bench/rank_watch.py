"""Follows the ranks of one machine while ``msrun`` runs them: which ended, when, and when to end the rest."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.cluster import rank_events

_LOOK_SECONDS = 0.25
# msrun ends the other ranks about a second after one failed, then waits for its scheduler, which gives up after half
# a minute. Nobody has to wait so long.
_AFTER_FAILURE_SECONDS = 4.0
_AFTER_SUCCESS_SECONDS = 10.0


class RankWatch:
    """A ``bench.process.Watch`` over the ranks ``local`` of the job in ``run_dir``.

    Attributes:
        gone: rank -> when (``time.time``) its process was first seen to have ended.
    """

    def __init__(self, run_dir: Path, local: Sequence[int]):
        self._local = local
        self._below: dict[int, Any] = {}
        self._processes: dict[int, Any] = {}
        self._events = {rank: _Tail(rank_events(run_dir, rank)) for rank in local}
        self._next = 0.0
        self.gone: dict[int, float] = {}

    def below(self) -> list[Any]:
        """Every process seen below msrun."""
        return list(self._below.values())

    def look(self, pid: int) -> bool:
        """True when a rank failed, or all ended well, and msrun had its time to see it."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + _LOOK_SECONDS
        for tail in self._events.values():
            tail.read()
        self._see_processes(pid)
        ends = {rank: self._events[rank].end for rank in self._local}
        failed = [rank for rank in self._local if _failed(ends[rank], rank in self.gone)]
        if failed:
            # A rank that failed is gone or has said when it ended.
            first = min(self.gone.get(rank) or (ends[rank] or {})["at"] for rank in failed)
            return time.time() - first > _AFTER_FAILURE_SECONDS
        if len(self.gone) == len(self._local):
            return time.time() - max(self.gone.values()) > _AFTER_SUCCESS_SECONDS
        return False

    def _see_processes(self, pid: int) -> None:
        import psutil  # noqa: PLC0415 - keeps start-up of the command short

        try:
            for process in psutil.Process(pid).children(recursive=True):
                self._below.setdefault(process.pid, process)
        except psutil.Error:
            pass
        for rank in self._local:
            if rank not in self._processes and (started := self._events[rank].process):
                self._processes[rank] = self._below.get(started["pid"])
            process = self._processes.get(rank)
            if process is not None and rank not in self.gone and not _alive(process):
                self.gone[rank] = time.time()


class _Tail:
    """The first and the last word of a rank, from what it has appended to its events since the last look."""

    def __init__(self, path: Path):
        self._path, self._offset, self._rest = path, 0, b""
        self.process: dict | None = None
        self.end: dict | None = None

    def read(self) -> None:
        """Takes in what is new; a long run's events are not read again and again."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        self._offset += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines:
            if b'"type": "process"' in line:
                self.process = json.loads(line)
            elif b'"type": "end"' in line:
                self.end = json.loads(line)


def _failed(end: dict | None, gone: bool) -> bool:
    return gone if end is None else end["status"] != "ok" and not end.get("rows_failed")


def _alive(process: Any) -> bool:
    import psutil  # noqa: PLC0415

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
