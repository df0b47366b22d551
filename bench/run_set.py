"""Runs to be judged: made now, or read from folders; each with its records, readings and cohort."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import record as records
from bench.cohort import Cohort, cohort_of
from bench.pipeline import run_pipeline
from bench.readings import Reading, problems_of, readings_of
from bench.recipe_access import refuse_unsupported, stage_plans
from bench.record import Record
from bench.runner import Job, claim_run_dir, run_job
from core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Run:
    """One process run, or one run of a pipeline: ``parts`` are (label, record), its own record first."""

    path: Path
    parts: tuple[tuple[str, Record], ...]

    @property
    def record(self) -> Record:
        """The record of the run itself."""
        return self.parts[0][1]

    @property
    def readings(self) -> dict[str, Reading]:
        """What a gate looks at."""
        return readings_of(self.parts)

    @property
    def problems(self) -> list[str]:
        """What contradicts itself in the records."""
        return problems_of(self.parts)

    @property
    def cohort(self) -> Cohort:
        """What it may be compared with."""
        return cohort_of(self.parts)

    @property
    def disturbed(self) -> list[str]:
        """Where others used processors that the run needed, one line each."""
        found = []
        for label, record in self.parts:
            if record.load and record.load.disturbed:
                cores = record.load.foreign_cores + record.load.steal_cores
                found.append(f"{label or 'run'}: others used {cores:.1f} cores of {record.load.logical_cores}")
        return found


def read_run(path: Path) -> Run:
    """The run whose record is at ``path`` (a run folder or the file), with the stages of a pipeline.

    Stages that were skipped have nothing to judge and are left out.
    """
    file = records.record_path(path)
    own = records.read(file)
    children = [(child, records.read(file.parent / child)) for child in own.children]
    stages = [(r.name.rpartition("/")[2], r) for _, r in children if r.status != "skipped"]
    return Run(path=file.parent, parts=(("", own), *stages))


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Every run below ``folders`` in order of its start; RecordError for a damaged record among them."""
    found, warnings = records.find(list(folders))
    if warnings:
        raise records.RecordError(warnings[0])
    stages = {(file.parent / child).resolve() for file, record in found for child in record.children}
    return [read_run(file) for file, _ in found if file.resolve() not in stages]


def same_cohort(runs: Sequence[Run]) -> Cohort:
    """The cohort all ``runs`` belong to; UserError with the differences if there are several."""
    from bench.cohort import differences  # noqa: PLC0415 - used for the message only

    first = runs[0].cohort
    for run in runs[1:]:
        if found := differences(first, run.cohort):
            text = "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
            raise UserError(f"{run.path}: another cohort than {runs[0].path}: {text}: give runs of one cohort")
    return first


def execute(
    loaded: Any,
    folder: Path,
    number: int,
    command: tuple[str, ...],
    *,
    announce: Callable[[str], None],
    keep_outputs: bool = False,
    task_module: str | None = None,
) -> list[Run]:
    """Runs the recipe ``number`` times into ``folder/01``, ``02``, ...; stops at the first run that is not ok.

    ``output.folder`` is left out (it is no part of the digest), so that each run writes below its own folder, and what
    was written is removed after it was hashed unless ``keep_outputs``.
    """
    refuse_unsupported(loaded)
    data = _own_outputs(loaded.data)
    stages = stage_plans(loaded) if data["kind"] == "pipeline" else None
    runs = []
    for index in range(1, number + 1):
        run_dir = claim_run_dir(folder / f"{index:02d}")
        job = Job(
            kind=data["kind"], name=data["name"], data=data, digest=loaded.digest, run_dir=run_dir, command=command,
            origins=loaded.origins, repeat=index, of=number, task_module=task_module,
        )  # fmt: skip
        announce(f"run {index}/{number}: {run_dir}")
        if stages is None:
            run_job(job)
        else:
            plans = [replace(stage, data=_own_outputs(stage.data)) for stage in stages]
            run_pipeline(job, plans)
        runs.append(read_run(run_dir))
        if not keep_outputs:
            for out in [run_dir / "out", *run_dir.glob("stages/*/out")]:
                shutil.rmtree(out, ignore_errors=True)
        if runs[-1].record.status != "ok":
            break
    return runs


def _own_outputs(data: dict[str, Any]) -> dict[str, Any]:
    data = copy.deepcopy(data)
    if isinstance(data.get("output"), dict):
        data["output"] = {**data["output"], "folder": None}
    return data
