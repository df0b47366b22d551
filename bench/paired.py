"""``cogbench paired``: the recipes of kind paired, ours beside diffusers, with the ratio of their times."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.codes import FAILED, PASS
from bench.paired_record import KIND, write_records
from bench.paired_session import SIDES, run_session
from bench.paired_stats import Ratio, over_sessions
from bench.recipe_access import open_recipe
from bench.record import Record
from bench.render import brief, duration, gib
from bench.runner import claim_run_dir, refuse_simulation, utc_now
from core.errors import UserError

NEEDED = ("torch", "diffusers", "accelerate", "peft", "came_pytorch")
HEADERS = ("work", "ours", "diffusers", "ours / diffusers", "interval", "peak memory", "diffusers'", "output error")


def paired_command(args: argparse.Namespace) -> tuple[int, dict[str, Any], str]:
    """Exit code, data for --json and text. Every recipe is read before the first one runs."""
    refuse_simulation()
    if args.sessions < 1:
        raise UserError(f"--sessions: got {args.sessions}, need a whole number from 1")
    loaded = [_of_kind(open_recipe(path, args.set)) for path in _files(args.recipes)]
    _need_reference()
    out = args.out or Path("runs") / f"paired-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    folders = {(item.data["name"], n): _claim(out, item, n) for item in loaded for n in range(1, args.sessions + 1)}
    made: dict[str, list[dict[str, Record]]] = {item.data["name"]: [] for item in loaded}
    # Whole rounds of the suite, so that a recipe's sessions are spread over the time it takes.
    for number in range(1, args.sessions + 1):
        for item in loaded:
            name = item.data["name"]
            print(f"{name}, session {number} of {args.sessions}", file=sys.stderr, flush=True)
            started, folder = utc_now(), folders[name, number]
            session = run_session(item.data, folder)
            if session.problem:
                print(f"failed: {session.problem}", file=sys.stderr, flush=True)
            command = ("cogbench", "paired", str(item.path), *(part for s in args.set for part in ("--set", s)))
            pair = write_records(item, session, folder, number=number, started=started, command=command)
            made[name].append(pair)
    good = all(record.status == "ok" for pairs in made.values() for pair in pairs for record in pair.values())
    data = {"records": [brief(record) for pairs in made.values() for pair in pairs for record in pair.values()]}
    return PASS if good else FAILED, data | {"folder": str(out)}, f"{table(made)}\nrecords: {out}"


def table(made: dict[str, list[dict[str, Record]]]) -> str:
    """One line a recipe, over its sessions."""
    from tabulate import tabulate  # noqa: PLC0415 - not needed by other commands

    return tabulate([row(name, pairs) for name, pairs in made.items()], headers=HEADERS, disable_numparse=True)


def row(name: str, pairs: Sequence[dict[str, Record]]) -> tuple[str, ...]:
    """The cells of ``HEADERS``: medians over the sessions; ``failed`` where one did not end well."""
    from statistics import median  # noqa: PLC0415

    if any(record.status != "ok" for pair in pairs for record in pair.values()):
        return (name, *["failed"] * (len(HEADERS) - 1))
    seconds = {
        side: median(value for pair in pairs if (value := pair[side].summary.step_seconds_median)) for side in SIDES
    }
    peaks = {
        side: max((value for pair in pairs if (value := pair[side].memory.process_peak_bytes)), default=None)
        for side in SIDES
    }
    found = over_sessions([ratio_of(pair["ours"]) for pair in pairs])
    error = max(value for pair in pairs if (value := pair["ours"].metrics["output_error"].value) is not None)
    return (
        name, *(duration(seconds[side]) for side in SIDES), f"{found.median:.2f}",
        f"{found.low:.2f} to {found.high:.2f}", *(gib(peaks[side]) for side in SIDES), f"{error:.1e}",
    )  # fmt: skip


def ratio_of(record: Record) -> Ratio:
    """The verdict that stands in our side's record."""
    values = [record.metrics[f"ratio_{key}"].value for key in ("median", "low", "high", "confidence")]
    middle, low, high, confidence = (float(value) for value in values if value is not None)
    return Ratio(median=middle, low=low, high=high, confidence=confidence, count=record.summary.steps_counted)


def _files(given: Sequence[Path]) -> list[Path]:
    files = [file for path in given for file in (sorted(path.glob("*.yaml")) if path.is_dir() else [path])]
    if not files:
        raise UserError(f"no recipe in {', '.join(map(str, given))}: give a file or a folder such as recipes/cpu")
    return files


def _of_kind(loaded: Any) -> Any:
    if loaded.data["kind"] != KIND:
        raise UserError(f"{loaded.path}: kind is {loaded.data['kind']}, need {KIND}: use cogbench run for it")
    return loaded


def _need_reference() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"the reference's side needs {', '.join(missing)}: pip install 'cogbench[parity]'")


def _claim(out: Path, loaded: Any, number: int) -> Path:
    folder = out / f"{loaded.data['name']}-{number}"
    for side in SIDES:
        claim_run_dir(folder / side)
    return folder
