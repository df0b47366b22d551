"""The tables of a report, computed from records only. A missing value always says why it is missing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from reports.collect import Collection, Run, finite
from reports.render import (
    GIB,
    Cell,
    Table,
    clean,
    code_cell,
    command_text,
    flatten,
    missing_cell,
    number_cell,
    short_digest,
    text_cell,
)

STEPPED = ("train", "generate", "train-vae")
FAILED = ("oom", "failed", "timeout", "unsteady")
THROUGHPUT = {
    "train": (("samples_per_second", "samples/s"), ("tokens_per_second", "tokens/s")),
    "encode-text": (("samples_per_second", "samples/s"), ("tokens_per_second", "tokens/s")),
    "": (("frames_per_second", "frames/s"), ("samples_per_second", "samples/s")),
}
MEMORY = (
    ("device_allocated_peak_bytes", "device allocated"),
    ("device_reserved_peak_bytes", "device reserved"),
    ("process_peak_bytes", "process high-water mark"),
)
_MAX_VALUES = 4


def status_cell(run: Run) -> Cell:
    """The status of a run, with its reason when it is not ok."""
    reason = run.data.get("reason")
    return Cell(
        run.status if not reason or run.status == "ok" else f"{run.status}: {clean(reason)}", run.status, "status"
    )


def applies(run: Run, dotted: str) -> bool:
    """Whether a value could have been measured: steps in a kind that has steps, device memory on a device."""
    if dotted.startswith("memory.device_") or dotted.endswith("_per_card"):
        return device(run) != "cpu"
    if dotted == "compile_seconds" or dotted.startswith("summary.step"):
        return run.kind in STEPPED
    return run.kind not in ("pipeline", "make-clips", "make-model", "judge") or not dotted.startswith("summary.")


def device(run: Run) -> str | None:
    """The device the recipe asks for; a pipeline states it among what its stages have in common."""
    return run.value("recipe.runtime.device") or run.value("recipe.common.runtime.device")


def value_cell(run: Run, dotted: str, unit: str = "", *, scale: float = 1.0) -> Cell:
    """The finite number at a dotted key of the record, or why there is none."""
    value = run.number(dotted)
    if value is None:
        return missing_cell(run.null_reason(dotted), applies=applies(run, dotted))
    return replace(number_cell(value, unit, scale=scale), source=dotted)


def throughput_cell(run: Run) -> Cell:
    """The first throughput the record has among those that fit its kind, with its unit."""
    wanted = THROUGHPUT.get(run.kind, THROUGHPUT[""])
    for key, unit in wanted:
        value = run.number(f"summary.{key}")
        if value is not None:
            return number_cell(value, unit)
    return value_cell(run, f"summary.{wanted[0][0]}")


def memory_cell(run: Run) -> Cell:
    """The most specific peak memory that was measured, in GiB, with the name of what it is."""
    for key, name in MEMORY:
        value = run.number(f"memory.{key}")
        if value is not None:
            cell = number_cell(value, scale=GIB)
            return Cell(f"{cell.text} GiB {name}{_rank(run)}", cell.sort, "number")
    return value_cell(run, "memory.process_peak_bytes")


def _rank(run: Run) -> str:
    ranks = run.value("memory.per_rank")
    rank = run.value("memory.max_rank")
    return f" (rank {rank})" if isinstance(ranks, list) and len(ranks) > 1 and isinstance(rank, int) else ""


def command_cell(run: Run) -> Cell:
    """The command that reproduces the row; a stage's row names its pipeline, whose row has the command."""
    pipeline, _, stage = run.name.rpartition("/")
    if pipeline and stage:
        return text_cell(f"with {pipeline}")
    command = command_text(run.data.get("command"))
    return missing_cell("the record holds no command", applies=False) if command is None else code_cell(command)


def summary_table(runs: Iterable[Run]) -> Table:
    """One row per run: status, wall seconds, step time, throughput, peak memory, command."""
    rows = tuple(
        (
            text_cell(run.label),
            text_cell(run.kind),
            status_cell(run),
            value_cell(run, "seconds"),
            value_cell(run, "summary.step_seconds_median"),
            throughput_cell(run),
            memory_cell(run),
            command_cell(run),
        )
        for run in runs
    )
    columns = ("run", "kind", "status", "wall (s)", "step (s, median)", "throughput", "peak memory", "reproduce this")
    return Table("summary", "Summary", columns, rows)


def performance_table(runs: Iterable[Run]) -> Table:
    """Step time, throughput and memory of every run that has measured steps or frames, each memory by its name."""
    numbers = (
        ("seconds per step, median", "summary.step_seconds_median", 1),
        ("fastest step (s)", "summary.step_seconds_min", 1),
        ("slowest step (s)", "summary.step_seconds_max", 1),
        ("steps counted", "summary.steps_counted", 1),
        ("steps excluded", "summary.steps_excluded", 1),
        ("compile (s)", "compile_seconds", 1),
        ("samples/s", "summary.samples_per_second", 1),
        ("samples/s per card", "summary.samples_per_second_per_card", 1),
        ("frames/s", "summary.frames_per_second", 1),
        ("tokens/s", "summary.tokens_per_second", 1),
        ("device allocated, peak (GiB)", "memory.device_allocated_peak_bytes", GIB),
        ("device reserved, peak (GiB)", "memory.device_reserved_peak_bytes", GIB),
        ("process high-water mark (GiB)", "memory.process_peak_bytes", GIB),
    )
    rows = tuple(
        (
            text_cell(run.label),
            code_cell(short_digest(run.data.get("recipe_digest")) or "not recorded"),
            *(value_cell(run, dotted, scale=scale) for _, dotted, scale in numbers),
            command_cell(run),
        )
        for run in runs
        if applies(run, "summary.samples_per_second")
    )
    columns = ("run", "recipe digest", *(title for title, _, _ in numbers), "reproduce this")
    note = "Memory is the largest rank's, never a sum. Steps tagged compile, checkpoint, gc or eval are left out."
    return Table("performance", "Step time, throughput and memory", columns, rows, note, "no run measures steps")


def stage_table(runs: Iterable[Run]) -> Table:
    """Each timed stage inside each run: seconds, share of the run, items and frames per second."""
    rows = []
    for run in runs:
        total = run.number("seconds")
        for stage in run.rows("stages"):
            seconds = finite(stage.get("seconds"))
            share = number_cell(100 * seconds / total, "%") if seconds is not None and total else _no("no wall time")
            timed = _no("the stage has no time") if seconds is None else number_cell(seconds)
            rates = [cell for key in ("items", "frames") for cell in _count_and_rate(stage.get(key), seconds, key)]
            peak = finite(stage.get("process_peak_bytes"))
            memory = _no("not read in this stage") if peak is None else number_cell(peak, scale=GIB)
            named = (text_cell(run.label), text_cell(stage.get("name", "")))
            rows.append((*named, timed, share, *rates, memory, command_cell(run)))
    columns = (
        "run", "stage", "seconds", "of the run", "items", "items/s", "frames", "frames/s",
        "process high-water mark so far (GiB)", "reproduce this",
    )  # fmt: skip
    note = "Stages nest: an inner stage's seconds are part of the outer one's."
    return Table("stages", "Stage breakdown", columns, tuple(rows), note, "no run timed a stage")


def _no(reason: str) -> Cell:
    return missing_cell(reason, applies=False)


def _count_and_rate(count: Any, seconds: float | None, what: str) -> tuple[Cell, Cell]:
    number = finite(count)
    if number is None:
        nothing = _no(f"the stage counts no {what}")
        return nothing, nothing
    return number_cell(number), number_cell(number / seconds) if seconds else _no("the stage has no time")


def failure_table(runs: Iterable[Run]) -> Table:
    """Every run that did not end ok and every item that failed inside a run."""
    rows = []
    for run in runs:
        if run.status in FAILED or run.status == "skipped":
            reason = text_cell(run.data.get("reason") or "the record gives no reason")
            rows.append((text_cell(run.label), status_cell_short(run), _no("the whole run"), text_cell(""), reason))
        # A pipeline repeats the failures of the stage that failed; they are listed once, at that stage.
        for failure in () if run.kind == "pipeline" else run.rows("failures"):
            row = failure.get("row")
            where = _no("no row") if row is None else number_cell(row) if finite(row) is not None else text_cell(row)
            item, message = (text_cell(failure.get(key) or "") for key in ("item", "message"))
            rows.append((text_cell(run.label), status_cell_short(run), where, item, message))
    columns = ("run", "status", "row", "item", "what happened")
    return Table("failures", "Failures and skipped runs", columns, tuple(rows), empty="nothing failed")


def status_cell_short(run: Run) -> Cell:
    """The status alone."""
    return Cell(run.status, run.status, "status")


def metric_table(runs: Iterable[Run]) -> Table:
    """Each metric a run recorded, with its unit or the reason why it is missing."""
    rows = []
    for run in runs:
        for name, metric in run.section("metrics").items():
            entry = metric if isinstance(metric, dict) else {"value": metric}
            value = finite(entry.get("value"))
            reason = entry.get("reason") or run.null_reason(f"metrics.{name}.value")
            shown = missing_cell(str(reason)) if value is None else number_cell(value, clean(entry.get("unit") or ""))
            rows.append((text_cell(run.label), text_cell(name), shown, command_cell(run)))
    columns = ("run", "metric", "value", "reproduce this")
    return Table("metrics", "Metrics", columns, tuple(rows), empty="no run recorded a metric")


def record_table(runs: Iterable[Run]) -> Table:
    """Where each record lies and the code it was made with."""
    rows = []
    for run in runs:
        commit, dirty = run.value("code.commit"), run.value("code.dirty")
        code = _no(run.null_reason("code.commit"))
        if isinstance(commit, str) and commit:
            code = code_cell(short_digest(commit) + (" + local changes" if dirty else ""))
        digest = code_cell(short_digest(run.data.get("recipe_digest")) or "not recorded")
        started = text_cell(run.data.get("started") or "not recorded")
        rows.append((text_cell(run.label), status_cell_short(run), started, digest, code, code_cell(str(run.path))))
    columns = ("run", "status", "started", "recipe digest", "code", "record")
    return Table("records", "Records", columns, tuple(rows))


def notice_table(collection: Collection, notices: Iterable = ()) -> Table:
    """One row for each file that could not be read or shown."""
    rows = tuple((code_cell(n.path), text_cell(n.message)) for n in (*collection.notices, *notices))
    return Table("warnings", "Warnings", ("file", "what is wrong"), rows, empty="no warnings")


def environment_table(runs: Iterable[Run]) -> Table:
    """Each fact of the environment; where runs differ, every value with the number of runs that have it."""
    seen: dict[str, dict[str, int]] = {}
    for run in runs:
        for key, value in flatten(run.section("environment")).items():
            if not key:
                continue
            text = f"n/a ({run.null_reason(f'environment.{key}')})" if value is None else _plain(value)
            counts = seen.setdefault(key, {})
            counts[text] = counts.get(text, 0) + 1
    rows = tuple((text_cell(key), _several(counts)) for key, counts in sorted(seen.items()))
    return Table("environment", "Environment", ("what", "value"), rows, empty="no record describes its environment")


def _plain(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, (str, int, float)) for item in value):
        return ", ".join(str(item) for item in value) or "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _several(counts: dict[str, int]) -> Cell:
    if len(counts) == 1:
        only = next(iter(counts))
        return Cell(clean(only), clean(only), "missing" if only.startswith("n/a (") else "")
    common = sorted(counts.items(), key=lambda pair: -pair[1])
    shown = "; ".join(f"{text} ({count} run{'s' if count != 1 else ''})" for text, count in common[:_MAX_VALUES])
    return text_cell(shown + (f"; and {len(common) - _MAX_VALUES} more" if len(common) > _MAX_VALUES else ""))
