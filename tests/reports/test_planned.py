"""Planned beside counted bytes."""

from __future__ import annotations

from reports.collect import collect
from reports.planned import planned_plot, planned_tables
from reports.render import GIB
from tests.reports import samples

PLAN = {
    "planned": True, "sizes": "a preset", "profile": "a card", "limit": None,
    "phases": [
        {"name": "backward, first block", "total": 6 * GIB, "bytes": {"parameters": GIB, "gradients": 5 * GIB}},
        {"name": "optimiser update", "total": 4 * GIB, "bytes": {"parameters": GIB, "gradients": GIB, "ema": 2 * GIB}},
    ],
    "peak": {"phase": "backward, first block", "total": 6 * GIB},
}  # fmt: skip


def test_a_class_that_differs_shows_by_how_much(tmp_path):
    held = {"parameters": GIB, "gradients": GIB, "optimizer": 3}
    samples.write(tmp_path, notes={"plan": PLAN, "held_bytes": held})
    runs = collect([tmp_path]).runs
    (table,) = planned_tables(runs)
    rows = {row[1].text: [cell.text for cell in row[2:5]] for row in table.rows}
    assert rows["parameters"] == ["1.00", "1.00", "0"]
    assert rows["gradients"] == ["1.00", "1.00", "0"], "all gradients are there in the update only"
    assert rows["optimizer"] == ["0", "2.79e-09", "3"], "counted and not planned"
    assert rows["ema"] == ["2.00", "0", "-2,147,483,648"], "planned and not there"
    assert rows["peak, in backward, first block"][0] == "6.00"
    assert rows["peak, in backward, first block"][1].startswith("n/a (no device counter")
    plot = planned_plot(runs)
    assert plot is not None
    assert "backward, first block" in plot.svg


def test_no_plan_or_nothing_counted_is_no_table(tmp_path):
    held = {"parameters": GIB}
    samples.write(tmp_path / "a", notes={"plan": {"planned": False, "reason": "no model"}, "held_bytes": held})
    samples.write(tmp_path / "b", notes={"held_bytes": held})
    samples.write(tmp_path / "c", notes={"plan": PLAN})
    runs = collect([tmp_path]).runs
    assert planned_tables(runs) == ()
    assert planned_plot([run for run in runs if run.value("notes.plan") != PLAN]) is None
