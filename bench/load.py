"""How busy others kept the processors while the run was measured. Lives in the child; reads /proc, starts nothing."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

# Others may use this share of the run's cores (and at least this many) before its times are called disturbed.
_SHARE, _LEAST_CORES = 0.05, 0.25
# A window shorter than this holds too few of the kernel's 10 ms ticks.
_SHORTEST_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Processor seconds since the machine started: of all processes, taken by the hypervisor, and our session's."""

    clock: float
    busy: float
    steal: float
    own: float


class LoadWatch:
    """A window from the last ``begin`` to ``finish``; only these two points cost anything (a walk through /proc)."""

    def __init__(self) -> None:
        self._start: Reading | None = None

    @property
    def begun(self) -> bool:
        """Whether a window is open."""
        return self._start is not None

    def begin(self) -> None:
        """Opens the window here; a window that is open is forgotten."""
        self._start = read()

    def finish(self) -> dict[str, float | int | bool] | None:
        """Fields of ``record_parts.Load``; None without a window of useful length or without /proc."""
        end = read()
        if self._start is None or end is None or end.clock - self._start.clock < _SHORTEST_SECONDS:
            return None
        return window(self._start, end, logical=os.cpu_count() or 1, usable=len(os.sched_getaffinity(0)))


def window(start: Reading, end: Reading, *, logical: int, usable: int) -> dict[str, float | int | bool]:
    """Cores used between two readings. Pure.

    ``disturbed`` when others used more than the ``logical - usable`` cores that are not ours, plus a small share.
    """
    seconds = end.clock - start.clock
    own = (end.own - start.own) / seconds
    foreign = max(0.0, (end.busy - start.busy) / seconds - own)
    steal = (end.steal - start.steal) / seconds
    allowed = logical - usable + max(_LEAST_CORES, _SHARE * usable)
    return {
        "window_seconds": seconds,
        "own_cores": own,
        "foreign_cores": foreign,
        "steal_cores": steal,
        "logical_cores": logical,
        "usable_cores": usable,
        "disturbed": foreign + steal > allowed,
    }


def read(proc: Path = Path("/proc")) -> Reading | None:
    """The counters now; None on a system without them."""
    try:
        busy, steal = parse_stat((proc / "stat").read_text(encoding="ascii"))
        own = sum(_session_ticks(proc, os.getsid(0)))
    except (OSError, ValueError):
        return None
    tick = os.sysconf("SC_CLK_TCK")
    return Reading(clock=time.monotonic(), busy=busy / tick, steal=steal / tick, own=own / tick)


def parse_stat(text: str) -> tuple[int, int]:
    """Ticks all processors were busy and ticks stolen, from /proc/stat (proc(5)); guest time is part of user time."""
    fields = next((line.split()[1:] for line in text.splitlines() if line.startswith("cpu ")), [])
    if len(fields) < 8:
        raise ValueError("no line 'cpu' with eight counters in /proc/stat")
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
    return user + nice + system + irq + softirq, steal


def _session_ticks(proc: Path, session: int) -> list[int]:
    """Ticks of every process of the session, with those of children they have waited for."""
    found = []
    for folder in proc.iterdir():
        if folder.name.isdecimal():
            try:
                # The name in brackets may hold spaces and brackets; the numbers start after the last one.
                fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session:
                found.append(sum(map(int, fields[11:15])))
    return found
