"""The training table and the validation curve; all numbers are invented."""

from __future__ import annotations

from reports.collect import collect
from reports.plots import loss_curve
from reports.training import training_tables
from tests.reports import samples


def _steps(validated: bool):
    made = samples.steps(6)
    for step in made:
        step["extra"] = {"lr": 1e-4 * (step["index"] + 1), "grad_norm": 2.0 + step["index"]}
    made[3]["extra"]["grad_norm"] = "inf"
    check = {"index": 5, "seconds": 9.0, "loss": 0.75, "loss_hex": (0.75).hex(), "tags": ("eval",)}
    return [*made, check] if validated else made


def _table(folder):
    (table,) = training_tables(collect([folder]).runs)
    return [dict(zip(table.columns, (cell.text for cell in row), strict=True)) for row in table.rows]


def test_what_a_run_recorded_is_in_its_row(tmp_path):
    metrics = {
        "validation_loss": {"value": 0.75, "unit": "1"},
        "data_wait_share": {"value": None, "unit": "1", "reason": "no step after the compiled ones"},
    }
    notes = {"trained": {"method": "lora"}, "skipped_steps": 2, "resumed": {"step": 4}}
    samples.write(tmp_path / "a", name="invented", steps=_steps(True), metrics=metrics, notes=notes)
    (row,) = _table(tmp_path)
    assert [row[name] for name in ("trained", "steps", "skipped steps")] == ["lora", "6", "2"]
    assert float(row["last validation loss"]) == 0.75
    assert [float(row[f"gradient norm, {name}"]) for name in ("median", "largest")] == [4.0, 7.0]
    assert row["resumed at step"] == "4"
    assert "no step after the compiled ones" in row["share of time waiting for data"]


def test_a_run_that_says_less_has_reasons_in_its_row(tmp_path):
    samples.write(tmp_path / "a", name="invented", steps=_steps(False))
    (row,) = _table(tmp_path)
    assert "no validation" in row["last validation loss"]
    assert "began at step 0" in row["resumed at step"]


def test_there_is_no_table_without_training(tmp_path):
    samples.write(tmp_path / "a", kind="generate", name="invented")
    assert training_tables(collect([tmp_path]).runs) == []


def test_validation_losses_are_a_curve_of_their_own(tmp_path):
    samples.write(tmp_path / "a", name="invented", steps=_steps(True))
    samples.write(tmp_path / "b", name="invented2", steps=_steps(False))
    runs = collect([tmp_path]).runs
    plot = loss_curve(runs)
    assert plot is not None
    assert "Dashed, squares: validation loss" in plot.caption
    without = loss_curve([run for run in runs if run.label == "invented2"])
    assert without is not None
    assert "validation" not in without.caption
    assert "no finite loss" not in plot.caption
