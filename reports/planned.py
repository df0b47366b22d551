"""What was planned beside what was counted: the classes of bytes of training runs, and the plan's picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bench.plan.dryrun import kept
from reports.collect import Run, finite
from reports.plan_plot import plan_bars
from reports.plots import Plot
from reports.render import GIB, Cell, Table, missing_cell, number_cell, text_cell
from reports.tables import command_cell, device

CLASSES = ("parameters", "masters", "gradients", "optimizer", "ema")
_UPDATE = "optimiser update"  # the phase in which every gradient is there


def planned_tables(runs: Iterable[Run]) -> tuple[Table, ...]:
    """A row for each class of a run whose record has both a plan and counted bytes, and one for its peak.

    Where a DryRun was kept beside one (``cogbench plan --dry-run --into``) its peak is a third column.
    """
    found = [(run, kept(run.folder, run.data["recipe_digest"])) for run in runs]
    simulated = any(peak is not None for _, peak in found)
    rows = tuple(row for run, peak in found for row in _rows(run, _dry_run(peak) if simulated else None))
    if not rows:
        return ()
    third = ("DryRun (GiB)",) if simulated else ()
    columns = ("run", "class", "planned (GiB)", "counted (GiB)", *third, "difference (bytes)", "reproduce this")
    note = (
        "Planned from the recipe alone (cogbench plan), counted from the tensors that one process held. A class that "
        "differs is one that the formulas and the code disagree on."
    )
    return (Table("planned", "Memory by class: planned and counted", columns, rows, note),)


def _rows(run: Run, simulated: Cell | None) -> Iterator[tuple[Cell, ...]]:
    plan, counted = run.value("notes.plan"), run.value("notes.held_bytes")
    if not isinstance(plan, dict) or not plan.get("planned") or not isinstance(counted, dict):
        return
    update = next((p["bytes"] for p in plan["phases"] if p["name"] == _UPDATE), {})
    for name in CLASSES:
        wanted, found = finite(update.get(name)), finite(counted.get(name))
        if wanted is not None or found is not None:
            third = (missing_cell("DryRun tells no classes", applies=False),) if simulated is not None else ()
            yield _row(run, name, wanted or 0, _counted(found), third)
    peak = plan["peak"]
    measured = run.number("memory.device_allocated_peak_bytes")
    reason = "no device counter: a process's mark holds its libraries, too" if device(run) == "cpu" else "not read"
    yield _row(
        run, f"peak, in {peak['phase']}", peak["total"], measured, () if simulated is None else (simulated,), reason
    )


def _dry_run(found: dict[str, Any] | str | None) -> Cell:
    """The cell of the third column, of what was kept beside a run."""
    if isinstance(found, dict):
        return number_cell(found["peak_bytes"], scale=GIB)
    return missing_cell(found or "cogbench plan --dry-run was not run for it", applies=False)


def _counted(found: float | None) -> float:
    return 0 if found is None else found


def _row(
    run: Run, name: str, wanted: float, found: float | None, third: tuple[Cell, ...], reason: str = ""
) -> tuple[Cell, ...]:
    shown = missing_cell(reason, applies=False) if found is None else number_cell(found, scale=GIB)
    moved = missing_cell(reason, applies=False) if found is None else number_cell(int(found) - int(wanted))
    return (
        text_cell(run.label),
        text_cell(name),
        number_cell(wanted, scale=GIB),
        shown,
        *third,
        moved,
        command_cell(run),
    )


def planned_plot(runs: Sequence[Run]) -> Plot | None:
    """The stacked bars of the run with the largest planned peak; None where no record has a plan."""
    found = [(run, plan) for run in runs if isinstance(plan := run.value("notes.plan"), dict) and plan.get("planned")]
    if not found:
        return None
    run, plan = max(found, key=lambda pair: pair[1]["peak"]["total"])
    return plan_bars(plan, run.label)
