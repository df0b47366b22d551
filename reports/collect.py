"""Finding and reading the records below some folders. A damaged record is a warning, never an exception."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import record as records
from core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One warning row: the file it is about and what is wrong with it."""

    path: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """One record and the folder it was read from; ``data`` is the record as written, unchanged.

    ``label``: the name to show, without the pipeline's where a report is about one pipeline only.
    """

    path: Path
    data: dict[str, Any]
    label: str = ""

    @property
    def folder(self) -> Path:
        return self.path.parent

    @property
    def name(self) -> str:
        return self.data["name"]

    @property
    def kind(self) -> str:
        return self.data["kind"]

    @property
    def status(self) -> str:
        return self.data["status"]

    def section(self, key: str) -> dict[str, Any]:
        """The object under ``key``, or an empty one where the record has null or nothing."""
        return self.data.get(key) or {}

    def rows(self, key: str) -> list[dict[str, Any]]:
        """The list of objects under ``key``, or an empty one where the record has null or nothing."""
        return self.data.get(key) or []

    def value(self, dotted: str) -> Any:
        """The value at a dotted key such as ``memory.process_peak_bytes``, or None where it is absent."""
        at: Any = self.data
        for part in dotted.split("."):
            at = at.get(part) if isinstance(at, dict) else None
        return at

    def number(self, dotted: str) -> float | None:
        """A finite number at a dotted key, or None (a bool, text, NaN or infinity is no number)."""
        return finite(self.value(dotted))

    def null_reason(self, dotted: str) -> str:
        """Why the value at a dotted key is missing, as the record states it."""
        reasons = self.section("null_reasons")
        value = self.value(dotted)
        if isinstance(reasons.get(dotted), str) and reasons[dotted]:
            return reasons[dotted]
        if value is not None:
            return f"the record holds {value!r}, which is no finite number"
        return "the record gives no reason"


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Runs in the order to show them and what could not be read; ``roots`` are those that are no pipeline's stage."""

    runs: tuple[Run, ...]
    notices: tuple[Notice, ...] = ()
    roots: tuple[Run, ...] = ()


def finite(value: Any) -> float | None:
    """``value`` if it is a finite number, else None; True and False are not numbers here."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None


def read(path: Path) -> Run | Notice:
    """The run recorded at ``path``, or a notice saying why it can't be read."""
    try:
        data = records.read_data(path)
        return Run(path=path, data=data, label=data["name"])
    except (records.RecordError, RecursionError) as error:
        message = str(error).removeprefix(f"{path}: ") or type(error).__name__
        return Notice(path=str(path), message=message)


def collect(folders: Iterable[Path]) -> Collection:
    """Every record below ``folders`` and the stages that pipelines name; each file is read once.

    Raises UserError where a folder does not exist or no record at all, readable or not, was found.
    """
    shown = [Path(folder) for folder in folders]
    runs: dict[Path, Run] = {}
    notices: list[Notice] = []
    seen: set[Path] = set()
    for path in _record_files(shown):
        _take(path, runs, notices, seen)
    if not seen:
        where = ", ".join(map(str, shown)) or "no folder"
        raise UserError(f"no record.json below {where}: run a recipe first (cogbench run RECIPE)")
    for run in list(runs.values()):
        for file in child_files(run):
            if file.is_file():
                _take(file, runs, notices, seen)
            else:
                notices.append(Notice(path=str(run.path), message=f"the record of a stage is missing: {file}"))
    return _in_order(runs, notices)


def child_files(run: Run) -> list[Path]:
    """The record files that a pipeline's record names."""
    return [run.folder / child for child in run.data["children"] if "\0" not in child]


def _record_files(folders: list[Path]) -> Iterator[Path]:
    for folder in folders:
        if folder.is_file():
            yield folder
        elif not folder.is_dir():
            raise UserError(f"{folder}: no such folder or record: give a run folder, a record.json or a folder of runs")
        else:
            yield from sorted(folder.rglob(records.FILE_NAME))


def _take(path: Path, runs: dict[Path, Run], notices: list[Notice], seen: set[Path]) -> None:
    key = path.resolve()
    if key in seen:
        return
    seen.add(key)
    found = read(path)
    if isinstance(found, Run):
        runs[key] = found
    else:
        notices.append(found)


def _in_order(runs: dict[Path, Run], notices: list[Notice]) -> Collection:
    """By start and path, but a pipeline's stages follow their pipeline in their order."""
    by_start = dict(sorted(runs.items(), key=lambda item: (item[1].data["started"], str(item[1].path))))
    stages = {file.resolve() for run in by_start.values() for file in child_files(run)}
    roots = {file: run for file, run in by_start.items() if file not in stages}
    ordered: dict[Path, Run] = {}
    for path, run in roots.items():
        ordered[path] = run
        for file in child_files(run):
            if (stage := runs.get(file.resolve())) is not None:
                short = stage.name.removeprefix(f"{run.name}/") if len(roots) == 1 else stage.name
                ordered.setdefault(file.resolve(), replace(stage, label=short))
    for path, run in by_start.items():  # records that name each other in a circle are no root's stages
        ordered.setdefault(path, run)
    return Collection(runs=tuple(ordered.values()), notices=tuple(notices), roots=tuple(roots.values()))
