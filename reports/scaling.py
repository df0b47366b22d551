"""The same training on more processes: throughput, and how much of the ideal gain is left (derived)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from statistics import median

from reports.collect import Run
from reports.plots import MAX_RUNS, SERIES, Plot, add_legend, finished, new_figure, short_label
from reports.render import Cell, Table, number_cell, text_cell
from reports.tables import command_cell

# What may differ between two points of one line.
_VARIED = ("name", "description", "output", "parallel")


def groups(runs: Iterable[Run]) -> list[dict[int, list[Run]]]:
    """Runs by number of processes, one dict for each experiment that was run on two numbers or more."""
    found: dict[str, dict[int, list[Run]]] = {}
    for run in runs:
        workers = run.value("recipe.runtime.workers")
        if run.status != "ok" or not isinstance(workers, int) or run.number("summary.samples_per_second") is None:
            continue
        recipe = {key: value for key, value in run.section("recipe").items() if key not in _VARIED}
        recipe["runtime"] = {key: value for key, value in recipe["runtime"].items() if key != "workers"}
        key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
        found.setdefault(key, {}).setdefault(workers, []).append(run)
    return [dict(sorted(by.items())) for by in found.values() if len(by) > 1]


def scaling_tables(runs: Iterable[Run]) -> tuple[Table, ...]:
    """A row for each number of processes of each experiment; none where no experiment has two."""
    rows: list[tuple[Cell, ...]] = []
    for by in groups(runs):
        (least, first), *_ = by.items()
        base = _rate(first) / least
        for workers, same in by.items():
            rate = _rate(same)
            rows.append((
                text_cell(same[0].label), number_cell(workers), number_cell(len(same)), number_cell(rate),
                number_cell(rate / workers), number_cell(100 * rate / workers / base, "%"), command_cell(same[0]),
            ))  # fmt: skip
    if not rows:
        return ()
    columns = (
        "run", "processes", "runs", "samples/s", "samples/s per process (derived)", "of ideal (derived)",
        "reproduce this",
    )  # fmt: skip
    note = "Medians over runs. Ideal: each process does as many samples a second as with the fewest processes here."
    return (Table("scaling", "Scaling", columns, tuple(rows), note),)


def scaling_plot(runs: Sequence[Run]) -> Plot | None:
    """Samples per second against processes, a line an experiment, with the ideal from the first point."""
    found = groups(runs)
    if not found:
        return None
    figure, axes = new_figure(2.7)
    for color, by in zip(SERIES, found, strict=False):
        x, y = list(by), [_rate(same) for same in by.values()]
        axes.plot(x, y, color=color, marker="o", markersize=3.5, linewidth=1.4, label=short_label(by[x[0]][0].label))
        axes.plot(x, [y[0] * n / x[0] for n in x], color=color, linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    counts = sorted({n for by in found for n in by})
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("processes")
    axes.set_ylabel("samples per second")
    add_legend(axes, len(found[:MAX_RUNS]))
    return finished("scaling", "Scaling", "Dotted: the first point's throughput times the processes.", figure)


def _rate(runs: Sequence[Run]) -> float:
    return median(value for run in runs if (value := run.number("summary.samples_per_second")) is not None)
