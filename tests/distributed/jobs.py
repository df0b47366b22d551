"""Jobs of several ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.job import Job
from tests.bench.jobs import digest_of

ROOT = Path(__file__).resolve().parents[2]


def ranks_job(folder: Path, workers: int = 2, module: str = "tests.distributed.fake_ranks", **data: Any) -> Job:
    """A job in ``folder``/run of ``workers`` ranks; ``data`` goes into the recipe."""
    run_dir = folder / "run"
    run_dir.mkdir(parents=True, exist_ok=True)
    runtime = {"workers": workers} | data.pop("runtime", {})
    full = {"kind": "train", "name": "t", "seed": 7, "steps": 4, "step_seconds": 0.05, "train": {}, "runtime": runtime}
    full |= data
    return Job(
        kind="train", name="t", data=full, digest=digest_of(full), run_dir=run_dir, command=("cogbench",),
        task_module=module,
    )  # fmt: skip
