"""``cogbench run --resume``: the interrupted run of a recipe, its folder made ready for another attempt.

The folder of a run stays the same over its attempts, so its checkpoints are where they were. What an attempt left
(record, log, events) moves to ``attempts/01``, ``02``, ... below it: a record is never replaced, it only moves.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

from bench import record as records
from bench.cluster import FOLDER, LAUNCHER_LOG
from bench.events import FILE_NAME as EVENTS
from bench.tensors import FILE_NAME as TENSORS
from core.errors import UserError

_LEFT_BEHIND = (records.FILE_NAME, TENSORS, EVENTS, LAUNCHER_LOG, FOLDER, "job.json")


def with_resume(data: dict[str, Any]) -> dict[str, Any]:
    """The recipe's data with ``train.resume: latest`` unless it names a checkpoint; not part of the digest."""
    if data["kind"] != "train":
        raise UserError(f"--resume: got kind {data['kind']}, need kind train: only training has checkpoints")
    changed = copy.deepcopy(data)
    changed["train"]["resume"] = changed["train"].get("resume") or "latest"
    return changed


def find_interrupted(name: str, digest: str, out: Path | None, base: Path = Path("runs")) -> Path | None:
    """The newest run folder of this recipe, or ``out``; None if there is none, so that the run begins.

    Raises:
        UserError: the run ended well, is still going on, or (``out``) is of another recipe.
    """
    if out is not None:
        folder = out if (out / "job.json").is_file() else None
        if folder and (found := _job(folder).get("recipe_digest")) != digest:
            was = f"recipe {found[:8]}" if isinstance(found, str) else "another recipe"
            raise UserError(f"--resume: {out} is a run of {was}, this is recipe {digest[:8]}: choose its --out")
    else:
        mine = [f for f in base.glob(f"{name}-{digest[:8]}-*") if _job(f).get("recipe_digest") == digest]
        folder = max(mine, key=lambda f: (f / "job.json").stat().st_mtime_ns, default=None)
    if folder is not None:
        _refuse_finished(folder)
        _refuse_running(folder)
    return folder


def _job(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _refuse_finished(folder: Path) -> None:
    path = folder / records.FILE_NAME
    if path.exists() and records.read(path).status == "ok":
        raise UserError(f"--resume: {folder} ended ok, there is nothing to resume: run without --resume for a new run")


def _refuse_running(folder: Path) -> None:
    """A process that is older than job.json and has the number written there is the one that wrote it."""
    import psutil  # noqa: PLC0415 - keeps start-up of the command short

    pid = _job(folder).get("parent_pid")
    if isinstance(pid, int) and pid != os.getpid() and not (folder / records.FILE_NAME).exists():
        try:
            running = psutil.Process(pid).create_time() <= (folder / "job.json").stat().st_mtime
        except psutil.Error:
            running = False
        if running:
            raise UserError(f"--resume: {folder} is still running (process {pid}): wait for it, or end it first")


def archive_attempt(folder: Path) -> int:
    """Moves what the last attempt left to ``folder/attempts/NN``; the number of attempts there."""
    left = [name for name in _LEFT_BEHIND if (folder / name).exists()]
    attempts = folder / "attempts"
    number = len(list(attempts.glob("[0-9][0-9]*"))) + 1 if attempts.is_dir() else 1
    if not left:
        return number - 1
    target = attempts / f"{number:02d}"
    target.mkdir(parents=True)
    # job.json last: it is what makes the folder a run of this recipe.
    for name in left:
        os.replace(folder / name, target / name)
    return number
