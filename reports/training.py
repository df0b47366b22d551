"""What training runs recorded besides time: losses, learning rate, gradient norms, skipped steps, waiting for data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from reports.collect import Run, finite
from reports.render import Cell, Table, missing_cell, number_cell, text_cell


def training_tables(runs: Iterable[Run]) -> list[Table]:
    """One table of the runs of kind train, none without such runs."""
    rows = tuple(_row(run) for run in runs if run.kind == "train")
    if not rows:
        return []
    columns = (
        "run", "trained", "steps", "first loss", "last loss", "last validation loss", "last learning rate",
        "gradient norm, median", "gradient norm, largest", "skipped steps", "share of time waiting for data",
        "resumed at step",
    )  # fmt: skip
    note = (
        "Gradient norms are before clipping. The share of waiting is that of steps that did not compile. A resumed "
        "run's steps are those of its own process."
    )
    return [Table("training", "Training", columns, rows, note)]


def _row(run: Run) -> tuple[Cell, ...]:
    steps = [step for step in run.rows("steps") if "eval" not in (step.get("tags") or ())]
    losses, norms = _numbers(steps, "loss"), _numbers([_extra(step) for step in steps], "grad_norm")
    rates = _numbers([_extra(step) for step in steps], "lr")
    none = "the run has no finite one"
    return (
        text_cell(run.label),
        text_cell(run.value("notes.trained.method") or run.value("recipe.train.method") or "sft"),
        number_cell(len(steps)),
        number_cell(losses[0]) if losses else missing_cell(none),
        number_cell(losses[-1]) if losses else missing_cell(none),
        _recorded(run, "metrics.validation_loss.value", "the recipe asks for no validation"),
        number_cell(rates[-1]) if rates else missing_cell(none),
        number_cell(median(norms)) if norms else missing_cell(none),
        number_cell(max(norms)) if norms else missing_cell(none),
        _recorded(run, "notes.skipped_steps", "the run ended before it could say"),
        _recorded(run, "metrics.data_wait_share.value", _reason(run)),
        _recorded(run, "notes.resumed.step", "the run began at step 0"),
    )


def _reason(run: Run) -> str:
    return str(run.value("metrics.data_wait_share.reason") or "the run ended before it could say")


def _recorded(run: Run, dotted: str, why: str) -> Cell:
    value = run.number(dotted)
    return missing_cell(why, applies=False) if value is None else number_cell(value)


def _extra(step: dict[str, Any]) -> dict[str, Any]:
    extra = step.get("extra")
    return extra if isinstance(extra, dict) else {}


def _numbers(rows: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [value for row in rows if (value := finite(row.get(key))) is not None]
