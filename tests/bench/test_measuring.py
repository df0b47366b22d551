"""Memory by phase, load of others, and the vendor's tables; the table texts are written after public outputs of the
tool and the vendor's documentation (no card was here)."""

from __future__ import annotations

import json
import time

import pytest

from bench import load, npu, phases
from bench import record as records
from bench.context import RunContext
from bench.events import EventLog, read_events
from bench.memory import memory_of, parse_cpu_limit
from bench.record import null_keys
from bench.record_parts import DeviceLevel
from bench.runner import run_job
from tests.bench.jobs import job

# 910B3 with one chip an NPU; 33 columns of the last two NPUs left out.
_TABLE_910B = """\
+------------------------------------------------------------------------------------------------+
| npu-smi 24.1.rc2                 Version: 24.1.rc2                                              |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B3               | OK            | 95.4        37                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3364 / 65536         |
+===========================+===============+====================================================+
| 1     910B3               | Warning       | 310.2       61                15   / 15            |
| 0                         | 0000:C2:00.0  | 98          0    / 0          41073/ 65536         |
+===========================+===============+====================================================+
+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| No running processes found in NPU 0                                                            |
+===========================+===============+====================================================+
| 1       0                 | 1333928       |                          | 37709                   |
| 1       0                 | 1333930       | python3.11               | 120                     |
+===========================+===============+====================================================+
"""
# Two chips an NPU, each with a physical id; the second line of an NPU has no power reading.
_TABLE_910C = """\
| npu-smi 25.5.0                   Version: 25.5.0                                                |
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
| 0     Ascend910           | OK            | 178.5       36                0    / 0             |
| 0     0                   | 0000:9D:00.0  | 0           0    / 0          3416 / 65536         |
| 0     Ascend910           | OK            | -           36                0    / 0             |
| 1     1                   | 0000:9F:00.0  | 0           0    / 0          3195 / 65536         |
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
| 0       1                 | 3328327       | python                   | 50119                   |
"""
_MIB = 2**20


def test_the_table_of_a_910b():
    info = npu.parse_info(_TABLE_910B)
    assert info.version == "24.1.rc2"
    assert [(c.id, c.name, c.health, c.hbm_used_bytes // _MIB, c.hbm_total_bytes // _MIB) for c in info.cards] == [
        ("0.0", "910B3", "OK", 3364, 65536),
        ("1.0", "910B3", "Warning", 41073, 65536),
    ]
    assert [(p.card, p.pid, p.name, p.memory_bytes // _MIB) for p in info.processes] == [
        ("1.0", 1333928, "", 37709),
        ("1.0", 1333930, "python3.11", 120),
    ]


def test_the_table_of_cards_with_two_chips():
    info = npu.parse_info(_TABLE_910C)
    assert [(c.id, c.hbm_used_bytes // _MIB) for c in info.cards] == [("0.0", 3416), ("0.1", 3195)]
    assert [(p.card, p.pid) for p in info.processes] == [("0.1", 3328327)]


@pytest.mark.parametrize("text", ["", "dcmi module initialize failed. ret is -8005\n", "| a | b | c |\n" * 3])
def test_other_output_is_no_card(text):
    assert npu.parse_info(text).cards == ()


@pytest.fixture
def cards(tmp_path, monkeypatch):
    """A program called npu-smi that prints what is in a file; returns the file."""
    table = tmp_path / "table.txt"
    table.write_text(_TABLE_910B)
    tool = tmp_path / "npu-smi"
    tool.write_text(f"#!/bin/sh\ncat {table}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return table


def test_device_level_peaks_are_given_above_idle(cards):
    with npu.DeviceWatch(wanted=True, seconds=0.01) as watch:
        cards.write_text(_TABLE_910B.replace("3364 /", "23364/").replace("41073/", "41173/"))
        while not watch._samples:
            watch._stop.wait(0.01)
    result = watch.result()
    assert result is not None
    assert result.net_peak_bytes == 20000 * _MIB
    assert [(c.idle_bytes // _MIB, c.peak_bytes // _MIB) for c in result.cards] == [(3364, 23364), (41073, 41173)]
    assert result.processes_before == ("1.0 1333928", "1.0 1333930 python3.11")
    assert DeviceLevel.model_validate(result.model_dump()) == result


def test_device_level_without_samples_tool_or_cards_is_null_with_a_reason(cards, monkeypatch):
    def result(wanted: bool):
        with npu.DeviceWatch(wanted=wanted, seconds=60) as watch:
            pass
        found = watch.result()
        return None if found is None else (found.net_peak_bytes, found.reason)

    assert result(True) == (None, "the run ended before the first sample")
    monkeypatch.setenv("PATH", "/nowhere")
    assert result(True) == (None, "no npu-smi on this machine")
    assert result(False) is None


def test_names_of_cards_go_into_the_environment(cards):
    from bench import environment

    assert environment.ascend({})["cards"] == ["910B3 64 GiB", "910B3 64 GiB"]


@pytest.mark.parametrize(
    ("text", "cores"),
    [("150000 100000\n", 1.5), ("max 100000\n", None), ("-1 100000", None), ("", None), ("5 0", None)],
)
def test_processor_limits_of_control_groups(text, cores):
    assert parse_cpu_limit(text) == cores


def test_the_load_of_others_by_hand():
    """Ten seconds, 48 busy core-seconds of which 20 ours: others used 2.8 cores, the hypervisor took 0.1."""
    start = load.Reading(clock=100.0, busy=1000.0, steal=5.0, own=7.0)
    end = load.Reading(clock=110.0, busy=1048.0, steal=6.0, own=27.0)
    found = load.window(start, end, logical=8, usable=6)
    assert (found["own_cores"], found["foreign_cores"], found["steal_cores"]) == pytest.approx((2.0, 2.8, 0.1))
    assert found["disturbed"] is True, "2.9 cores are more than the 2 that are not ours and 5 % of 6"
    assert load.window(start, end, logical=9, usable=6)["disturbed"] is False


def test_processor_time_is_read_from_proc(tmp_path):
    text = "cpu  100 20 30 1000 5 3 2 7 9 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n"
    assert load.parse_stat(text) == (155, 7)
    for damaged in ("", "cpu 1 2 3\n", "cpu0 1 2 3 4 5 6 7 8\n"):
        with pytest.raises(ValueError, match="/proc/stat"):
            load.parse_stat(damaged)
    assert load.read(tmp_path) is None
    before = load.read()
    assert before is not None
    assert before.busy > 0
    begin = time.process_time()
    while time.process_time() - begin < 0.3:
        pass
    after = load.read()
    assert after is not None
    # The kernel samples "busy" by ticks and counts a process's own time exactly: the second may be the larger.
    assert after.own - before.own > 0.25
    watch = load.LoadWatch()
    assert watch.finish() is None
    watch.begin()
    assert watch.finish() is None, "too short a window says nothing"


def test_phases_have_names():
    assert [phases.phase_of_stage(name) for name in ("load_vae", "vae_decode", "save")] == ["load", "decode", "save"]
    assert phases.phase_of_step(("compile", "eval")) == "first step"
    assert phases.phase_of_step(("eval",)) == "eval"
    assert phases.phase_of_step(()) == "steady"


def test_each_phase_has_its_own_peak(tmp_path):
    """A phase that held 200 MB for a moment does not raise the phases after it, but the run's peak."""
    events = EventLog(tmp_path / "events.jsonl")
    ctx = RunContext({}, tmp_path, 0, events)
    with ctx.stage("load"):
        held = b"1" * 200_000_000
        del held
    ctx.step(0, 0.1, tags=("compile",))
    ctx.step(1, 0.1)
    with ctx.stage("vae_decode"):
        held = b"1" * 100_000_000
        del held
    found, _ = read_events(tmp_path / "events.jsonl")
    peaks = {e["name"]: e["process"] for e in found if e["type"] == "phase"}
    assert {"start", "load", "first step", "steady", "decode"} <= set(peaks)
    assert peaks["load"] - peaks["steady"] > 190_000_000
    assert peaks["decode"] - peaks["steady"] > 90_000_000
    assert ctx.meter.process_lifetime() == peaks["load"]
    assert phases.largest_process_peak(e for e in found if e["type"] == "phase") == peaks["load"]


def test_device_counters_are_cut_by_phase_too(monkeypatch):
    peaks = iter([(10, 20), (70, 80), (30, 80)])
    now: dict = {}

    class Runtime:
        reset_max_memory_allocated = reset_max_memory_reserved = staticmethod(lambda: None)
        max_memory_allocated = staticmethod(lambda: now["allocated"])
        max_memory_reserved = staticmethod(lambda: now["reserved"])

    class MindSpore:
        runtime = Runtime
        get_context = staticmethod(lambda name: "Ascend")

    monkeypatch.setattr(phases, "_on_a_device", lambda: MindSpore)
    written: list[dict] = []
    meter = phases.PhaseMeter(lambda kind, **fields: written.append(fields))
    for name in ("load", "first step", "steady"):
        now["allocated"], now["reserved"] = next(peaks)
        meter.cut(name)
    assert [(e["name"], e["allocated"], e["reserved"]) for e in written] == [
        ("load", 10, 20), ("first step", 70, 80), ("steady", 30, 80),
    ]  # fmt: skip
    read = {"allocated": 30, "reserved": 80, "reason": None}
    assert meter.device_lifetime(read) == {"allocated": 70, "reserved": 80, "reason": None}
    assert meter.device_lifetime(read | {"allocated": None})["allocated"] is None


def test_every_null_of_a_phase_has_a_reason():
    event = {"name": "load", "process": 5, "allocated": None, "reserved": None, "resettable": False}
    memory, reasons = memory_of(7, None)
    memory = phases.with_phases(memory, reasons, [event | {"process": 4}, event, event | {"name": "x", "rank": 1}])
    assert set(reasons) == set(null_keys({"memory": memory.model_dump(mode="json")}))
    assert [(p.name, p.rank, p.process_peak_bytes) for p in memory.phases] == [("load", 0, None), ("x", 1, None)]
    assert "does not let this process" in reasons["memory.phases.0.process_peak_bytes"]


def test_a_run_records_phases_and_load(tmp_path):
    record = run_job(job(tmp_path, "everything"))
    assert [phase.name for phase in record.memory.phases][:2] == ["start", "outer"]
    assert {"inner", "first step", "steady"} <= {phase.name for phase in record.memory.phases}
    data = json.loads(records.dump(record))
    assert data["memory"]["process_peak_bytes"] >= max(p["process_peak_bytes"] for p in data["memory"]["phases"])
    assert data["load"] is None or data["load"]["window_seconds"] > 0


def test_the_peak_of_a_run_that_was_killed_is_known_though_the_mark_was_set_back(tmp_path):
    record = run_job(job(tmp_path, "peak_then_killed"))
    assert record.signal == "SIGKILL"
    assert (record.memory.process_peak_bytes or 0) > 200_000_000
