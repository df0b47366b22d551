"""The record's rules: a null needs a reason, zero never stands for missing, files are whole and never replaced."""

from __future__ import annotations

import json

import pytest

from bench import record as records
from tests.bench.record_example import SCHEMA_FILE, example_fields, schema_text


def _refused(**changes) -> str:
    with pytest.raises(records.RecordError) as caught:
        records.make(**example_fields() | changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _with(section: str, **values) -> dict:
    return {section: example_fields()[section] | values}


def test_schema_file_is_up_to_date():
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text(), "run: python -m tests.bench.record_example"


def test_example_survives_writing_and_reading(tmp_path):
    record = records.make(**example_fields())
    assert records.read(records.write(record, tmp_path)) == record == records.read(tmp_path)
    assert records.Record.model_validate(json.loads(schema_text())["examples"][0]) == record


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"compile_seconds": None}, "compile_seconds"),
        ({"seconds": None}, "seconds"),
        (_with("summary", step_seconds_median=None), "summary.step_seconds_median"),
        (_with("memory", process_peak_bytes=None), "memory.process_peak_bytes"),
        (_with("memory", per_rank=[{"rank": 0}]), "memory.per_rank.0.process_peak_bytes"),
        (_with("code", commit=None), "code.commit"),
        ({"environment": {"cpu": {"model": None}}}, "environment.cpu.model"),
        ({"environment": {"cards": ["a", None]}}, "environment.cards.1"),
    ],
)
def test_a_null_without_a_reason_is_refused(changes, key):
    changes["null_reasons"] = example_fields()["null_reasons"] | {"environment.cpu.governor": ""}
    assert "null without a reason" in _refused(**changes)
    assert key in _refused(**changes)


@pytest.mark.parametrize("reason", ["", "  "])
def test_an_empty_reason_is_no_reason(reason):
    reasons = dict.fromkeys(example_fields()["null_reasons"], reason)
    assert "null without a reason" in _refused(null_reasons=reasons)
    assert "metric null without a reason: fvd" in _refused(
        metrics={"fvd": {"value": None, "unit": "1", "reason": reason}}
    )


def test_a_reason_for_a_value_that_is_there_is_refused():
    reasons = example_fields()["null_reasons"] | {"seconds": "not measured"}
    assert "null_reasons for values that are present or unknown: seconds" in _refused(null_reasons=reasons)


@pytest.mark.parametrize(
    "changes",
    [
        _with("memory", process_peak_bytes=0),
        _with("memory", device_allocated_peak_bytes=0),
        _with("summary", step_seconds_median=0.0),
        _with("summary", samples_per_second=0.0),
        {"compile_seconds": 0.0},
    ],
)
def test_zero_does_not_stand_for_missing(changes):
    assert "greater than 0" in _refused(**changes)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"surprise": 1}, "surprise"),
        ({"status": "passed"}, "status"),
        ({"status": "failed", "reason": None}, "status 'failed' needs a reason"),
        ({"started": "yesterday"}, "started"),
        ({"seconds": float("nan")}, "seconds"),
        ({"metrics": {"psnr": {"value": float("inf"), "unit": "dB"}}}, "metrics.psnr.value"),
    ],
)
def test_wrong_values_are_refused(changes, part):
    assert part in _refused(**changes)


def test_nan_hidden_in_notes_is_not_written(tmp_path):
    record = records.make(**example_fields() | {"notes": {"x": float("nan")}})
    with pytest.raises(records.RecordError, match="holds NaN or infinity"):
        records.write(record, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_record_is_never_replaced(tmp_path):
    record = records.make(**example_fields())
    records.write(record, tmp_path)
    with pytest.raises(records.RecordError, match="never replaced"):
        records.write(record, tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "damaged record"),
        (records.dump(records.make(**example_fields()))[:-40], "damaged record"),
        ("[]", "schema_version None, need 1"),
        ('{"schema_version": 2}', "schema_version 2, need 1: use the cogbench that wrote it"),
        ('{"schema_version": 1}', "damaged record: id: Field required"),
        ("\xff\xfe", "damaged record"),
    ],
)
def test_a_damaged_record_says_so_in_one_line(tmp_path, text, message):
    (tmp_path / "record.json").write_text(text, encoding="latin-1")
    with pytest.raises(records.RecordError) as caught:
        records.read(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "record.json" in str(caught.value)


def test_find_warns_about_damaged_records_and_reads_the_others_in_order(tmp_path):
    for name, started in (("b", "2026-11-22T10:00:00Z"), ("a", "2026-11-22T11:00:00Z")):
        records.write(records.make(**example_fields() | {"id": name, "started": started}), tmp_path / name)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "record.json").write_text("{")
    found, warnings = records.find([tmp_path, tmp_path / "a"])
    assert [record.id for _, record in found] == ["b", "a"]
    assert len(warnings) == 1
    assert "damaged record" in warnings[0]
    with pytest.raises(records.RecordError, match="no such folder"):
        records.find([tmp_path / "missing"])
    with pytest.raises(records.RecordError, match="no record there"):
        records.read(tmp_path)
