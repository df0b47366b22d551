"""Tables say what records say: units, reasons of missing values, never blank and never a false 0."""

from __future__ import annotations

import pytest

from core.errors import UserError
from reports import tables
from reports.build import build_report
from reports.collect import Run, collect
from reports.render import Cell, Table, clean, command_text, missing_cell, number_text
from tests.reports import samples


def _run(folder, **changes) -> Run:
    return collect([samples.write(folder, **changes)]).runs[0]


def _row(table: Table, index: int = 0) -> dict[str, Cell]:
    return dict(zip(table.columns, table.rows[index], strict=True))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0239, "0.0239"),
        (0.4321, "0.432"),
        (12.345, "12.3"),
        (1234.5, "1,234"),
        (0, "0"),
        (3, "3"),
        (4e-9, "4.00e-09"),
    ],
)
def test_number_text(value, shown):
    assert number_text(value) == shown


def test_summary_shows_units_and_the_name_of_the_memory(tmp_path):
    row = _row(tables.summary_table([_run(tmp_path, steps=samples.steps(4))]))
    assert row["wall (s)"].text == "12.5"
    assert row["step (s, median)"].text == "0.432"  # of 0.432, 0.444 and 0.426; the compile step is left out
    assert row["throughput"].text == "4.63 samples/s"
    assert row["peak memory"].text == "1.50 GiB process high-water mark"
    assert row["reproduce this"].text == "cogbench run invented.yaml"


def test_device_memory_of_a_card_is_preferred_and_names_its_rank(tmp_path):
    run = _run(tmp_path)
    run.data["memory"] |= {"device_allocated_peak_bytes": 2**34, "max_rank": 3, "per_rank": [{}, {}, {}, {}]}
    assert tables.memory_cell(run).text == "16.0 GiB device allocated (rank 3)"


def test_missing_values_keep_their_reason_and_are_never_blank_or_zero(tmp_path):
    run = _run(tmp_path)
    row = _row(tables.performance_table([run]))
    assert row["device allocated, peak (GiB)"].text == f"n/a ({samples.NO_DEVICE})"
    assert row["seconds per step, median"].text == "not measured (the run reported no steps)"
    run.data["null_reasons"] = {}
    assert tables.value_cell(run, "summary.step_seconds_median").text == "not measured (the record gives no reason)"
    run.data["summary"]["step_seconds_median"] = float("nan")
    assert "no finite number" in tables.value_cell(run, "summary.step_seconds_median").text
    run.data["summary"]["step_seconds_median"] = True
    assert tables.value_cell(run, "summary.step_seconds_median").kind == "missing"


def test_a_kind_without_steps_is_not_applicable(tmp_path):
    row = _row(tables.summary_table([_run(tmp_path, kind="make-clips")]))
    assert row["step (s, median)"].text.startswith("n/a (")
    assert row["throughput"].text.startswith("n/a (")


def test_every_cell_of_every_table_has_text(tmp_path):
    collection = collect([samples.pipeline(tmp_path, videos=0)])
    runs = collection.runs
    made = (
        tables.summary_table,
        tables.performance_table,
        tables.stage_table,
        tables.metric_table,
        tables.record_table,
    )
    for make in made:
        table = make(runs)
        assert table.rows
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert all(cell.text for row in table.rows for cell in row)


def test_every_measured_row_has_its_command(tmp_path):
    runs = collect([samples.pipeline(tmp_path, videos=0)]).runs
    for make in (tables.summary_table, tables.performance_table, tables.stage_table, tables.metric_table):
        for row in make(runs).rows:
            pipeline = row[0].text == "invented-quickstart"
            assert row[-1].text.startswith("cogbench run ") if pipeline else row[-1].text == "with invented-quickstart"


def test_stage_breakdown(tmp_path):
    stages = [{"name": "decode", "seconds": 2.5, "items": 5, "frames": 45, "process_peak_bytes": 2**30}]
    row = _row(tables.stage_table([_run(tmp_path, stages=stages)]))
    assert (row["seconds"].text, row["of the run"].text) == ("2.50", "20.0 %")
    assert (row["items/s"].text, row["frames/s"].text) == ("2.00", "18.0")
    assert row["process high-water mark so far (GiB)"].text == "1.00"


def test_failures_list_the_run_and_its_items_and_pipelines_do_not_repeat_them(tmp_path):
    failures = [{"row": 7, "item": "part01/vid001.mp4", "message": "moov atom not found"}]
    bad = _run(tmp_path / "a", status="failed", reason="1 of 8 clips failed", failures=failures)
    assert [row[-1].text for row in tables.failure_table([bad]).rows] == ["1 of 8 clips failed", "moov atom not found"]
    above = _run(tmp_path / "b", kind="pipeline", status="failed", reason="stage x", failures=failures)
    assert [row[-1].text for row in tables.failure_table([above]).rows] == ["stage x"]
    assert tables.failure_table([_run(tmp_path / "c")]).rows == ()


def test_metric_without_value_says_why(tmp_path):
    run = _run(tmp_path, metrics={"psnr": {"value": None, "unit": "dB", "reason": "no reference video"}})
    assert _row(tables.metric_table([run]))["value"].text == "not measured (no reference video)"


def test_environment_names_reasons_and_differences(tmp_path):
    one, two = _run(tmp_path / "a"), _run(tmp_path / "b", name="invented-2")
    two.data["environment"]["python"]["version"] = "3.12.0"
    rows = {row[0].text: row[1].text for row in tables.environment_table([one, two]).rows}
    assert rows["cpu.governor"] == "n/a (no cpufreq in /sys)"
    assert rows["python.version"] == "3.11.0 (1 run); 3.12.0 (1 run)"
    assert rows["ascend.cards"] == "none"


def test_damaged_records_are_one_warning_row_each(tmp_path):
    samples.write(tmp_path / "good")
    for name, text in (("cut", '{"id": "x'), ("list", "[1]"), ("nan", '{"schema_version": 1}'), ("empty", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_text(text)
    (tmp_path / "bytes").mkdir()
    (tmp_path / "bytes" / "record.json").write_bytes(b"\xff\xfe\x00")
    newer = samples.write(tmp_path / "newer", name="invented-newer")
    samples.rewrite(newer, lambda data: data.update(schema_version=2))
    collection = collect([tmp_path])
    assert [run.name for run in collection.runs] == ["invented"]
    assert len(collection.notices) == 6
    assert len(tables.notice_table(collection).rows) == 6
    assert any("schema_version 2" in notice.message for notice in collection.notices)


def test_stages_follow_their_pipeline_in_order_with_short_names(tmp_path):
    folder = samples.pipeline(tmp_path / "run", videos=0)
    labels = [run.label for run in collect([folder, folder / "stages"]).runs]
    wanted = ["make-clips", "make-model", "encode-text", "encode-video", "train", "generate"]
    assert labels == ["invented-quickstart", *wanted]
    # From its record file alone the pipeline still finds its stages.
    assert [run.label for run in collect([folder / "record.json"]).runs] == labels


def test_a_missing_stage_is_a_warning(tmp_path):
    folder = samples.pipeline(tmp_path, videos=0)
    (folder / "stages/05-train/record.json").unlink()
    collection = collect([folder])
    assert len(collection.runs) == 6
    assert "05-train" in collection.notices[0].message


def test_records_naming_each_other_in_a_circle_are_all_shown(tmp_path):
    samples.write(tmp_path / "a", "pipeline", "a", children=["../b/record.json"])
    samples.write(tmp_path / "b", "pipeline", "b", children=["../a/record.json"])
    assert {run.name for run in collect([tmp_path]).runs} == {"a", "b"}


@pytest.mark.parametrize("make", [lambda p: [p / "nowhere"], lambda p: [p], lambda p: []])
def test_folders_without_records_are_the_users_error(tmp_path, make):
    with pytest.raises(UserError):
        collect(make(tmp_path))


def test_out_that_is_a_file_is_the_users_error(tmp_path):
    samples.write(tmp_path / "run")
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        build_report([tmp_path / "run"], tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_small_renderers():
    assert command_text(["cogbench", "run", "a b.yaml"]) == "cogbench run 'a b.yaml'"
    assert command_text([]) is None
    assert clean("\x1b[31mred\x1b[0m\x00\r\nx\ud800") == "red\nx"
    assert missing_cell(" ").text == "not measured (the record gives no reason)"
