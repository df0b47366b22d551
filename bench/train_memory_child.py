"""One process that trains for a few steps and counts its memory: ``python -m bench.train_memory_child JOB`` (JSON).

The work is that of the paired case ``train`` (``bench.paired_ours``, ``bench.paired_reference``).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench.memory import process_hwm_bytes, reset_hwm, resident_bytes

STEPS = 3


def main(text: str) -> None:
    """Runs the job and prints its line: the marks of loading, of the first step and of the later ones."""
    job = json.loads(text)
    from recipes.load import from_dict  # noqa: PLC0415

    recipe, folder = from_dict(job["recipe"]), Path(job["folder"])
    call: Any
    if job["code"] == "diffusers":
        from bench import paired_reference  # noqa: PLC0415

        call, _ = paired_reference.prepare(recipe, folder)
    else:
        from bench import paired_ours  # noqa: PLC0415

        if job["code"] == "write":
            from core import ops  # noqa: PLC0415

            ops.configure(device="CPU", mode="pynative")
            paired_ours.write(recipe, folder)
            print("{}", flush=True)
            return
        call, _ = paired_ours.prepare(recipe, folder, written=True)
    marks: dict[str, Any] = {"loading": process_hwm_bytes()}
    reset_hwm()
    marks["loaded"] = resident_bytes()
    losses = []
    for index in range(STEPS):
        losses.append(call(index))
        if index == 0:
            marks["first"], marks["after first"] = process_hwm_bytes(), resident_bytes()
            reset_hwm()
    marks |= {"steady": process_hwm_bytes(), "losses": losses}
    print(json.dumps(marks), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
