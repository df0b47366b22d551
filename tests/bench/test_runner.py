"""What the record says about each way a child process can end."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal

import numpy as np
import pytest

import bench.process
from bench import record as records
from bench.context import array_digest
from bench.memory import process_hwm_bytes
from bench.runner import claim_run_dir, exit_code_of, new_run_dir, refuse_simulation, run_job
from core.errors import UserError
from tests.bench.jobs import job


def test_everything_a_task_can_say_is_in_the_record(tmp_path):
    record = run_job(job(tmp_path, "everything"))
    assert (record.status, record.reason, record.exit_code, record.signal) == ("ok", None, 0, None)
    assert record == records.read(tmp_path / "run")
    assert [(s.name, s.items, s.frames) for s in record.stages] == [("outer/inner", 2, 34), ("outer", None, None)]
    assert all(s.process_peak_bytes for s in record.stages)
    assert record.steps[2].loss_hex == (0.2).hex()
    assert record.steps[2].loss == 0.2
    assert (record.summary.steps_counted, record.summary.steps_excluded) == (2, 1)
    assert record.summary.step_seconds_median == 0.25
    assert record.summary.frames_per_second == 136
    assert record.null_reasons["summary.frames_per_second_per_card"] == "ran on the CPU: there is no card"
    assert record.compile_seconds == 0.5
    assert record.metrics["psnr"].value == 31.5
    assert (record.metrics["ssim"].value, record.metrics["ssim"].reason) == (None, "computed as nan")
    assert record.metrics["fvd"].reason == "needs 2048 videos"
    assert record.digests == {"latents": array_digest(np.arange(6, dtype=np.float32).reshape(2, 3))}
    assert record.notes == {"decoder": {"backend": "pyav", "sizes": [8, 3]}}
    (artifact,) = record.artifacts
    assert (artifact.kind, artifact.path, artifact.meta) == ("video", "out/clip.txt", {"fps": 8.0})
    assert artifact.sha256 == hashlib.sha256(b"frames").hexdigest()
    assert record.memory.process_peak_bytes
    assert record.memory.process_hwm_bytes
    assert record.null_reasons["memory.device_allocated_peak_bytes"] == "the run did not load MindSpore"
    assert record.seeds == {"recipe": 7}
    assert record.environment["variables"]["PYTHONHASHSEED"] == "7"
    assert "größe ✓" in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    assert record.log_tail is None
    assert exit_code_of(record) == 0


def test_an_exception_is_a_failed_run_with_its_traceback(tmp_path):
    record = run_job(job(tmp_path, "exception"))
    assert (record.status, record.reason, record.exit_code) == ("failed", "RuntimeError: first line", 4)
    assert "Traceback" in (record.log_tail or "")
    assert len(record.steps) == 1
    assert exit_code_of(record) == 4


def test_a_user_error_is_one_line_and_exit_code_2(tmp_path):
    record = run_job(job(tmp_path, "user_error"))
    assert (record.status, record.exit_code, exit_code_of(record)) == ("failed", 2, 2)
    assert record.reason == "data.csv: got none, | need a file"
    assert (tmp_path / "run" / "log.txt").read_text() == "error: data.csv: got none, | need a file\n"


def test_broken_inputs_fail_the_run_and_are_listed(tmp_path):
    record = run_job(job(tmp_path, "failed_rows"))
    assert (record.status, exit_code_of(record)) == ("failed", 4)
    assert record.reason == "2 inputs could not be processed (see failures)"
    assert [(f.row, f.item, f.message) for f in record.failures] == [
        (3, "vid003.mp4", "moov atom not found"),
        (None, "vid004.mp4", "empty"),
    ]


def test_a_loss_that_is_not_a_number_fails_the_run(tmp_path):
    record = run_job(job(tmp_path, "nan_loss"))
    assert (record.status, record.reason) == ("failed", "loss is nan at step 1")
    assert (record.steps[1].loss, record.steps[1].loss_hex) == (None, "nan")


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("sys_exit", "the task called sys.exit(0)"),
        ("hard_exit", "the process ended with exit code 0 in the middle of its task"),
        ("damaged_events", "events.jsonl is damaged: steps or results are missing"),
    ],
)
def test_an_end_that_looks_like_success_is_a_failure(tmp_path, action, reason):
    record = run_job(job(tmp_path, action))
    assert (record.status, record.reason, exit_code_of(record)) == ("failed", reason, 4)


def test_a_crash_keeps_what_was_reported_before_it(tmp_path):
    record = run_job(job(tmp_path, "abort"))
    assert (record.status, record.signal, record.exit_code) == ("failed", "SIGABRT", None)
    assert record.reason == "killed by SIGABRT in the middle of the task; log: Fatal Python error: Aborted"
    assert len(record.steps) == 1
    assert "fake_task.py" in (record.log_tail or ""), "the fault handler names the Python line"
    assert record.null_reasons["memory.process_hwm_bytes"] == "the process ended before it could report its memory"


def test_wait4_knows_the_peak_of_a_process_that_crashed(tmp_path):
    parent = process_hwm_bytes() or 0
    record = run_job(job(tmp_path, "abort", hold=parent))
    assert record.status == "failed"
    assert (record.memory.process_peak_bytes or 0) > parent
    assert record.memory.process_hwm_bytes is None


def test_sigkill_alone_is_not_called_out_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(bench.process, "oom_kill_count", lambda: {"/sys/fs/cgroup/memory.events": 3})
    record = run_job(job(tmp_path, "kill"))
    assert (record.status, record.signal) == ("failed", "SIGKILL")


def test_sigkill_with_a_risen_kernel_counter_is_out_of_memory(tmp_path, monkeypatch):
    counts = itertools.count(3)
    monkeypatch.setattr(bench.process, "oom_kill_count", lambda: {"/sys/fs/cgroup/memory.events": next(counts)})
    record = run_job(job(tmp_path, "kill"))
    assert (record.status, record.signal, exit_code_of(record)) == ("oom", "SIGKILL", 4)
    assert record.reason == "killed by the kernel for lack of memory (/sys/fs/cgroup/memory.events)"


@pytest.mark.parametrize("action", ["address_space", "backend_out_of_memory", "dies_with_memory_text"])
def test_out_of_memory_is_recognised(tmp_path, action):
    record = run_job(job(tmp_path, action))
    assert (record.status, exit_code_of(record)) == ("oom", 4)


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_timeout_ends_the_whole_group_and_leaves_no_half_file(tmp_path, monkeypatch, stubborn):
    monkeypatch.setattr(bench.process, "_GRACE_SECONDS", 0.3 if stubborn else 5.0)
    record = run_job(job(tmp_path, "sleep", runtime={"timeout_s": 3.0}, ignore_sigterm=stubborn))
    assert (record.status, exit_code_of(record)) == ("timeout", 4)
    out = tmp_path / "run" / "out"
    assert [f.name for f in out.iterdir()] == ["pids"]
    for pid in map(int, (out / "pids").read_text().split()):
        assert not _runs(pid)


def test_unproven_steadiness_is_a_status_only_when_demanded(tmp_path):
    drifting = [0.1] * 6 + [0.2] * 6
    plain = run_job(job(tmp_path / "a", "steady", seconds=drifting))
    assert (plain.status, plain.summary.steady) == ("ok", False)
    import dataclasses

    def demanding(name, seconds):
        return run_job(dataclasses.replace(job(tmp_path / name, "steady", seconds=seconds), require_steady=True))

    drifted, few, steady = demanding("b", drifting), demanding("c", [0.1] * 3), demanding("d", [0.1] * 9)
    assert (drifted.status, exit_code_of(drifted)) == ("unsteady", 5)
    assert drifted.reason == "step times moved by +67 % from the first to the last third"
    assert (few.status, few.reason) == ("unsteady", "needs 9 counted steps, got 3")
    assert (steady.status, exit_code_of(steady)) == ("ok", 0)


def test_records_and_their_folders_are_never_replaced(tmp_path):
    first = job(tmp_path, "nothing")
    before = records.dump(run_job(first))
    with pytest.raises(records.RecordError, match="never replaced"):
        run_job(first)
    assert (tmp_path / "run" / "record.json").read_text() == before
    with pytest.raises(UserError, match="holds a record already"):
        claim_run_dir(tmp_path / "run")
    folders = {new_run_dir("a b", "0123456789", 1, tmp_path) for _ in range(3)}
    assert len(folders) == 3
    assert all(f.name.startswith("a-b-01234567-") for f in folders)


def test_simulation_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MS_SIMULATION_LEVEL", "1")
    with pytest.raises(UserError, match="MS_SIMULATION_LEVEL=1 is set"):
        run_job(job(tmp_path, "nothing"))
    assert not (tmp_path / "run" / "record.json").exists()
    refuse_simulation({})


def test_a_missing_task_is_the_users_error(tmp_path):
    import dataclasses

    record = run_job(dataclasses.replace(job(tmp_path, "nothing"), kind="dance", task_module="bench.tasks.dance"))
    assert record.exit_code == 2
    assert "no task in this version" in (record.reason or "")


def test_a_folder_named_core_beside_the_user_does_not_shadow_ours(tmp_path, monkeypatch):
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "__init__.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    assert run_job(job(tmp_path, "nothing")).status == "ok"


def test_job_file_is_what_the_child_got(tmp_path):
    run_job(job(tmp_path, "nothing"))
    written = json.loads((tmp_path / "run" / "job.json").read_text())
    assert written["recipe"]["action"] == "nothing"
    assert written["parent_pid"] == os.getpid()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIG_DFL)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
