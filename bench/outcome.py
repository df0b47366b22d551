"""Status and reason of a run of one process, from how it ended and what it said."""

from __future__ import annotations

from bench.memory import OOM_TEXT
from bench.process import Ended


def classify(ended: Ended, end: dict | None, tail: str) -> tuple[str, str | None]:
    """Status and reason from how the process ended, its own last event and the end of its log."""
    how = f"killed by {ended.signal}" if ended.signal else f"exit code {ended.exit_code}"
    if ended.timed_out:
        return "timeout", f"stopped after {ended.seconds:.1f} s: longer than runtime.timeout_s allows"
    if ended.interrupted:
        return "failed", "interrupted by the user"
    if ended.oom_killer:
        return "oom", f"killed by the kernel for lack of memory ({ended.oom_killer})"
    if end is None:
        return _died(ended, how, tail)
    clean = ended.signal is None and (ended.exit_code == 0) == (end["status"] == "ok")
    return (end["status"], end["reason"]) if clean else ("failed", f"the task ended, then the process died: {how}")


def _died(ended: Ended, how: str, tail: str) -> tuple[str, str]:
    """Status and reason of a process that could not say how its task ended."""
    if found := OOM_TEXT.search(tail):
        return "oom", f"{how}; the log says {found[0]!r}"
    if ended.exit_code == 0:
        return "failed", "the process ended with exit code 0 in the middle of its task"
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    # The last lines of a crash are often a list of modules or frames.
    telling = [line for line in lines if "error" in line.lower()] or lines
    return "failed", f"{how} in the middle of the task; log: {telling[-1] if telling else 'empty'}"
