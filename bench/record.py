"""The record: one JSON file per process run, written once and never changed.

Rule enforced here: below ``summary``, ``memory``, ``environment``, ``code`` and for ``compile_seconds`` and
``seconds`` a null needs an entry in ``null_reasons`` under its dotted key, and an entry without its null is an error.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from bench.record_parts import (
    Artifact,
    Code,
    DeviceLevel,
    Failure,
    Load,
    Memory,
    Metric,
    Part,
    Positive,
    RankEnd,
    Repeat,
    Seconds,
    Stage,
    Status,
    Step,
    Summary,
)
from core.errors import UserError
from core.files import atomic_path

SCHEMA_VERSION = 1
FILE_NAME = "record.json"
_REASONED = ("seconds", "compile_seconds", "summary", "memory", "environment", "code")


class RecordError(UserError):
    """A record that can't be written or read; one line."""


class Record(Part):
    """Everything known about one process run; see docs/design/006-run-and-record.md for each field."""

    schema_version: Literal[1] = SCHEMA_VERSION
    id: str
    status: Status
    reason: str | None = None
    kind: str
    name: str
    recipe: dict[str, Any]
    recipe_digest: str
    origins: dict[str, str] = Field(default_factory=dict)
    command: tuple[str, ...]
    started: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")]
    seconds: Seconds | None
    exit_code: int | None = None
    signal: str | None = None
    repeat: Repeat = Repeat(index=1, of=1)
    code: Code
    environment: dict[str, Any]
    seeds: dict[str, int] = Field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    compile_seconds: Positive | None = None
    steps: tuple[Step, ...] = ()
    summary: Summary
    memory: Memory
    device_level: DeviceLevel | None = None
    load: Load | None = None
    null_reasons: dict[str, str] = Field(default_factory=dict)
    digests: dict[str, str] = Field(default_factory=dict)
    artifacts: tuple[Artifact, ...] = ()
    failures: tuple[Failure, ...] = ()
    metrics: dict[str, Metric] = Field(default_factory=dict)
    notes: dict[str, Any] = Field(default_factory=dict)
    children: tuple[str, ...] = ()
    ranks: tuple[RankEnd, ...] = ()
    failing_rank: int | None = None
    log_tail: str | None = None

    @model_validator(mode="after")
    def _nulls_have_reasons(self) -> Record:
        dumped = self.model_dump(mode="json", include=set(_REASONED))
        nulls = set(null_keys(dumped))
        missing = sorted(key for key in nulls if not self.null_reasons.get(key, "").strip())
        if missing:
            raise ValueError(f"null without a reason: {', '.join(missing)}; add each to null_reasons")
        stale = sorted(set(self.null_reasons) - nulls)
        if stale:
            raise ValueError(f"null_reasons for values that are present or unknown: {', '.join(stale)}")
        unexplained = sorted(n for n, m in self.metrics.items() if m.value is None and not (m.reason or "").strip())
        if unexplained:
            raise ValueError(f"metric null without a reason: {', '.join(unexplained)}")
        if self.status != "ok" and not (self.reason or "").strip():
            raise ValueError(f"status {self.status!r} needs a reason")
        return self


def null_keys(value: Any, prefix: str = "") -> list[str]:
    """Dotted keys (``memory.per_rank.0.x``) of every None inside ``value``."""
    if value is None:
        return [prefix]
    found: list[str] = []
    # One list and one level at a time: a report reads ten thousand records, and most values are plain.
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, inner in items:
        if inner is None or isinstance(inner, dict | list | tuple):
            found += null_keys(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


def record_path(path: str | os.PathLike) -> Path:
    """The record file of a run folder, or the file itself."""
    given = Path(path)
    return given / FILE_NAME if given.is_dir() or given.suffix != ".json" else given


def dump(record: Record) -> str:
    """The record as JSON text; RecordError for NaN or infinity, which JSON can't hold."""
    try:
        return json.dumps(record.model_dump(mode="json"), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    except ValueError:
        raise RecordError(f"record {record.id} refused: it holds NaN or infinity: give null with a reason") from None


def write(record: Record, run_dir: str | os.PathLike) -> Path:
    """Writes ``run_dir/record.json`` atomically; a record that exists is never replaced (RecordError)."""
    target = record_path(run_dir)
    with atomic_path(target) as temporary:
        temporary.write_text(dump(record), encoding="utf-8")
        if target.exists():
            raise RecordError(f"{target}: a record exists and records are never replaced: choose another --out")
    return target


def make(**fields: Any) -> Record:
    """A validated record; a violated rule is a RecordError in one line."""
    try:
        return Record.model_validate(fields)
    except ValidationError as error:
        raise RecordError(f"record refused: {_problems(error)}") from None


def read(path: str | os.PathLike) -> Record:
    """The record at ``path`` (a file or a run folder); RecordError if it is missing, damaged or of another version."""
    return _read(path)[0]


def read_data(path: str | os.PathLike) -> dict[str, Any]:
    """What ``read`` has read, as the file's plain values; top-level fields that the file leaves out have defaults."""
    return _DEFAULTS | _read(path)[1]


def _read(path: str | os.PathLike) -> tuple[Record, dict[str, Any]]:
    file = record_path(path)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"{file}: no record there: give a run folder or a record.json") from None
    except OSError as error:
        raise RecordError(
            f"{file}: can't be read ({error.strerror or error}): check the path and its permissions"
        ) from None
    except ValueError as error:
        raise RecordError(f"{file}: damaged record ({_one_line(error)}): delete it or run again") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise RecordError(f"{file}: schema_version {version!r}, need {SCHEMA_VERSION}: use the cogbench that wrote it")
    try:
        return Record.model_validate(data), data
    except ValidationError as error:
        raise RecordError(f"{file}: damaged record: {_problems(error)}") from None


def _default(field: Any) -> Any:
    value = field.get_default(call_default_factory=True)
    return value.model_dump(mode="json") if isinstance(value, Part) else list(value) if value == () else value


_DEFAULTS = {name: _default(field) for name, field in Record.model_fields.items() if not field.is_required()}


def find(folders: list[Path]) -> tuple[list[tuple[Path, Record]], list[str]]:
    """All records below ``folders`` in order of their start, and one warning line per damaged one."""
    found: list[tuple[Path, Record]] = []
    warnings: list[str] = []
    for file in sorted({f.resolve() for folder in folders for f in _candidates(folder)}):
        try:
            found.append((file, read(file)))
        except RecordError as error:
            warnings.append(str(error))
    return sorted(found, key=lambda pair: (pair[1].started, str(pair[0]))), warnings


def _candidates(folder: Path) -> list[Path]:
    if not folder.exists():
        raise RecordError(f"{folder}: no such folder or record: give a run folder, a record.json or a folder of runs")
    return [folder] if folder.is_file() else list(folder.rglob(FILE_NAME))


def _problems(error: ValidationError) -> str:
    found = [f"{'.'.join(map(str, e['loc'])) or 'record'}: {_one_line(e['msg'])}" for e in error.errors()]
    return "; ".join(found[:10]) + (f"; and {len(found) - 10} more" if len(found) > 10 else "")


def _one_line(value: object) -> str:
    return " ".join(str(value).split())
