"""Numbers for msrun, and one record from several ranks' events; no processes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bench import rank_merge
from bench.cli import main
from bench.cluster import ONE_NODE, cluster_of, msrun_command, parse_nodes, rank_events
from bench.memory import memory_of_ranks
from bench.process import Ended
from bench.rank import refuse_differences
from bench.rank_merge import RankRun, classify_ranks, dealt, failing_rank, merged_events, rank_ends, read_ranks
from bench.rank_watch import RankWatch
from core.errors import UserError

_NOWHERE = Path("nowhere.log")


def test_ranks_of_a_node_and_the_command_that_starts_them(tmp_path):
    cluster = cluster_of({"workers": 16}, parse_nodes(2, 1, "10.0.0.1:8118"))
    assert cluster is not None
    assert cluster.local == tuple(range(8, 16))
    command = msrun_command(cluster, tmp_path)
    assert {"--worker_num=16", "--local_worker_num=8", "--master_addr=10.0.0.1", "--master_port=8118"} < set(command)
    assert {"--node_rank=1", "--join=True", f"--log_dir={tmp_path / 'ranks'}", "--cluster_time_out=600"} < set(command)
    assert command[-4:] == ["python", "-m", "bench.child", str(tmp_path)]


def test_one_process_needs_no_launcher_and_several_get_a_free_port():
    assert cluster_of({}, ONE_NODE) is None
    cluster = cluster_of({"workers": 4}, ONE_NODE)
    assert cluster is not None
    assert (cluster.local, cluster.host) == ((0, 1, 2, 3), "127.0.0.1")
    assert 1024 <= cluster.port <= 65535


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, 1, None), "--node-rank: got it without --nodes"),
        ((1, None, "a:8118"), "--master: got it without --nodes"),
        ((2, None, "a:8118"), "--node-rank: got None, need 0 to 1"),
        ((2, 2, "a:8118"), "--node-rank: got 2, need 0 to 1"),
        ((2, 1, "a"), "--master: got a, need HOST:PORT"),
        ((2, 1, "a:80"), "--master: got a:80, need HOST:PORT"),
        ((2, 1, None), "--master: got None, need HOST:PORT"),
    ],
)
def test_nodes_that_do_not_fit_together_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        parse_nodes(*given)


def test_workers_that_the_nodes_do_not_divide_are_refused():
    with pytest.raises(UserError, match="got 9 for 2 nodes, need a multiple of --nodes"):
        cluster_of({"workers": 9}, parse_nodes(2, 1, "a:8118"))


def step(index, seconds, tags=(), **more):
    return {"type": "step", "index": index, "seconds": seconds, "tags": list(tags), "extra": {}} | more


def end(status="ok", reason=None, at=1.0):
    return {"type": "end", "status": status, "reason": reason, "at": at}


def ended(**more):
    return Ended(**{"pid": 1, "seconds": 9.0, "exit_code": 1, "signal": None, "peak_bytes": None} | more)


def test_steps_of_all_ranks_are_one_with_the_longest_time_and_the_rest_is_rank_0s():
    ranks = [
        RankRun(
            0, [step(0, 3.0, ["compile"]), step(1, 1.0, loss=0.5), {"type": "note", "key": "a", "value": 0}], False
        ),
        RankRun(
            1, [step(0, 2.0, ["compile"]), step(1, 4.0, loss=0.7), {"type": "note", "key": "a", "value": 1}], False
        ),
    ]
    events = merged_events(ranks)
    steps = [e for e in events if e["type"] == "step"]
    assert [(s["index"], s["seconds"], s["extra"]["slowest_rank"]) for s in steps] == [(0, 3.0, 0), (1, 4.0, 1)]
    assert steps[1]["loss"] == 0.5
    assert [e["value"] for e in events if e["type"] == "note"] == [0]
    assert ranks[0].events[1]["seconds"] == 1.0, "the ranks' own events stay as they are"
    assert not dealt(ranks)


def test_steps_that_were_dealt_are_all_kept_in_order():
    ranks = [RankRun(0, [step(0, 1.0), step(2, 1.0)], False), RankRun(1, [step(1, 9.0)], False)]
    assert [s["index"] for s in merged_events(ranks)] == [0, 1, 2]
    assert dealt(ranks)
    assert not dealt([ranks[0], RankRun(1, [], False)]), "a rank without rows is no sign of it"


def test_the_slow_rank_is_the_one_that_is_slower_than_the_fastest():
    ranks = [RankRun(r, [step(i, t) for i in range(3)], False) for r, t in enumerate((1.0, 1.1, 1.3, 1.0))]
    rows, slow = rank_ends(ranks, None)
    assert [row.step_seconds_median for row in rows] == [1.0, 1.1, 1.3, 1.0]
    assert slow == [2]


def test_a_ranks_own_time_counts_where_the_task_tells_it_apart_from_waiting():
    ranks = [RankRun(r, [step(0, 5.0, extra={"own_seconds": own})], False) for r, own in enumerate((1.0, 4.9))]
    assert rank_ends(ranks, None)[1] == [1]


def test_the_first_to_fail_is_to_blame_and_not_the_one_that_noticed():
    killed = RankRun(2, [step(0, 1.0)], False, signal="SIGKILL", gone=10.0)
    noticed = RankRun(0, [end("failed", "connection reset", at=10.5)], False, exit_code=4, gone=11.0)
    later = RankRun(1, [], False, gone=12.0)
    assert failing_rank([noticed, later, killed]) is killed
    status, reason, blamed = classify_ranks(ended(), [noticed, later, killed], _NOWHERE)
    assert (status, blamed) == ("failed", killed)
    assert reason == "rank 2: killed by SIGKILL in the middle of the task, after 1 steps"
    status, reason, _ = classify_ranks(ended(oom_kills="/proc/vmstat"), [noticed, later, killed], _NOWHERE)
    assert (status, reason) == ("oom", "rank 2: killed by the kernel for lack of memory (/proc/vmstat)")


def test_a_launcher_that_fails_is_no_success_whatever_the_ranks_say():
    fine = [RankRun(r, [end()], False, gone=2.0) for r in (0, 1)]
    assert classify_ranks(ended(exit_code=0), fine, _NOWHERE)[0] == "ok"
    assert classify_ranks(ended(), fine, _NOWHERE)[0] == "failed"
    assert classify_ranks(ended(), [fine[0], RankRun(1, [], False)], _NOWHERE)[1] == (
        "msrun ended (exit code 1) before rank 1 did; see ranks/scheduler.log"
    )
    assert classify_ranks(ended(stopped=True), fine, _NOWHERE)[0] == "ok", "the scheduler alone was left"


def test_exit_codes_come_from_what_msrun_logs(tmp_path):
    (tmp_path / "ranks").mkdir()
    for rank, pid in ((0, 70), (1, 71)):
        rank_events(tmp_path, rank).write_text(json.dumps({"type": "process", "rank": rank, "pid": pid, "host": "h"}))
    (tmp_path / "log.txt").write_text("[ERROR] Worker process 71 exit with exception. Error code: -9.\n")
    ranks = read_ranks(tmp_path, (0, 1), {1: 5.0})
    assert [(run.exit_code, run.signal, run.gone) for run in ranks] == [(None, None, None), (None, "SIGKILL", 5.0)]
    assert rank_merge.tail_of(tmp_path, ranks[1]) == tmp_path / "log.txt", "msrun's where the rank has no log"


@pytest.mark.parametrize(
    ("logged", "said", "expected"),
    [(-15, 2, (2, None)), (-15, None, (None, "SIGTERM")), (-11, 2, (None, "SIGSEGV")), (4, 2, (4, None))],
)
def test_a_rank_that_msrun_ended_after_its_last_word_ended_as_it_said(tmp_path, logged, said, expected):
    (tmp_path / "ranks").mkdir()
    events = [{"type": "process", "rank": 0, "pid": 70, "host": "h"}]
    events += [] if said is None else [{"type": "end", "status": "failed", "reason": "no", "code": said}]
    rank_events(tmp_path, 0).write_text("".join(json.dumps(event) + "\n" for event in events))
    (tmp_path / "log.txt").write_text(f"[ERROR] Worker process 70 exit with exception. Error code: {logged}.\n")
    (run,) = read_ranks(tmp_path, (0,), {})
    assert (run.exit_code, run.signal) == expected


def test_memory_is_the_largest_rank_and_never_a_sum():
    def reported(hwm, allocated):
        return {"hwm": hwm, "device": {"allocated": allocated, "reserved": allocated and 64, "reason": "none here"}}

    memory, reasons = memory_of_ranks({0: reported(500, 30), 1: reported(400, 50), 2: None})
    assert (memory.device_allocated_peak_bytes, memory.process_peak_bytes, memory.max_rank) == (50, 500, 1)
    assert [row.device_allocated_peak_bytes for row in memory.per_rank] == [30, 50, None]
    assert "memory.per_rank.2.process_peak_bytes" in reasons
    memory, reasons = memory_of_ranks({0: reported(500, None), 1: reported(700, None)})
    assert (memory.process_peak_bytes, memory.max_rank) == (700, 1)
    assert reasons["memory.device_allocated_peak_bytes"] == "none here"


def test_ranks_that_differ_are_named_with_what_differs():
    one = {"recipe digest": "a" * 64, "code commit": "b" * 40, "code digest": "c" * 64, "host": "h0"}
    refuse_differences([one, one | {"host": "h1"}])
    with pytest.raises(UserError, match=r"rank 1 \(h1\) has code commit dddddddddddd, rank 0 \(h0\) has bbbbbbbbbbbb"):
        refuse_differences([one, one | {"code commit": "d" * 40, "host": "h1"}])


def test_bad_inputs_of_one_rank_fail_the_run_but_blame_nobody():
    def failure(row):
        return {"type": "failure", "row": row, "item": f"{row}.mp4", "message": "damaged"}

    last_word = end("failed", "1 input could not be processed") | {"rows_failed": 1}
    ranks = [RankRun(0, [failure(1), end()], False, gone=2.0), RankRun(1, [failure(1), failure(2), last_word], False)]
    ranks[1].gone = 1.0
    expected = ("failed", "2 inputs could not be processed (see failures)", None)
    assert classify_ranks(ended(exit_code=0), ranks, _NOWHERE) == expected


def test_the_watch_sees_a_ranks_words_as_they_come_and_half_a_line_is_none(tmp_path):
    (tmp_path / "ranks").mkdir()
    watch, file = RankWatch(tmp_path, (0,)), rank_events(tmp_path, 0)
    assert not watch.look(os.getpid())
    tail = watch._events[0]
    file.write_text('{"type": "process", "pid": 1}\n{"type": "end", "status": "fai')
    tail.read()
    assert (tail.process, tail.end) == ({"type": "process", "pid": 1}, None)
    with file.open("a") as more:
        more.write('led", "at": 1.0}\n')
    tail.read()
    assert tail.end == {"type": "end", "status": "failed", "at": 1.0}
    watch._next = 0.0
    assert watch.look(os.getpid()), "it failed long ago: msrun had its time"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "2"], "runtime.workers: got 2, kind make-model runs 1 process in this version"),
        (["--nodes", "2", "--node-rank", "0"], "--master: got None, need HOST:PORT of node 0"),
        (
            ["--nodes", "2", "--node-rank", "1", "--master", "a:8118", "--repeats", "2"],
            "--nodes: got 2 repeats, need one recipe run once",
        ),
    ],
)
def test_the_command_refuses_what_can_not_be_started(capsys, options, message):
    recipe = Path(__file__).resolve().parents[2] / "recipes" / "tiny" / "make_model.yaml"
    assert main(["run", str(recipe), *options]) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()
