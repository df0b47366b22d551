"""Exit codes of ``cogbench`` and of its child processes."""

from __future__ import annotations

PASS = 0
MISMATCH = 1
USAGE = 2
NO_BASELINE = 3
FAILED = 4
UNSTEADY = 5
# What shells expect of a program ended by Ctrl-C (128 + SIGINT).
INTERRUPTED = 130
