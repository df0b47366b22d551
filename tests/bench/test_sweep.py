"""Sweeps and limits: order, rows of every ending, resuming by what a row is, the search for the largest value."""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bench.rows
from bench import limit as limits
from bench import memory_cap
from bench import record as records
from bench.limit import largest, legal_values, limit_command
from bench.memory import CAPPED_TEXT, OOM_TEXT
from bench.outcome import classify
from bench.process import Ended
from bench.rows import is_result
from bench.sweep import ordered, sweep_command
from core.errors import UserError
from tests.bench import jobs
from tests.bench.record_example import example_fields


@pytest.mark.parametrize("order", ["listed", "interleaved", "random"])
def test_every_order_has_every_row_once(order):
    rows = ordered(3, 2, order, 5)
    assert sorted(rows) == [(cell, repeat) for cell in range(3) for repeat in (1, 2)]
    assert rows == ordered(3, 2, order, 5)


def test_orders_by_hand():
    assert ordered(2, 2, "listed", 0) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert ordered(2, 2, "interleaved", 0) == [(0, 1), (1, 1), (0, 2), (1, 2)]
    assert len({tuple(ordered(4, 2, "random", seed)) for seed in range(5)}) == 5


def sweep_of(actions: dict[str, str], repeats: int = 1, **data: Any) -> SimpleNamespace:
    """A sweep whose cells are tests' tasks, one an action."""
    cells = tuple(
        SimpleNamespace(
            values={"x": number}, loaded=jobs.loaded({"action": action, "runtime": {}, "x": number, **data})
        )
        for number, action in actions.items()
    )
    file = SimpleNamespace(name="s", repeats=repeats, order="interleaved", seed=0, memory_cap=None, axes={"x": []})
    return SimpleNamespace(file=file, cells=cells, path=Path("s.yaml"))


def swept(sweep: SimpleNamespace, out: Path, *predict: str, retry_failed: bool = False) -> tuple[int, dict, str]:
    args = argparse.Namespace(
        sweep=Path("s.yaml"), out=out, predict=list(predict), retry_failed=retry_failed, verbose=False
    )
    return sweep_command(args, ("cogbench", "sweep"), jobs.MODULE, lambda path: sweep)


def test_each_ending_is_a_row_and_the_next_session_makes_none_again(tmp_path, monkeypatch):
    sweep = sweep_of({"1": "everything", "2": "backend_out_of_memory", "3": "exception", "4": "sleep"})
    sweep.cells[3].loaded.data["runtime"] = {"timeout_s": 1.0}
    code, data, text = swept(sweep, tmp_path / "out")
    assert code == 4
    assert [row["status"] for row in data["rows"]] == ["ok", "oom", "failed", "timeout"]
    assert data["rows"][0]["step_seconds_median"] == 0.25
    assert data["rows"][1]["step_seconds_median"] is None
    assert data["rows"][1]["null_reasons"]["step_seconds_median"] == "the run reported no steps"
    assert "x=2 repeat 1: oom: RuntimeError: Memory not enough" in text
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["rows"] == data["rows"]

    def never(job, loaded):
        raise AssertionError("made again")

    monkeypatch.setattr(bench.rows, "run_recipe", never)
    _, again, _ = swept(sweep, tmp_path / "out")
    assert [(row["status"], row["reused"]) for row in again["rows"]] == [
        ("ok", True), ("oom", True), ("failed", True), ("timeout", True),
    ]  # fmt: skip
    with pytest.raises(AssertionError, match="made again"):
        swept(sweep, tmp_path / "out", retry_failed=True)


@pytest.fixture(scope="module")
def one_row(tmp_path_factory) -> Path:
    """The folder of a sweep of one row, made once."""
    folder = tmp_path_factory.mktemp("sweep") / "out"
    assert swept(sweep_of({"1": "everything"}), folder)[0] == 0
    return folder


@pytest.mark.parametrize("changed", ["recipe_digest", "code", "environment", "repeat", "notes", "file name"])
def test_a_row_is_known_by_what_it_is(one_row, tmp_path, monkeypatch, changed):
    """Another recipe, code, machine, repeat or cap is another row; where the record lies does not matter."""
    sweep, out = sweep_of({"1": "everything"}), Path(shutil.copytree(one_row, tmp_path / "out"))
    (folder,) = [path for path in out.iterdir() if path.is_dir()]
    record = json.loads((folder / "record.json").read_text())
    edits: dict[str, Any] = {
        "recipe_digest": {"recipe_digest": "0" * 64},
        "code": {"code": record["code"] | {"digest": "0" * 64}},
        "environment": {"environment": record["environment"] | {"hardware_digest": "0" * 64}},
        "repeat": {"repeat": {"index": 2, "of": 2}},
        "notes": {"notes": {"row": {"memory_cap": 2**30}}},
        "file name": {},
    }
    (folder / "record.json").write_text(json.dumps(record | edits[changed]))
    folder.rename(out / "renamed")
    made: list[Any] = []

    def count(job, loaded):
        made.append(job)
        return records.read(out / "renamed")

    monkeypatch.setattr(bench.rows, "run_recipe", count)
    swept(sweep, out)
    assert len(made) == (0 if changed == "file name" else 1)


def test_an_interrupted_run_and_another_timeout_are_no_results():
    def record(**changes: Any) -> records.Record:
        return records.make(**example_fields() | changes)

    assert is_result(record(), None)
    assert is_result(record(status="oom", reason="killed"), None)
    assert is_result(record(status="failed", reason="a bug"), None)
    assert not is_result(record(status="failed", reason="a bug"), None, retry_failed=True)
    assert not is_result(record(status="failed", reason="interrupted by the user"), None)
    late = record(status="timeout", reason="late", recipe={"runtime": {"timeout_s": 5.0}})
    assert is_result(late, 5.0)
    assert not is_result(late, 50.0)


def test_unknown_axes_and_words_are_refused_for_predictions(tmp_path):
    for text in ("y=3", "x", "x=many", "x=nan"):
        with pytest.raises(UserError, match="need AXIS=NUMBER with an axis of the sweep: x"):
            swept(sweep_of({"1": "everything"}), tmp_path / "out", text)


@given(st.lists(st.integers(1, 200), min_size=1, unique=True), st.data())
def test_the_largest_value_is_found_with_few_probes_each_once(values, data):
    values = sorted(values)
    boundary = data.draw(st.integers(-1, len(values) - 1))
    start = data.draw(st.integers(0, len(values) - 1))
    asked: list[int] = []

    def fits(value: int) -> bool:
        asked.append(value)
        return values.index(value) <= boundary

    found = largest(values, start, fits)
    assert found.fits == (values[boundary] if boundary >= 0 else None)
    assert found.fails == (values[boundary + 1] if boundary + 1 < len(values) else None)
    assert len(set(asked)) == len(asked) <= 2 * len(values).bit_length() + 2
    assert {found.fits, found.fails} - {None} <= set(asked)  # both neighbours were really run


def test_legal_values_are_what_the_recipe_accepts():
    def load(value: int) -> None:
        if value % 8 != 1 or value < 9:
            raise UserError("no")

    assert legal_values(load, 33) == [9, 17, 25, 33]
    assert legal_values(lambda value: None, 64, 16) == [16, 32, 48, 64]


@pytest.mark.parametrize(("divisor", "remainder", "most"), [(16, 1, 5000), (8, 1, 700), (4, 1, 65), (1, 0, 5000)])
def test_many_legal_values_are_found_without_asking_for_each(divisor, remainder, most):
    asked = []

    def load(value: int) -> None:
        asked.append(value)
        if value % divisor != remainder or value > most:
            raise UserError("no")

    expected = [v for v in range(1, 3001) if v % divisor == remainder and v <= most]
    assert legal_values(load, 3000) == expected
    assert len(asked) < 80


@pytest.fixture
def limited(monkeypatch, tmp_path):
    """``run(action_of, ...)``: a search over x whose run with value v does ``action_of(v)``."""

    def run(action_of: Any, top: int = 8, cap: str | None = None) -> tuple[int, dict, str]:
        def opened(path: Path, overrides: list[str]) -> Any:
            value = int(next((o.split("=")[1] for o in overrides if o.startswith("x=")), "2"))
            return jobs.loaded({"action": action_of(value), "x": value, "runtime": {}})

        monkeypatch.setattr(limits, "open_recipe", opened)
        monkeypatch.setattr(limits, "refuse_unsupported", lambda loaded: None)
        args = argparse.Namespace(
            recipe=Path("r"), set=[], axis="x", cap=cap, max=top, out=tmp_path / "o", verbose=False
        )
        return limit_command(args, ("cogbench", "limit"), jobs.MODULE)

    return run


def test_limit_runs_and_names_both_neighbours(limited):
    code, data, text = limited(lambda v: "everything" if v <= 3 else "backend_out_of_memory")
    assert (code, data["largest_that_fits"], data["smallest_that_does_not"]) == (0, 3, 4)
    assert "largest x that fits: 3 (4 does not) without a cap" in text
    assert {p["values"]["x"]: p["status"] for p in data["probes"]} == {2: "ok", 3: "ok", 5: "oom", 4: "oom"}
    assert all(Path(probe["record"]).is_file() for probe in data["probes"])
    assert all(
        probe["reused"] for probe in limited(lambda v: "everything" if v <= 3 else "backend_out_of_memory")[1]["probes"]
    )


def test_a_run_that_fails_otherwise_decides_nothing(limited):
    code, data, _ = limited(lambda v: "everything" if v <= 2 else "exception")
    assert (code, data["largest_that_fits"]) == (4, None)
    assert "ended failed" in data["reason"]


def test_nothing_that_fits_is_said(limited):
    code, data, text = limited(lambda v: "backend_out_of_memory", top=2)
    assert (code, data["smallest_that_does_not"]) == (4, 1)
    assert "not even x=1 fits" in text


def test_a_cap_that_is_reached_is_an_oom_row(limited):
    """A real allocation under a real cap: RLIMIT_DATA here, or a control group where one may be made."""
    code, data, _ = limited(lambda v: "takes_x_gib", top=4, cap="1GiB")
    assert (code, data["largest_that_fits"], data["smallest_that_does_not"]) == (4, None, 1)
    note = records.read(Path(data["probes"][0]["record"])).notes["memory_cap"]
    assert note["bytes"] == 2**30
    assert note["by"] in ("RLIMIT_DATA", "cgroup v2 memory.max")


def test_an_axis_that_is_no_number_is_refused():
    loaded = jobs.loaded({"video": {"frames": 9}, "stages": [{"name": "a", "steps": 3}]})
    assert limits._own_value(loaded, "video.frames") == 9
    assert limits._own_value(loaded, "stages.a.steps") == 3
    for axis in ("video", "video.height", "kind"):
        with pytest.raises(UserError, match="need a key with a whole number"):
            limits._own_value(loaded, axis)


def test_sizes_of_caps():
    assert memory_cap.parse("4GiB") == 4 * 2**30
    assert memory_cap.parse("1.5MiB") == 3 * 2**19
    for text in ("4GB", "4", "GiB", "0GiB", "-1GiB"):
        with pytest.raises(UserError, match="need memory such as 4GiB"):
            memory_cap.parse(text)


def test_a_control_group_is_used_where_one_can_be_made(tmp_path):
    """Plain files stand for the kernel's; the process moves itself and the group is named for removal."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "cgroup.controllers").write_text("memory")
    (tmp_path / "groups").write_text("4:memory:/other\n0::/mine\n")
    code = f"""
import json, os, resource
from pathlib import Path
from bench.memory_cap import confine
cap = confine(2**40, Path({str(tmp_path)!r}), Path({str(tmp_path / "groups")!r}))
print(json.dumps([cap, os.getpid(), resource.getrlimit(resource.RLIMIT_DATA)[0]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    cap, pid, data_limit = json.loads(done.stdout)
    group = Path(cap["group"])
    assert (cap["by"], cap["bytes"]) == ("cgroup v2 memory.max", 2**40)
    assert (group / "memory.max").read_text() == str(2**40)
    assert (group / "cgroup.procs").read_text() == str(pid)
    assert data_limit == resource.getrlimit(resource.RLIMIT_DATA)[0]


@pytest.mark.parametrize("text", ["RuntimeError: can't start new thread", "pthread_create failed"])
def test_a_thread_without_room_is_out_of_memory_only_under_a_cap(text):
    ended = Ended(pid=1, seconds=1.0, exit_code=None, signal="SIGABRT", peak_bytes=None)
    assert classify(ended, None, text, capped=True)[0] == "oom"
    assert classify(ended, None, text)[0] == "failed"
    said = Ended(pid=1, seconds=1.0, exit_code=4, signal=None, peak_bytes=None)
    end = {"status": "failed", "reason": text}
    assert classify(said, end, "", capped=True)[0] == "oom"
    assert classify(said, end, "")[0] == "failed"
    assert classify(said, end | {"reason": "a bug"}, "", capped=True)[0] == "failed"
    assert CAPPED_TEXT.search(text)
    assert not OOM_TEXT.search(text)
