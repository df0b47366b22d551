"""Memory by phase and class, and scaling over processes."""

from __future__ import annotations

import pytest

from reports.collect import collect
from reports.memory import memory_plot, memory_tables
from reports.render import GIB
from reports.scaling import scaling_plot, scaling_tables
from tests.reports import samples


def _stages(*peaks):
    return [{"name": f"part{i}", "seconds": 1.0, "process_peak_bytes": peak} for i, peak in enumerate(peaks)]


def test_stages_stand_for_phases_and_notes_for_classes(tmp_path):
    notes = {"optimizer_state_bytes": {"m": GIB, "v": 2 * GIB}, "other": {"m": 1}}
    stages = [*_stages(GIB, 3 * GIB), {"name": "part1/inner", "seconds": 0.5, "process_peak_bytes": 2 * GIB}]
    samples.write(tmp_path, stages=stages, notes=notes)
    runs = collect([tmp_path]).runs
    (table,) = memory_tables(runs)
    rows = [dict(zip(table.columns, (cell.text for cell in row), strict=True)) for row in table.rows]
    assert [row["phase or class"] for row in rows] == ["part0", "part1", "optimizer state: m", "optimizer state: v"]
    assert rows[1]["process high-water mark so far (GiB)"] == "3.00"
    assert rows[1]["device allocated, peak (GiB)"] == "n/a (not read in this phase)"
    assert rows[3]["held (GiB)"] == "2.00"
    plot = memory_plot(runs)
    assert plot is not None
    assert "never falls" in plot.caption


def test_measured_phases_come_before_stages(tmp_path):
    samples.write(tmp_path, stages=_stages(GIB))
    (run,) = collect([tmp_path]).runs
    run.data["memory"]["phases"] = [{"name": "steady", "rank": 1, "device_allocated_peak_bytes": 5 * GIB}]
    (table,) = memory_tables([run])
    assert [cell.text for cell in table.rows[0][1:4]] == ["steady", "1", "5.00"]


def test_nothing_to_show_is_no_table_and_no_plot(tmp_path):
    samples.write(tmp_path)
    runs = collect([tmp_path]).runs
    assert memory_tables(runs) == ()
    assert memory_plot(runs) is None
    assert scaling_tables(runs) == ()
    assert scaling_plot(runs) is None


def _scaled(tmp_path, workers, factor, **more):
    recipe = {"kind": "train", "name": f"w{workers}", "runtime": {"device": "cpu", "workers": workers}, **more}
    steps = [step | {"seconds": step["seconds"] / factor} for step in samples.steps(20)]
    samples.write(tmp_path / f"{workers}{more}", "train", f"invented-{workers}", recipe=recipe, steps=steps)


def test_scaling_by_hand(tmp_path):
    for workers, factor in ((1, 1.0), (2, 1.8)):
        _scaled(tmp_path, workers, factor)
    _scaled(tmp_path, 4, 9.0, seed=7)  # another experiment
    runs = collect([tmp_path]).runs
    (table,) = scaling_tables(runs)
    one, two = table.rows
    assert [row[1].text for row in table.rows] == ["1", "2"]
    first = one[3].sort
    assert isinstance(first, float)
    assert two[3].sort == pytest.approx(1.8 * first)
    assert [row[5].sort for row in table.rows] == [pytest.approx(100), pytest.approx(90)]
    plot = scaling_plot(runs)
    assert plot is not None
    assert "<svg" in plot.svg
