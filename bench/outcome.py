"""Status and reason of a run of one process, from how it ended and what it said."""

from __future__ import annotations

import re

from bench.memory import CAPPED_TEXT, OOM_TEXT
from bench.process import Ended


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
