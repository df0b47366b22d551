"""Memory of a run over its phases, and by what it holds where the record says so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from reports.collect import Run, finite
from reports.plots import MAX_RUNS, SERIES, Plot, add_legend, finished, new_figure, short_label
from reports.render import GIB, Cell, Table, missing_cell, number_cell, text_cell
from reports.tables import command_cell

_READINGS = (
    ("device_allocated_peak_bytes", "device allocated, peak"),
    ("device_reserved_peak_bytes", "device reserved, peak"),
    ("process_peak_bytes", "process high-water mark so far"),
)


def memory_tables(runs: Iterable[Run]) -> tuple[Table, ...]:
    """One row a phase (or timed stage) of a run, and one for each class of bytes that a run counted; none without."""
    rows = tuple(row for run in runs for row in (*_phase_rows(run), *_class_rows(run)))
    if not rows:
        return ()
    columns = (
        "run",
        "phase or class",
        "rank",
        *(f"{title} (GiB)" for _, title in _READINGS),
        "held (GiB)",
        "reproduce this",
    )
    note = (
        "Phases in their order. A high-water mark never falls, so what it shows is which phase raised it. Classes are "
        "counted from shapes and types and need no device counter."
    )
    return (Table("memory", "Memory by phase and class", columns, rows, note),)


def phases(run: Run) -> list[dict[str, Any]]:
    """The phases a record measured; where it has none, its outer timed stages."""
    measured = run.value("memory.phases")
    if isinstance(measured, list) and measured:
        return [phase for phase in measured if isinstance(phase, dict)]
    return [stage for stage in run.rows("stages") if "/" not in str(stage.get("name", "/"))]


def _phase_rows(run: Run) -> Iterator[tuple[Cell, ...]]:
    for phase in phases(run):
        values = [finite(phase.get(key)) for key, _ in _READINGS]
        if any(value is not None for value in values):
            rank = finite(phase.get("rank"))
            cells = (
                missing_cell("not read in this phase", applies=False) if v is None else number_cell(v, scale=GIB)
                for v in values
            )
            shown = missing_cell("one process", applies=False) if rank is None else number_cell(rank)
            nothing = missing_cell("a phase's peak, not what it holds", applies=False)
            yield (text_cell(run.label), text_cell(phase.get("name", "")), shown, *cells, nothing, command_cell(run))


def _class_rows(run: Run) -> Iterator[tuple[Cell, ...]]:
    """Notes such as ``optimizer_state_bytes: {m: ..., v: ...}``."""
    for key, note in run.section("notes").items():
        if not key.endswith("_bytes") or not isinstance(note, dict):
            continue
        for name, value in note.items():
            if (held := finite(value)) is not None:
                title = f"{key.removesuffix('_bytes').replace('_', ' ')}: {name}"
                nothing = missing_cell("counted, not read", applies=False)
                yield (
                    text_cell(run.label), text_cell(title), nothing, *[nothing] * len(_READINGS),
                    number_cell(held, scale=GIB), command_cell(run),
                )  # fmt: skip


def memory_plot(runs: Sequence[Run]) -> Plot | None:
    """Memory at the end of each outer stage against the time spent till then, for the first six runs that read it."""
    having = [(run, points) for run in runs if run.kind != "pipeline" and len(points := _points(run)) > 1]
    if not having:
        return None
    figure, axes = new_figure(2.7)
    for color, (run, points) in zip(SERIES, having, strict=False):
        x, y = zip(*points, strict=True)
        axes.step(x, y, where="pre", color=color, linewidth=1.4, marker="o", markersize=3, label=short_label(run.label))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds of the run's stages")
    axes.set_ylabel("GiB")
    add_legend(axes, len(having[:MAX_RUNS]))
    caption = "Process high-water mark at the end of each stage: it never falls, a step shows what raised it."
    caption += f" The first {MAX_RUNS} of {len(having)} runs." if len(having) > MAX_RUNS else ""
    return finished("memory", "Memory over time", caption, figure)


def _points(run: Run) -> list[tuple[float, float]]:
    clock, points = 0.0, []
    for stage in run.rows("stages"):
        seconds, peak = finite(stage.get("seconds")), finite(stage.get("process_peak_bytes"))
        if "/" in str(stage.get("name", "/")) or seconds is None:
            continue
        clock += seconds
        if peak is not None:
            points.append((clock, peak / GIB))
    return points
