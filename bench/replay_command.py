"""``cogbench replay``: runs a record's recipe again, in a folder of its own, and compares bits."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench import record as records
from bench import tensors
from bench.codes import MISMATCH, PASS
from bench.record import Record
from bench.replay import Comparison, Evidence, certificate, comparable, compare, environment_differences, joined, lines
from bench.rows import run_recipe
from bench.runner import Job, claim_run_dir, exit_code_of, new_run_dir, refuse_simulation
from core.errors import UserError
from core.files import write_text

RESULT = "replay.json"
# Notes in which encode-text and encode-video count what they made and what they found made.
_ENCODED = ("texts", "clips")


@dataclass(frozen=True)
class _Recipe:
    """A record's recipe as this version reads it."""

    data: dict[str, Any]
    digest: str


def replay_command(
    path: Path, *, out: Path | None, command: tuple[str, ...], forward: bool, task_module: str | None = None
) -> tuple[int, dict[str, Any], str]:
    """Exit code, certificate and text; the certificate is also written to ``replay.json`` in the replay's folder.

    Codes: 0 identical, 1 different, and those of ``cogbench run`` if the replay did not end well.
    """
    refuse_simulation()
    file = records.record_path(path)
    recorded = records.read(file)
    evidence = _evidence(file, recorded)
    _refuse(file, recorded, evidence)
    recipe = _Recipe(recorded.recipe, recorded.recipe_digest) if task_module else _read_again(file, recorded)
    folder = new_run_dir(f"replay-{recorded.name}", recipe.digest, 1) if out is None else claim_run_dir(out)
    job = Job(
        kind=recorded.kind, name=recorded.name, data=_elsewhere(recipe.data), digest=recipe.digest, run_dir=folder,
        command=command, origins=recorded.origins, forward=forward, task_module=task_module,
    )  # fmt: skip
    replayed = run_recipe(job, SimpleNamespace(data=job.data, path=file))
    if replayed.status not in ("ok", "unsteady"):
        comparison, code = None, exit_code_of(replayed)
    else:
        comparison = _compared(evidence, _evidence(job.run_dir / records.FILE_NAME, replayed))
        code = PASS if comparison.identical else MISMATCH
    result = certificate(recorded, replayed, comparison, _environment(evidence, file, job.run_dir, replayed))
    write_text(job.run_dir / RESULT, json.dumps(result, indent=1, allow_nan=False) + "\n")
    return code, {"exit_code": code, "record": str(file), "folder": str(job.run_dir), **result}, _text(result, job)


def _text(result: dict[str, Any], job: Job) -> str:
    return "\n".join([*lines(result), f"replay: {job.run_dir / records.FILE_NAME}"])


def _evidence(file: Path, record: Record) -> list[tuple[str, Evidence]]:
    """The run's own evidence, or that of each stage that ran, by name."""
    if record.kind != "pipeline":
        return [("", _one(file, record))]
    found = []
    for child in record.children:
        stage_file = file.parent / child
        stage = records.read(stage_file)
        if stage.status != "skipped":
            found.append((f"{stage.name.rsplit('/', 1)[-1]}: ", _one(stage_file, stage)))
    return found


def _one(file: Path, record: Record) -> Evidence:
    digest = record.digests.get(tensors.FILE_NAME)
    return Evidence(record, tensors.read(file.parent, digest) if digest else {})


def _refuse(file: Path, record: Record, evidence: list[tuple[str, Evidence]]) -> None:
    """UserError for a record that no second run could be held against."""
    if record.status not in ("ok", "unsteady"):
        raise UserError(f"{file}: got status {record.status}, need a run that ended ok: there is no result to compare")
    if "/" in record.id:
        raise UserError(f"{file}: a stage of a pipeline, whose inputs are other stages: replay the pipeline's record")
    if not any(comparable(one) for _, one in evidence):
        raise UserError(f"{file}: holds no loss, digest or file, so nothing could be compared: give another record")
    for name, one in evidence:
        notes = one.record.notes
        for key in _ENCODED:
            note = notes.get(key)
            if isinstance(note, dict) and "encoded" in note and note["encoded"] < note["total"]:
                raise UserError(
                    f"{file}: {name}encoded {note['encoded']} of {note['total']} {key}, the others were there already: "
                    "replay the run that made them"
                )


def _read_again(file: Path, record: Record) -> _Recipe:
    """The effective recipe under this version's schema; keys that it adds get their defaults and another digest."""
    from recipes.digest import digest  # noqa: PLC0415
    from recipes.load import from_dict  # noqa: PLC0415

    try:
        recipe = from_dict(record.recipe)
    except UserError as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"{file}: this version can't read its recipe ({first}): use the code of commit {record.code.commit}"
        ) from None
    data = recipe.model_dump(mode="json", by_alias=True)
    return _Recipe(data, digest(data))


def _elsewhere(data: dict[str, Any]) -> dict[str, Any]:
    """The recipe with its outputs in the replay's folder, from its beginning: nothing that exists is written over."""
    changed = copy.deepcopy(data)
    for part in (changed, *changed.get("stages", [])):
        if isinstance(part.get("output"), dict):
            part["output"]["folder"] = None
        if isinstance(part.get("train"), dict) and part["train"].get("resume") is not None:
            part["train"]["resume"] = None
    return changed


def _compared(recorded: list[tuple[str, Evidence]], replayed: list[tuple[str, Evidence]]) -> Comparison:
    assert [name for name, _ in recorded] == [name for name, _ in replayed], "one recipe has the same stages twice"
    return joined(compare(old, new, name) for (name, old), (_, new) in zip(recorded, replayed, strict=True))


def _environment(
    recorded: list[tuple[str, Evidence]], file: Path, folder: Path, replayed: Record
) -> list[dict[str, Any]]:
    """Differences of the run, or of each stage where it has any that an earlier one had not."""
    found: list[dict[str, Any]] = []
    for name, again in _ran(folder, replayed):
        old = next((one for stage, one in recorded if stage == name), None)
        if old is not None:
            found += [d for d in environment_differences(old.record, again) if d not in found]
    return found or environment_differences(records.read(file), replayed)


def _ran(folder: Path, replayed: Record) -> list[tuple[str, Record]]:
    if replayed.kind != "pipeline":
        return [("", replayed)]
    stages = [records.read(folder / child) for child in replayed.children]
    return [(f"{stage.name.rsplit('/', 1)[-1]}: ", stage) for stage in stages]
