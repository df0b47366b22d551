"""Planned beside counted bytes."""

from __future__ import annotations

from bench.plan.dryrun import FILE, keep
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


def test_a_dry_run_is_a_third_column(tmp_path):
    held = {"parameters": GIB, "gradients": GIB}
    for name in ("with", "without", "other"):
        samples.write(tmp_path / name, notes={"plan": PLAN, "held_bytes": held})
    runs = collect([tmp_path]).runs
    digest = runs[0].data["recipe_digest"]
    (plain,) = planned_tables(runs)
    assert "DryRun (GiB)" not in plain.columns
    keep(tmp_path / "with", digest, {"peak_bytes": 5 * GIB, "lines": {}, "operations": "exit code 0"})
    keep(tmp_path / "other", "of another", {"peak_bytes": 5 * GIB, "lines": {}, "operations": "exit code 0"})
    (table,) = planned_tables(runs)
    place = table.columns.index("DryRun (GiB)")
    peaks = {run.folder.name: row[place].text for run, row in zip(runs, table.rows[3::4], strict=True)}
    assert peaks["with"] == "5.00"
    assert "was not run for it" in peaks["without"]
    assert "of another recipe" in peaks["other"]
    assert all("tells no classes" in row[place].text for row in table.rows[0::4])
    (tmp_path / "with" / FILE).write_text("{")
    (table,) = planned_tables(runs)
    assert any("can't be read" in row[place].text for row in table.rows)


def test_no_plan_or_nothing_counted_is_no_table(tmp_path):
    held = {"parameters": GIB}
    samples.write(tmp_path / "a", notes={"plan": {"planned": False, "reason": "no model"}, "held_bytes": held})
    samples.write(tmp_path / "b", notes={"held_bytes": held})
    samples.write(tmp_path / "c", notes={"plan": PLAN})
    runs = collect([tmp_path]).runs
    assert planned_tables(runs) == ()
    assert planned_plot([run for run in runs if run.value("notes.plan") != PLAN]) is None
