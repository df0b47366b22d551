"""One side of a pair: ``python -m bench.paired_child SIDE JOB`` does what it is told, one JSON line for each request.

Requests: ``{"do": "prepare"}``, ``{"do": "call", "index": n, "save": path or null}``,
``{"do": "compare", "ours": path, "theirs": path}``, ``{"do": "end"}``. What libraries print goes to stderr.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from bench.memory import process_hwm_bytes

MODULES = {"ours": "bench.paired_ours", "diffusers": "bench.paired_reference"}
_PR_SET_PDEATHSIG = 1


class Side:
    """The state between requests."""

    def __init__(self, side: str, job: dict[str, Any]):
        from recipes.load import from_dict  # noqa: PLC0415 - tests replace the whole side

        self.recipe, self.folder = from_dict(job["recipe"]), Path(job["folder"])
        self.module = importlib.import_module(job.get("module") or MODULES[side])
        self.call: Any = None

    def prepare(self, _request: dict[str, Any]) -> dict[str, Any]:
        """Loads; the digest says that both sides have the same inputs."""
        from bench import paired_inputs  # noqa: PLC0415

        start = time.perf_counter()
        self.call, facts = self.module.prepare(self.recipe, self.folder)
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "facts": facts,
            "inputs": paired_inputs.digest_of(paired_inputs.inputs(self.recipe)),
        }

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """One call, timed here: the pipe is no part of it."""
        clock, processor = time.perf_counter(), time.process_time()
        result = self.call(request["index"])
        answer = {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - processor}
        if isinstance(result, float):
            answer["loss"] = result
        if request.get("save"):
            import numpy as np  # noqa: PLC0415

            np.save(request["save"], self.module.array(result))
        return answer

    def compare(self, request: dict[str, Any]) -> dict[str, Any]:
        """Relative Frobenius error of two saved outputs."""
        import numpy as np  # noqa: PLC0415

        ours, theirs = (np.load(request[key]).astype(np.float64) for key in ("ours", "theirs"))
        if ours.shape != theirs.shape:
            return {"error": None, "shapes": [list(ours.shape), list(theirs.shape)]}
        return {"error": float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))}

    def end(self, _request: dict[str, Any]) -> dict[str, Any]:
        """The last words."""
        return {"hwm": process_hwm_bytes(), "threads": len(os.listdir("/proc/self/task"))}


def main(side: str, job: str) -> None:
    """Serves requests from standard input until it closes."""
    # SIGKILL: a side is stopped (SIGSTOP) while the other one works, and a stopped process gets no other signal.
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    state = Side(side, json.loads(Path(job).read_text(encoding="utf-8")))
    requests = {"prepare": state.prepare, "call": state.run, "compare": state.compare, "end": state.end}
    for line in sys.stdin:
        request = json.loads(line)
        replies.write(json.dumps(requests[request["do"]](request), allow_nan=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
