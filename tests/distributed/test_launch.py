"""``cogbench run`` with several ranks: what the record says about each way they can end. Real processes, by msrun."""

from __future__ import annotations

import dataclasses
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from bench import record as records
from bench.cluster import Cluster
from bench.resume import archive_attempt
from bench.runner import exit_code_of, run_job
from core.errors import UserError
from tests.distributed.jobs import ROOT, ranks_job

# Far more than any of these takes; what is bounded must end long before msrun's scheduler gives up by itself.
_BOUND_SECONDS = 90


@pytest.fixture(autouse=True)
def _nothing_stays_behind(tmp_path):
    yield
    left = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or ())]
    assert not left


def test_two_ranks_make_one_record(tmp_path):
    record = run_job(ranks_job(tmp_path, at_rank=1, slowdown=4, bad_rows=0, files=3))
    assert (record.status, record.reason, record.exit_code) == ("ok", None, 0)
    assert record == records.read(tmp_path / "run")
    assert [(row.rank, row.status, row.steps) for row in record.ranks] == [(0, "ok", 4), (1, "ok", 4)]
    assert record.notes["cluster"] == {"workers": 2, "nodes": 1, "node_rank": 0, "slow_ranks": [1]}
    assert record.notes["rank"] == 0
    assert [step.loss for step in record.steps] == [1.0, 1 / 2, 1 / 3, 1 / 4], "rank 0's"
    assert {step.extra["slowest_rank"] for step in record.steps} == {1}
    assert all(step.seconds >= 0.2 for step in record.steps), "the slowest rank's"
    assert [entry.rank for entry in record.memory.per_rank] == [0, 1]
    own = [entry.process_peak_bytes or 0 for entry in record.memory.per_rank]
    assert record.memory.process_peak_bytes == max(own)
    assert record.memory.max_rank == own.index(max(own))
    assert sorted(a.path for a in record.artifacts) == ["out/0.txt", "out/1.txt", "out/2.txt"]
    assert "rank 1 is done" in (tmp_path / "run" / "ranks" / "worker_1.log").read_text()


def test_a_killed_rank_ends_the_others_and_resuming_works(tmp_path):
    job = ranks_job(tmp_path, fault="killed", at_rank=1, steps=200)
    begin = time.monotonic()
    record = run_job(job)
    assert time.monotonic() - begin < _BOUND_SECONDS
    assert (record.status, record.failing_rank, record.signal, exit_code_of(record)) == ("failed", 1, "SIGKILL", 4)
    assert record.reason == "rank 1: killed by SIGKILL in the middle of the task, after 100 steps"
    assert record.ranks[0].reason == "ended because another rank failed"
    assert record.null_reasons["memory.max_rank"].startswith("no rank reported it")
    assert archive_attempt(tmp_path / "run") == 1
    assert (tmp_path / "run" / "attempts" / "01" / "ranks" / "worker_1.log").exists()
    again = run_job(dataclasses.replace(job, data=job.data | {"train": {"resume": "latest"}}))
    assert (again.status, [step.index for step in again.steps]) == ("ok", list(range(100, 200)))


@pytest.mark.parametrize(
    ("fault", "reason", "code"),
    [("broken", "rank 1: RuntimeError: first line", 4), ("wrong_input", "rank 1: data.csv: got none, need a file", 2)],
)
def test_the_failing_ranks_own_words_and_log_are_in_the_record(tmp_path, fault, reason, code):
    record = run_job(ranks_job(tmp_path, fault=fault, at_rank=1, steps=100))
    assert (record.status, record.reason, record.failing_rank) == ("failed", reason, 1)
    assert exit_code_of(record) == code
    assert ("Traceback" if fault == "broken" else "error: data.csv") in (record.log_tail or "")


def test_a_rank_that_hangs_is_named_when_time_is_up_and_leaves_nothing(tmp_path):
    record = run_job(ranks_job(tmp_path, fault="hangs", at_rank=0, runtime={"timeout_s": 25}))
    assert (record.status, record.failing_rank, exit_code_of(record)) == ("timeout", 0, 4)
    assert "rank 0 had finished 2 steps, others up to 4" in (record.reason or "")
    assert (record.seconds or 0) < 40
    out = tmp_path / "run" / "out"
    assert [f.name for f in out.iterdir()] == ["pids"], "no half file"
    assert not any(_runs(int(pid)) for pid in (out / "pids").read_text().split())


def test_inputs_that_failed_on_any_rank_are_in_the_record(tmp_path):
    """The rank that has them ends first; the other still gets to the end of its own."""
    record = run_job(ranks_job(tmp_path, bad_rows=3, steps=20, step_seconds=0.02, at_rank=1, slowdown=20))
    assert (record.status, record.reason) == ("failed", "3 inputs could not be processed (see failures)")
    assert [row.steps for row in record.ranks] == [20, 20]
    assert (record.failing_rank, exit_code_of(record)) == (None, 4)
    assert sorted(failure.item for failure in record.failures) == ["vid0.mp4", "vid1.mp4", "vid2.mp4"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_the_command(tmp_path, signum):
    job = ranks_job(tmp_path, steps=2000)
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path; from bench.runner import run_job; from tests.distributed.jobs import ranks_job\n"
        f"run_job(ranks_job(Path({str(tmp_path)!r}), steps=2000))"
    )
    command = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    events = [job.run_dir / "ranks" / f"events_{rank}.jsonl" for rank in (0, 1)]
    deadline = time.monotonic() + _BOUND_SECONDS
    while not all(f.exists() and '"step"' in f.read_text() for f in events):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    below = psutil.Process(command.pid).children(recursive=True)
    assert len(below) >= 3
    command.send_signal(signum)
    command.wait(30)
    _, alive = psutil.wait_procs(below, timeout=20)
    assert not alive
    if signum == signal.SIGINT:
        record = records.read(job.run_dir)
        assert (record.status, record.reason) == ("failed", "interrupted by the user")


def test_a_port_that_is_taken_is_refused_at_once(tmp_path):
    from bench.cluster import parse_nodes

    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        nodes = parse_nodes(2, 0, f"127.0.0.1:{other.getsockname()[1]}")
        with pytest.raises(UserError, match=r"port \d+ is in use"):
            run_job(dataclasses.replace(ranks_job(tmp_path), nodes=nodes))
    assert not (tmp_path / "run" / "record.json").exists()


def test_a_port_taken_between_choosing_and_starting_ends_in_a_record(tmp_path, monkeypatch):
    """The ranks need MindSpore's own rendezvous here: a task without it never touches the port."""
    monkeypatch.setattr("bench.cluster._ONE_NODE_SECONDS", 20)
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        cluster = Cluster(workers=2, nodes=1, node_rank=0, host="127.0.0.1", port=other.getsockname()[1])
        monkeypatch.setattr("bench.runner.cluster_of", lambda runtime, nodes: cluster)
        begin = time.monotonic()
        record = run_job(ranks_job(tmp_path, module="tests.distributed.joined_ranks"))
    assert time.monotonic() - begin < _BOUND_SECONDS
    assert (record.status, exit_code_of(record)) == ("failed", 4)
    assert record.log_tail


@pytest.mark.parametrize(("what", "fault"), [("recipe digest", "other_recipe"), ("code commit", "other_code")])
def test_ranks_that_differ_are_refused_before_the_first_step(tmp_path, what, fault):
    record = run_job(ranks_job(tmp_path, module="tests.distributed.joined_ranks", fault=fault, at_rank=1))
    assert (record.status, exit_code_of(record)) == ("failed", 2)
    assert f"has {what} 0000" in (record.reason or "")
    assert "need the same on all" in (record.reason or "")
    assert not record.steps


def test_ranks_that_agree_meet_and_go_on(tmp_path):
    record = run_job(ranks_job(tmp_path, module="tests.distributed.joined_ranks"))
    assert (record.status, record.reason) == ("ok", None)
    assert record.notes["sum of ranks"] == 1
    assert len(record.steps) == 4


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
