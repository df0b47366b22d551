"""``cogbench sweep``: a recipe at every combination of some values, resumable, every ending a row."""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import memory_cap
from bench.codes import FAILED, PASS
from bench.fit import fits_of, predicted, told
from bench.recipe_access import refuse_unsupported
from bench.record import FILE_NAME, Record
from bench.render import duration, gib
from bench.rows import Row, Rows
from bench.runner import Job, refuse_simulation
from core.errors import UserError
from core.files import write_text

RESULT = "sweep.json"
FITTED = {"step_seconds_median": "s", "process_peak_bytes": "bytes"}


def sweep_command(
    args: argparse.Namespace, command: tuple[str, ...], task_module: str | None = None, load: Any = None
) -> tuple[int, dict[str, Any], str]:
    """Exit code, data and text. 0: every row ended ok; 4: some did not (they are rows all the same)."""
    refuse_simulation()
    sweep = (load or _load)(args.sweep)
    asked = [_asked(text, sweep) for text in args.predict]
    folder = args.out or Path("runs") / f"sweep-{sweep.file.name}"
    cap = memory_cap.parse(sweep.file.memory_cap, "memory_cap") if sweep.file.memory_cap else None
    base = Job(
        kind="", name="", data={}, digest="", run_dir=folder, command=command, task_module=task_module,
        forward=args.verbose,
    )  # fmt: skip
    rows = Rows(folder, base, memory_cap=cap, retry_failed=args.retry_failed)
    plan = ordered(len(sweep.cells), sweep.file.repeats, sweep.file.order, sweep.file.seed)
    for warning in rows.warnings:
        _say(f"warning: {warning}")
    _say(f"sweep {sweep.file.name}: {len(sweep.cells)} cells x {sweep.file.repeats}, {sweep.file.order}: {folder}")
    done: list[dict[str, Any]] = []
    try:
        for number, (cell, repeat) in enumerate(plan, 1):
            done.append(_row(sweep, cell, repeat, rows, f"[{number}/{len(plan)}]"))
    finally:
        # Also after Ctrl-C: what is there is told, and the next session goes on from the records.
        result = _result(sweep, done, len(plan), asked)
        write_text(folder / RESULT, json.dumps(result, indent=1, allow_nan=False) + "\n")
    code = PASS if all(row["status"] == "ok" for row in done) else FAILED
    return code, {"exit_code": code, "folder": str(folder), **result}, text_of(result, folder)


def _load(path: Path) -> Any:
    from recipes.sweep import load_sweep  # noqa: PLC0415

    sweep = load_sweep(path)
    for cell in sweep.cells:
        refuse_unsupported(cell.loaded)
        for part in (cell.loaded.data, *cell.loaded.data.get("stages", [])):
            if given := (part.get("output") or {}).get("folder"):
                why = f"output.folder of {part['name']} is {given}, which every row would write to"
                raise UserError(f"{path}: {why}: add output.folder: null to set")
    return sweep


def ordered(cells: int, repeats: int, order: str, seed: int) -> list[tuple[int, int]]:
    """(cell, repeat from 1) of every row in the order in which they run."""
    if order == "listed":
        return [(cell, repeat) for cell in range(cells) for repeat in range(1, repeats + 1)]
    rows = [(cell, repeat) for repeat in range(1, repeats + 1) for cell in range(cells)]
    if order == "random":
        random.Random(seed).shuffle(rows)
    return rows


def _row(sweep: Any, cell: int, repeat: int, rows: Rows, progress: str) -> dict[str, Any]:
    chosen = sweep.cells[cell]
    shown = " ".join(f"{key}={value}" for key, value in chosen.values.items())
    row = rows.find(chosen.loaded, repeat)
    if row is None:
        _say(f"{progress} {shown} repeat {repeat}")
        notes = {"sweep": sweep.file.name, "values": chosen.values}
        row = rows.make(chosen.loaded, repeat, sweep.file.repeats, notes)
    _say(f"{progress} {shown} repeat {repeat}: {row.record.status}{' (made before)' if row.reused else ''}")
    return row_data(row, chosen.values)


def row_data(row: Row, values: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON data; null where the record has null."""
    record, summary, memory = row.record, row.record.summary, row.record.memory
    reasons = record.null_reasons
    data: dict[str, Any] = {"values": values, "repeat": record.repeat.index, "status": record.status}
    data |= {"reason": record.reason, "step_seconds_median": summary.step_seconds_median}
    data |= {"steps_counted": summary.steps_counted, "steady": summary.steady, "seconds": record.seconds}
    data |= {"samples_per_second": summary.samples_per_second, "process_peak_bytes": memory.process_peak_bytes}
    data |= {"device_allocated_peak_bytes": memory.device_allocated_peak_bytes, "last_loss": _last_loss(record)}
    sections = {"step_seconds_median": "summary", "samples_per_second": "summary", "steady": "summary"}
    sections |= dict.fromkeys(("process_peak_bytes", "device_allocated_peak_bytes"), "memory")
    found = {key: reasons.get(f"{section}.{key}") for key, section in sections.items() if data[key] is None}
    why = found | ({"last_loss": "no step has a loss"} if data["last_loss"] is None else {})
    return data | {"null_reasons": why, "record": str(row.folder / FILE_NAME), "reused": row.reused}


def _last_loss(record: Record) -> float | None:
    return next((s.loss for s in reversed(record.steps) if s.loss is not None and "eval" not in s.tags), None)


def _result(sweep: Any, rows: list[dict[str, Any]], planned: int, asked: list[tuple[str, float]]) -> dict[str, Any]:
    fits = fits_of(rows, tuple(FITTED))
    return {
        "sweep": sweep.file.name, "planned": planned, "rows": rows,
        "fits": [fit.data() for fit in fits],
        "predictions": [answer for axis, value in asked for answer in predicted(fits, axis, value)],
    }  # fmt: skip


def _asked(text: str, sweep: Any) -> tuple[str, float]:
    key, equals, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not equals or key not in sweep.file.axes or not math.isfinite(number):
        axes = ", ".join(sweep.file.axes)
        raise UserError(f"--predict: got {text!r}, need AXIS=NUMBER with an axis of the sweep: {axes}")
    return key, number


def text_of(result: dict[str, Any], folder: Path) -> str:
    """The rows as a table, then the fits."""
    from tabulate import tabulate  # noqa: PLC0415

    axes = list(result["rows"][0]["values"]) if result["rows"] else []
    head = (*axes, "repeat", "status", "step", "peak memory", "last loss")
    body = [_cells(row, axes) for row in sorted(result["rows"], key=_place(result["rows"], axes))]
    lines = ["", tabulate(body, headers=head, tablefmt="simple", disable_numparse=True), ""]
    lines += [
        f"{_named(row, axes)}: {row['status']}: {row['reason']}" for row in result["rows"] if row["status"] != "ok"
    ]
    if len(result["rows"]) < result["planned"]:
        lines.append(f"{len(result['rows'])} of {result['planned']} rows: the same command goes on with the rest")
    lines += [told(fit, FITTED[fit["of"]]) for fit in result["fits"]]
    lines += [answer["text"] for answer in result["predictions"]]
    return "\n".join([*lines, f"rows: {folder / RESULT}"])


def _cells(row: dict[str, Any], axes: Sequence[str]) -> tuple[str, ...]:
    loss = "-" if row["last_loss"] is None else f"{row['last_loss']:.6g}"
    values = (str(row["values"][axis]) for axis in axes)
    step = duration(row["step_seconds_median"])
    return (*values, str(row["repeat"]), row["status"], step, gib(row["process_peak_bytes"]), loss)


def _place(rows: list[dict[str, Any]], axes: Sequence[str]) -> Any:
    """Sorts by the order in which the axes' values first came, then by repeat."""
    seen = {axis: list(dict.fromkeys(str(row["values"][axis]) for row in rows)) for axis in axes}

    def key(row: dict[str, Any]) -> tuple:
        return (*(_number(row["values"][axis], seen[axis]) for axis in axes), row["repeat"])

    return key


def _number(value: Any, seen: list[str]) -> tuple[int, float]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0, float(value)
    return 1, float(seen.index(str(value)))


def _named(row: dict[str, Any], axes: Sequence[str]) -> str:
    return " ".join(f"{axis}={row['values'][axis]}" for axis in axes) + f" repeat {row['repeat']}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
