"""Rows of sweeps and searches: one process run each, known by what it is and never by a file's name.

A row's key is (recipe digest, code digest, hardware and software profile, repeat, memory cap). A record with this key
is the row, wherever it lies in the folder; one of other code or of another machine is not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import record as records
from bench.child_env import full_environment
from bench.environment import code, code_root, collect
from bench.record import Record
from bench.runner import Job, new_run_dir, run_job

_INTERRUPTED = "interrupted by the user"


@dataclass(frozen=True)
class Key:
    """What makes two process runs the same row."""

    recipe: str
    code: str
    profile: str
    repeat: int
    memory_cap: int | None


@dataclass(frozen=True)
class Row:
    """A finished row: its record, where it lies, and whether an earlier session made it."""

    record: Record
    folder: Path
    reused: bool


def key_of(record: Record) -> Key:
    """The key of a record."""
    cap = (record.notes.get("row") or {}).get("memory_cap")
    return Key(record.recipe_digest, record.code.digest, _profile(record.environment), record.repeat.index, cap)


def _profile(environment: dict[str, Any]) -> str:
    return f"{environment.get('hardware_digest')} {environment.get('software_digest')}"


def is_result(record: Record, timeout: float | None, *, retry_failed: bool = False) -> bool:
    """Whether a record answers for its row: an interrupted run does not, nor a timeout after another time."""
    if record.status == "timeout":
        return (record.recipe.get("runtime") or {}).get("timeout_s") == timeout
    if record.status == "failed":
        return not retry_failed and record.reason != _INTERRUPTED
    return record.status != "skipped"


class Rows:
    """Finds or makes rows below ``folder``; ``base`` is a job with what all rows share (command, forward)."""

    def __init__(self, folder: Path, base: Job, *, memory_cap: int | None, retry_failed: bool = False):
        self._folder, self._base, self._cap, self._retry = folder, base, memory_cap, retry_failed
        self._code = code({}).digest
        self.warnings: list[str] = []
        self._known: dict[Key, list[tuple[Path, Record]]] = {}
        if folder.is_dir():
            found, self.warnings = records.find([folder])
            for file, record in found:
                if "/" not in record.id:  # the stages of a pipeline belong to its row
                    self._known.setdefault(key_of(record), []).append((file, record))

    def key(self, loaded: Any, repeat: int) -> Key:
        """The key that a run of the recipe would have now."""
        environment, _ = collect(full_environment(loaded.data, code_root()))
        return Key(loaded.digest, self._code, _profile(environment), repeat, self._cap)

    def find(self, loaded: Any, repeat: int) -> Row | None:
        """The row if it was made already, the newest one if more than once."""
        timeout = (loaded.data.get("runtime") or {}).get("timeout_s")
        for file, record in reversed(self._known.get(self.key(loaded, repeat), [])):
            if is_result(record, timeout, retry_failed=self._retry):
                return Row(record, file.parent, True)
        return None

    def make(self, loaded: Any, repeat: int, of: int, notes: dict[str, Any]) -> Row:
        """Runs the recipe in a new folder; KeyboardInterrupt once its record is written."""
        job = replace(
            self._base,
            kind=loaded.data["kind"],
            name=loaded.data["name"],
            data=loaded.data,
            digest=loaded.digest,
            run_dir=new_run_dir(loaded.data["name"], loaded.digest, repeat, self._folder),
            origins=loaded.origins,
            repeat=repeat,
            of=of,
            memory_cap=self._cap,
            notes={"row": notes | {"memory_cap": self._cap}},
        )
        return Row(run_recipe(job, loaded), job.run_dir, False)


def run_recipe(job: Job, loaded: Any) -> Record:
    """Runs the job, or the stages of the pipeline that it is; ``loaded`` has ``data`` and ``path``."""
    if job.kind != "pipeline":
        return run_job(job)
    from bench.pipeline import run_pipeline  # noqa: PLC0415
    from bench.recipe_access import stage_plans  # noqa: PLC0415

    return run_pipeline(job, stage_plans(loaded))[0]
