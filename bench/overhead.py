"""``python -m bench.overhead [RECORD]``: what recording a step or a stage costs; with a record, as a share of its step.

Measures the code that runs during every run: the event line, the peak counters read and set back (design 013), and
once a run the walk through /proc. Timings of a busy machine are worthless; run it on a quiet one.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from bench import record as records
from bench.context import RunContext
from bench.events import EventLog
from core.errors import UserError

_CALLS, _ROUNDS = 200, 15


def measure() -> dict[str, float]:
    """Median seconds of one recorded step, one stage, and one reading of the load."""
    with tempfile.TemporaryDirectory() as folder:
        ctx = RunContext({}, Path(folder), 0, EventLog(Path(folder) / "events.jsonl"))

        def step() -> None:
            ctx.step(1, 0.1, loss=1.25, samples=1, frames=17, tokens=100, extra={"lr": 1e-4, "grad_norm": 1.5})

        def stage() -> None:
            with ctx.stage("write", items=1):
                pass

        return {
            "step_seconds": _seconds(step, _CALLS),
            "stage_seconds": _seconds(stage, _CALLS),
            "load_seconds": _seconds(ctx.load.begin, 5),
        }


def _seconds(call: Callable[[], None], calls: int) -> float:
    rounds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        rounds.append((time.perf_counter() - start) / calls)
    return median(rounds)


def main(arguments: list[str]) -> int:
    """Prints JSON; with a record also ``share_of_step``."""
    found: dict[str, float | None] = dict(measure())
    if arguments:
        step = records.read(arguments[0]).summary.step_seconds_median
        found["share_of_step"] = None if step is None else (found["step_seconds"] or 0.0) / step
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
