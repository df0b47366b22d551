"""``cogbench run --resume``: which run it goes on with, and what becomes of the last attempt's record."""

from __future__ import annotations

import json
import os
import time
from argparse import Namespace
from typing import Any

import pytest

import bench.run_command as command
from bench import record as records
from bench.resume import archive_attempt, find_interrupted, with_resume
from core.errors import UserError
from tests.bench.jobs import MODULE, digest_of, loaded

DATA = {"kind": "train", "name": "t", "train": {"steps": 3}, "action": "killed_unless_resumed"}


@pytest.fixture(autouse=True)
def _fake_recipes(monkeypatch):
    monkeypatch.setattr(command, "open_recipe", lambda path, overrides: loaded(dict(DATA)))
    monkeypatch.setattr(command, "refuse_unsupported", lambda found: None)


def run(**options: Any) -> tuple[int, dict, str]:
    defaults = {"recipe": "t.yaml", "set": [], "repeats": None, "out": None, "resume": False, "verbose": False}
    defaults |= {"workers": None, "nodes": None, "node_rank": None, "master": None}
    args = Namespace(**{**defaults, "require_steady": False, **options})
    return command.run_command(args, ("cogbench", "run"), MODULE)


def test_a_killed_run_goes_on_in_its_folder_and_keeps_its_record(tmp_path):
    code, first, _ = run()
    assert code == 4
    (folder,) = (tmp_path / "runs").iterdir()
    killed = records.read(folder)
    assert killed.signal == "SIGKILL"
    code, second, _ = run(resume=True)
    assert (code, list((tmp_path / "runs").iterdir())) == (0, [folder])
    assert second["runs"][0]["record"] == first["runs"][0]["record"]
    record = records.read(folder)
    assert (record.status, record.recipe_digest, record.recipe["train"]["resume"]) == (
        "ok", killed.recipe_digest, "latest",
    )  # fmt: skip
    assert records.read(folder / "attempts" / "01") == killed
    assert sorted(p.name for p in (folder / "attempts" / "01").iterdir()) == [
        "events.jsonl", "job.json", "log.txt", "record.json",
    ]  # fmt: skip
    with pytest.raises(UserError, match="ended ok, there is nothing to resume"):
        run(resume=True)


def test_without_an_earlier_run_it_begins(tmp_path):
    code, _, _ = run(resume=True, out=tmp_path / "out")
    assert code == 0
    assert not (tmp_path / "out" / "attempts").exists()


def test_out_of_another_recipe_is_refused(tmp_path, monkeypatch):
    run(out=tmp_path / "out")
    monkeypatch.setattr(command, "open_recipe", lambda path, overrides: loaded({**DATA, "seed": 3}))
    with pytest.raises(UserError, match=r"--resume: .*out is a run of recipe [0-9a-f]{8}, this is recipe"):
        run(resume=True, out=tmp_path / "out")


def test_repeats_and_other_kinds_are_refused():
    with pytest.raises(UserError, match="--resume: got 2 repeats"):
        run(resume=True, repeats=2)
    with pytest.raises(UserError, match="got kind generate, need kind train"):
        with_resume({"kind": "generate"})
    assert with_resume({"kind": "train", "train": {"resume": "a/checkpoint-000001"}})["train"]["resume"].startswith(
        "a/"
    )


def test_a_run_that_is_going_on_is_left_alone(tmp_path):
    folder = tmp_path / "runs" / f"t-{digest_of(DATA)[:8]}-x-1"
    folder.mkdir(parents=True)
    job = {"recipe_digest": digest_of(DATA), "parent_pid": os.getppid()}
    (folder / "job.json").write_text(json.dumps(job))
    with pytest.raises(UserError, match=r"still running \(process \d+\)"):
        find_interrupted("t", digest_of(DATA), None)
    # The number of a process that began later than job.json was written belongs to another one.
    os.utime(folder / "job.json", (1, 1))
    assert find_interrupted("t", digest_of(DATA), None) is not None


def test_the_newest_run_of_the_recipe_is_taken(tmp_path):
    now = time.time()
    for number, (name, digest) in enumerate([("a", "d" * 64), ("b", "d" * 64), ("c", "e" * 64)]):
        folder = tmp_path / "runs" / f"t-dddddddd-{name}"
        folder.mkdir(parents=True)
        (folder / "job.json").write_text(json.dumps({"recipe_digest": digest, "parent_pid": 2**22 + 1}))
        os.utime(folder / "job.json", (now + number, now + number))
    found = find_interrupted("t", "d" * 64, None)
    assert found is not None
    assert found.name == "t-dddddddd-b"
    assert archive_attempt(found) == 1
    assert archive_attempt(found) == 1
    older = find_interrupted("t", "d" * 64, None)
    assert older is not None
    assert older.name == "t-dddddddd-a"
