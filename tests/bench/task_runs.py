"""Running a task in this process, and reading what it reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.context import RunContext
from bench.events import EventLog
from recipes.load import from_dict

SMALL = {"height": 32, "width": 48, "max_frames": 9}


def run_task(task: Any, recipe: dict[str, Any], out: Path) -> tuple[RunContext, list[dict[str, Any]]]:
    """Runs the task with results in ``out`` (whatever is there stays); its context and events."""
    out.mkdir(parents=True, exist_ok=True)
    log = out.parent / f"{out.name}.jsonl"
    log.unlink(missing_ok=True)
    loaded = from_dict({"schema": 1, "name": "test", **recipe})
    ctx = RunContext(loaded, out, loaded.seed, EventLog(log))
    task.run(loaded, ctx)
    return ctx, [json.loads(line) for line in log.read_text().splitlines()]


def failures(events: list[dict[str, Any]]) -> list[tuple]:
    """Row, item and message of each failure among the events."""
    return [(event["row"], event["item"], event["message"]) for event in events if event["type"] == "failure"]


def video_recipe(folder: Path, **more: Any) -> dict[str, Any]:
    """An encode-video recipe for the clips in ``folder``."""
    data = {"csv": str(folder / "video_caption.csv"), "video_folder": str(folder)}
    return {"kind": "encode-video", "model": {"preset": "tiny-1.5"}, "data": data, "video": SMALL, **more}
