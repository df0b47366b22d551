"""Jobs and loaded recipes for tests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench.pipeline import StagePlan
from bench.runner import Job

MODULE = "tests.bench.fake_task"


def digest_of(data: dict) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def job(run_dir: Path, action: str, **data: Any) -> Job:
    """A job in ``run_dir``/run whose task does ``action``."""
    folder = run_dir / "run"
    folder.mkdir(parents=True, exist_ok=True)
    full = {"kind": "test", "name": "t", "seed": 7, "action": action} | data
    return Job(
        kind="test",
        name="t",
        data=full,
        digest=digest_of(full),
        run_dir=folder,
        command=("cogbench",),
        task_module=MODULE,
    )


def stage(name: str, action: str, skipped: bool = False, **data: Any) -> StagePlan:
    """A stage of a real kind, so that its references are found, whose task does ``action``."""
    full = {"kind": "encode-video", "name": name, "action": action} | data
    return StagePlan(name=name, kind="encode-video", data=full, digest=digest_of(full), skipped=skipped)


def loaded(data: dict[str, Any]) -> SimpleNamespace:
    """What recipes.load.load_recipe returns, for a recipe that no schema knows."""
    full = {"kind": "test", "name": "t"} | data
    return SimpleNamespace(recipe=None, data=full, origins={}, digest=digest_of(full), path=Path("t.yaml"))
