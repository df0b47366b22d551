"""No process outlives the one that started it. Standard library only: every child begins with this."""

from __future__ import annotations

import ctypes
import os
import sys

from bench.codes import FAILED

# Names the process that a child of several must not outlive: it can't be told by number before it exists.
PARENT = "COGBENCH_PARENT_PID"
_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int, signum: int) -> None:
    """Asks Linux to send this process ``signum`` when ``parent`` dies; ends it at once if that happened already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signum)
        if os.getppid() != parent:
            raise SystemExit(FAILED)
