"""Accepted baselines: one committed JSON file a recipe, to which entries are only ever added.

``reports/baselines/<recipe name>.json`` holds for each acceptance the cohort, the readings of its null runs, the
commit, the date and why. The last entry of a cohort is its baseline. Each entry carries the digest of the one before,
so a file whose history was edited is refused; the file lives in git, so an acceptance is reviewed like code.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import stats
from bench.cohort import Cohort, cohort_from, differences, fallback, recipe_changes
from bench.gate import MIN_NULL_RUNS, Series, series_of, unusable
from bench.run_set import Run, same_cohort
from bench.runner import utc_now
from bench.verdict import Check, Verdict
from core.errors import UserError
from core.files import write_text

FOLDER = Path("reports/baselines")
_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One accepted entry: the null runs' readings and where they came from."""

    cohort: Cohort
    recipe: dict[str, Any]
    series: dict[str, Series]
    runs: tuple[str, ...]
    accepted: str
    why: str
    commit: str | None
    code_digest: str


def file_of(folder: Path, recipe_name: str) -> Path:
    """The baseline file of a recipe, by its name: the digest changes with the recipe, the file does not."""
    return folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', recipe_name)}.json"


def read(path: Path) -> list[Baseline]:
    """The entries of a file, oldest first; empty if there is none, UserError for one that was edited or damaged."""
    return [_from_entry(entry) for entry in _entries(path)]


def find(entries: Sequence[Baseline], cohort: Cohort) -> Baseline | None:
    """The newest entry of the cohort."""
    return next((entry for entry in reversed(entries) if entry.cohort.key == cohort.key), None)


def mismatch(entries: Sequence[Baseline], cohort: Cohort, recipe: Mapping[str, Any]) -> Check:
    """Why there is no baseline for the cohort: a check that says what differs from the nearest entry.

    RECIPE_MISMATCH: all entries are of another recipe. REGRESSION: everything is equal but what the run resolved for
    itself (a silent fallback). CALIBRATION_NEEDED: another machine, other versions, or no entry at all.
    """
    base: dict[str, Any] = {"name": "cohort", "family": "status", "unit": "", "rule": "cohort"}
    if not entries:
        return Check(**base, verdict=Verdict.CALIBRATION_NEEDED, reason="this recipe has no baseline")
    same_recipe = [entry for entry in entries if entry.cohort.recipe == cohort.recipe]
    if not same_recipe:
        found = recipe_changes(entries[-1].recipe, recipe)
        text = _listed(found) or "nothing but its digest"
        reason = f"the baseline is of recipe {entries[-1].cohort.recipe[:8]}, this is {cohort.recipe[:8]}: {text}"
        return Check(**base, verdict=Verdict.RECIPE_MISMATCH, reason=reason)
    nearest = min(reversed(same_recipe), key=lambda entry: len(differences(entry.cohort, cohort)))
    if found := fallback(nearest.cohort, cohort):
        reason = f"same machine and versions as the baseline, but the run chose otherwise: {_listed(found)}"
        return Check(**base, verdict=Verdict.REGRESSION, reason=reason)
    reason = f"no baseline of this cohort; nearest differs in {_listed(differences(nearest.cohort, cohort))}"
    return Check(**base, verdict=Verdict.CALIBRATION_NEEDED, reason=reason)


def accept(path: Path, runs: Sequence[Run], why: str) -> Baseline:
    """Adds the runs as the new baseline of their cohort and returns it.

    UserError without a reason, with fewer runs than a judgement needs, or with runs that are not usable: a baseline
    that can't be matched would make every later run fail or, worse, pass.
    """
    if not why.strip():
        raise UserError('--why: got nothing, need a sentence for those who read the history: --why "..."')
    if len(runs) < MIN_NULL_RUNS:
        raise UserError(f"--accept: got {len(runs)} runs, need {MIN_NULL_RUNS}: use --runs or give more with --from")
    if broken := unusable(runs):
        raise UserError(f"--accept: {broken[0].reason}: fix it and run again, a broken run can't be a baseline")
    cohort = same_cohort(runs)
    entries = _entries(path)
    head = runs[0].record
    entry = {
        "previous": _digest(entries[-1]) if entries else None,
        "accepted": utc_now(),
        "why": " ".join(why.split()),
        "commit": head.code.commit,
        "dirty": head.code.dirty,
        "code_digest": head.code.digest,
        "cohort": cohort.data(),
        "recipe": head.recipe,
        "runs": [run.record.id for run in runs],
        "readings": {name: _packed(series) for name, series in series_of(runs).items()},
    }
    data = {"schema": _SCHEMA, "name": head.name, "newest": _digest(entry), "entries": [*entries, entry]}
    write_text(path, json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    return _from_entry(entry)


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read ({' '.join(str(error).split())}): restore it from git") from None
    if not isinstance(data, dict) or data.get("schema") != _SCHEMA or not isinstance(data.get("entries"), list):
        raise UserError(f"{path}: not a baseline file of schema {_SCHEMA}: restore it from git")
    previous = None
    for number, entry in enumerate(data["entries"], 1):
        if entry.get("previous") != previous:
            raise UserError(f"{path}: entry {number} does not follow the one before: history was edited, restore it")
        previous = _digest(entry)
    if data.get("newest") != previous:
        raise UserError(f"{path}: the newest entry is not the one that was accepted: history was edited, restore it")
    return data["entries"]


def _from_entry(entry: dict[str, Any]) -> Baseline:
    names = [str(run) for run in entry["runs"]]
    return Baseline(
        cohort=cohort_from(entry["cohort"]),
        recipe=entry["recipe"],
        series={name: _unpacked(series, len(names)) for name, series in entry["readings"].items()},
        runs=tuple(names),
        accepted=entry["accepted"],
        why=entry["why"],
        commit=entry["commit"],
        code_digest=entry["code_digest"],
    )


def _packed(series: Series) -> dict[str, Any]:
    """One value where all runs agree: a list of losses is then written once."""
    head = {"family": series.family, "unit": series.unit}
    if series.reason is not None:
        head["reason"] = series.reason
    if stats.agree(series.values):
        return head | {"value": series.values[0]}
    # Lists that differ from run to run are not judged; which ones they were is in the records.
    keep = not any(isinstance(value, list) for value in series.values)
    return head | {"values": list(series.values) if keep else [_digest(value) for value in series.values]}


def _unpacked(data: dict[str, Any], runs: int) -> Series:
    values = tuple(data["values"]) if "values" in data else (data["value"],) * runs
    return Series(family=data["family"], unit=data["unit"], values=values, reason=data.get("reason"))


def _listed(found: Sequence[str]) -> str:
    return "; ".join(found[:4]) + (f"; and {len(found) - 4} more" if len(found) > 4 else "")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
