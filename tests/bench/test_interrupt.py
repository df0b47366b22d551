"""Ctrl-C, SIGTERM and SIGKILL of the parent: no process and no half file stays behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from bench import record as records

_ROOT = Path(__file__).resolve().parents[2]


def _start(tmp_path: Path, data: dict, out: str = "run") -> subprocess.Popen:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(data))
    command = [sys.executable, "-m", "tests.bench.parent", str(recipe), str(tmp_path / out), "--json"]
    return subprocess.Popen(
        command, cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def _pids(out: Path, deadline: float = 20) -> list[int]:
    """Process ids that the sleeping task wrote, once it has opened its output file."""
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        if (out / "pids").exists() and len((out / "pids").read_text().split()) == 2:
            return [int(pid) for pid in (out / "pids").read_text().split()]
        time.sleep(0.02)
    raise AssertionError("the task did not start")


def _gone(pid: int, deadline: float = 10) -> bool:
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_cleanly_and_is_recorded(tmp_path, signum):
    parent = _start(tmp_path, {"action": "sleep"})
    pids = _pids(tmp_path / "run" / "out")
    parent.send_signal(signum)
    _, stderr = parent.communicate(timeout=30)
    assert parent.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert stderr.endswith("interrupted\n")
    assert all(_gone(pid) for pid in pids)
    assert [f.name for f in (tmp_path / "run" / "out").iterdir()] == ["pids"]
    record = records.read(tmp_path / "run")
    assert (record.status, record.reason) == ("failed", "interrupted by the user")


def test_an_interrupted_pipeline_records_both_levels(tmp_path):
    stages = [{"name": "a", "action": "sleep"}, {"name": "b", "action": "nothing"}]
    parent = _start(tmp_path, {"kind": "pipeline", "stages": stages})
    pids = _pids(tmp_path / "run" / "stages" / "01-a" / "out")
    parent.send_signal(signal.SIGINT)
    _, stderr = parent.communicate(timeout=30)
    assert parent.returncode == 130, stderr
    assert all(_gone(pid) for pid in pids)
    record = records.read(tmp_path / "run")
    assert record.reason == "stage a: interrupted by the user"
    assert len(record.children) == 1


def test_a_killed_parent_takes_its_child_along(tmp_path):
    parent = _start(tmp_path, {"action": "sleep"})
    task, helper = _pids(tmp_path / "run" / "out")
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate(timeout=30)
    assert _gone(task)
    os.kill(helper, signal.SIGKILL)
    assert [f.name for f in (tmp_path / "run" / "out").iterdir()] == ["pids"]


def test_the_command_prints_json_and_the_parent_imports_nothing_heavy(tmp_path):
    stages = [{"name": "a", "action": "everything"}, {"name": "b", "action": "abort"}]
    parent = _start(tmp_path, {"kind": "pipeline", "stages": stages})
    stdout, stderr = parent.communicate(timeout=60)
    assert parent.returncode == 4, stderr
    (run,) = json.loads(stdout)["runs"]
    assert run["status"] == "failed"
    assert [c["status"] for c in run["children"]] == ["ok", "failed"]
    assert "größe" not in stderr, "the log is forwarded only on a terminal or with -v"


def test_on_a_terminal_there_are_a_bar_and_the_log(tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"action": "everything"}))
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (30, 100))
    command = [sys.executable, "-m", "tests.bench.parent", str(recipe), str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, stderr=theirs) as parent:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError), open(ours, "rb", buffering=0) as terminal:
            while piece := terminal.read(4096):
                shown += piece
        assert parent.wait(30) == 0
    assert b"steps:" in shown
    assert "größe ✓".encode() in shown
    assert "steps:" not in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
