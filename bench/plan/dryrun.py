"""MindSpore's DryRun as a second predictor: the compiled graph's own peak, without a card's work.

It needs MindSpore's Ascend build and CANN (``MS_SIMULATION_LEVEL=1``); results of such a run are simulated, so it
writes no record (docs/design/016). Its peak may be kept beside the record of a real run of the same recipe.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import record as records
from core.errors import UserError
from core.files import write_text

# Printed at GLOG_v=1 when the memory pool ends; N is in the unit behind it, MindSpore's M is 2**20 bytes.
_PEAK = re.compile(
    r"(?P<kind>Actual peak memory usage|Used peak memory usage|Total reserved memory|MemPool[ \w]*peak)"
    r"(?:\s*\((?P<how>[^)]*)\))?\s*[:=]\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMG]?)i?B?\b"
)
FILE = "dry_run.json"  # in the folder of a run; reports show it beside what was planned and counted
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def parse_peak(log: str) -> dict[str, int]:
    """Bytes of every peak line in a log, keyed by its words; the largest where a line comes several times.

    Raises:
        UserError: no line with the peak "without fragments".
    """
    found: dict[str, int] = {}
    for line in _PEAK.finditer(log):
        name = line["kind"] + (f" ({line['how']})" if line["how"] else "")
        found[name] = max(found.get(name, 0), round(float(line["number"]) * _UNITS[line["unit"]]))
    if not any(name.startswith("Used peak memory usage") for name in found):
        raise UserError(
            "--dry-run: the log has no line 'Used peak memory usage (without fragments): N M'; need GLOG_v=1 and a run "
            "that reached its end"
        )
    return found


def check_folder(folder: Path, digest: str) -> None:
    """Refuses to keep a peak beside the record of another recipe.

    Raises:
        UserError: there is no readable record in ``folder``, or it is of another recipe than ``digest``.
    """
    try:
        data = records.read_data(folder / "record.json")
    except records.RecordError as error:
        raise UserError(f"--into: need the folder of a run of this recipe: {error}") from None
    if data["recipe_digest"] != digest:
        got = data["recipe_digest"][:12]
        raise UserError(f"--into: {folder} is of a recipe {got}, need a run of this one ({digest[:12]})")


def keep(folder: Path, digest: str, found: dict[str, Any]) -> None:
    """Writes what ``dry_run`` found into the folder of a run of the recipe ``digest``."""
    write_text(folder / FILE, json.dumps({"recipe_digest": digest, **found}, indent=1) + "\n")


def kept(folder: Path, digest: str) -> dict[str, Any] | str | None:
    """What was kept beside a run; why it can't be used; None where there is nothing."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["recipe_digest"] != digest:
            return f"{FILE} is of another recipe"
        return data if isinstance(data["peak_bytes"], int) else f"{FILE} has no peak"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{FILE} can't be read: {error}"


def refuse_without_ascend() -> None:
    """UserError where DryRun can't be done, saying what is missing."""
    # The wheel for CPUs carries the Ascend plugin too: only CANN tells whether it can be used.
    if importlib.util.find_spec("mindspore") is None:
        raise UserError("--dry-run: needs MindSpore with CANN; leave --dry-run out for the plan alone")
    if not (os.environ.get("ASCEND_HOME_PATH") or Path("/usr/local/Ascend").exists()):
        raise UserError("--dry-run: needs CANN (source its set_env.sh); leave --dry-run out for the plan alone")


def dry_run(path: Path, overrides: list[str]) -> dict[str, Any]:
    """Runs the recipe under ``MS_SIMULATION_LEVEL=1`` and returns its peak bytes.

    Raises:
        UserError: no Ascend build or CANN here, or the run did not print a peak.
    """
    refuse_without_ascend()
    from bench.recipe_access import open_recipe  # noqa: PLC0415

    loaded = open_recipe(path, [*overrides, "train.steps=1"])
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "kind": loaded.recipe.kind, "recipe": loaded.data, "out": f"{folder}/out", "seed": loaded.recipe.seed,
            "parent_pid": os.getpid(), "recipe_digest": loaded.digest,
        }  # fmt: skip
        Path(folder, "job.json").write_text(json.dumps(job), encoding="utf-8")
        ranks = str(loaded.recipe.runtime.workers)
        env = os.environ | {"MS_SIMULATION_LEVEL": "1", "RANK_SIZE": ranks, "RANK_ID": "0", "GLOG_v": "1"}
        command = [sys.executable, "-m", "bench.child", folder]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    found = parse_peak(done.stdout + done.stderr)
    peak = next(value for name, value in found.items() if name.startswith("Used peak memory usage"))
    return {"peak_bytes": peak, "lines": found, "operations": f"exit code {done.returncode}, results are simulated"}
