"""Steps of runs for other tools: TensorBoard event files, and one JSON object a line."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.timer import EXCLUDED_TAGS
from core.errors import UserError
from core.files import write_text
from reports.collect import Run, collect, finite

_SUFFIX = ".cogbench"
_RATES = ("samples", "frames", "tokens")


def export(folders: Sequence[Path], *, tensorboard: Path | None = None, jsonl: Path | None = None) -> list[Path]:
    """Writes each run below ``folders`` to ``tensorboard``/<run>/ and ``jsonl``/<run>.jsonl; returns what was written.

    Raises:
        UserError: no record, a target that is a file, tensorboardX is not installed; nothing was written then.
    """
    for target in (tensorboard, jsonl):
        if target is not None and target.exists() and not target.is_dir():
            raise UserError(f"{target} is a file, one file a run is written into a folder: give another folder")
    writer = _event_writer() if tensorboard is not None else None
    runs = [(name, run) for name, run in _named(collect(folders).runs) if run.data["steps"] or run.data["metrics"]]
    written = []
    for name, run in runs:
        if tensorboard is not None:
            written.append(_write_events(run, tensorboard / name, writer))
        if jsonl is not None:
            path = jsonl / f"{name}.jsonl"
            write_text(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines(run)))
            written.append(path)
    return written


def lines(run: Run) -> Iterator[dict[str, Any]]:
    """One object a step as the record has it, then one with the summary and the metrics."""
    named = {"run": run.name, "id": run.data["id"]}
    for step in run.rows("steps"):
        yield named | {"type": "step"} | step
    yield (
        named
        | {"type": "end", "status": run.status, "reason": run.data.get("reason")}
        | {key: run.section(key) for key in ("summary", "memory", "metrics", "null_reasons")}
    )


def scalars(run: Run) -> Iterator[tuple[str, float, int, float]]:
    """(tag, value, step, seconds since 1970): losses, what steps say besides, times and rates, metrics at the end.

    Times of steps with an excluded tag (compile, checkpoint, ...) have a tag of their own; a value that is missing or
    not finite has no point.
    """
    clock, last = _started(run), 0
    for position, step in enumerate(run.rows("steps")):
        index, seconds = int(finite(step.get("index")) or position), finite(step.get("seconds"))
        clock, last = clock + (seconds or 0.0), index
        tags: set[Any] = set(step.get("tags") or ())
        for tag, value in _of_step(step, seconds, tags):
            yield tag, value, index, clock
    for name, metric in run.section("metrics").items():
        value = finite(metric.get("value"))
        if value is not None:
            yield f"metrics/{name}", value, last, clock


def _of_step(step: dict[str, Any], seconds: float | None, tags: set[Any]) -> Iterator[tuple[str, float]]:
    group = "validation" if "eval" in tags else "train"
    extra = step.get("extra")
    values = {"loss": step.get("loss")} | (extra if isinstance(extra, dict) else {})
    for name, value in values.items():
        if (number := finite(value)) is not None:
            yield f"{group}/{name}", number
    if seconds is None:
        return
    excluded = EXCLUDED_TAGS & tags
    yield ("time/step_seconds_excluded" if excluded else "time/step_seconds"), seconds
    for what in _RATES:
        amount = finite(step.get(what))
        if amount and seconds and not excluded:
            yield f"throughput/{what}_per_second", amount / seconds


def _write_events(run: Run, folder: Path, writer: Any) -> Path:
    """One event file, put in place when it is complete; an earlier export of the run is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part:
        events = writer(part, filename_suffix=_SUFFIX)
        for tag, value, step, clock in scalars(run):
            events.add_scalar(tag, value, step, walltime=clock)
        recipe = json.dumps(run.section("recipe"), indent=1, ensure_ascii=False)
        # TensorBoard shows text as Markdown: four spaces make it code, whatever it holds.
        events.add_text("recipe", "    " + recipe.replace("\n", "\n    "), 0, walltime=_started(run))
        events.close()
        (made,) = Path(part).iterdir()
        for old in folder.glob(f"events.out.tfevents.*{_SUFFIX}"):
            old.unlink()
        os.replace(made, folder / made.name)
    return folder / made.name


def _event_writer() -> Any:
    try:
        from tensorboardX import SummaryWriter  # noqa: PLC0415 - an optional extra
    except ModuleNotFoundError:
        raise UserError("--tensorboard needs tensorboardX: pip install 'cogbench[tensorboard]'") from None
    return SummaryWriter


def _started(run: Run) -> float:
    return datetime.fromisoformat(run.data["started"]).timestamp()


def _named(runs: Sequence[Run]) -> Iterator[tuple[str, Run]]:
    """A folder name for each run: its name, with its id's end where several have it."""
    counts: dict[str, int] = {}
    for run in runs:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", run.name).strip(".-") or "run"
        counts[name] = counts.get(name, 0) + 1
        yield (name if counts[name] == 1 else f"{name}.{counts[name]}"), run
