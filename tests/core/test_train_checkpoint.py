"""Checkpoint folders: complete or absent, whatever goes wrong while they are written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from core.train import checkpoint
from core.train.checkpoint import CheckpointError, State, joined, split


def _state(step: int, value: float = 1.0) -> State:
    arrays = {"m.a": np.full((2, 3), value, np.float32), "v": np.array(0.1, np.float32)}
    return State(step=step, arrays=arrays, numbers={"step": step, "scale": 0.1}, facts={"recipe": {"a": [1, None]}})


def _fill(text: str = "weights"):
    def fill(folder: Path | None) -> None:
        assert folder is not None
        folder.mkdir()
        (folder / "config.json").write_text(text)

    return {"transformer": fill}


def _names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path):
    folder = checkpoint.save(tmp_path, _state(500, 1 / 3), _fill())
    assert (folder.name, (tmp_path / "latest").read_text()) == ("checkpoint-000500", "checkpoint-000500\n")
    state = checkpoint.load(folder)
    assert (state.step, state.numbers, state.facts) == (500, _state(500).numbers, _state(500).facts)
    assert all(np.array_equal(state.arrays[n], a) for n, a in _state(500, 1 / 3).arrays.items())
    assert state.arrays["v"].shape == ()
    assert sorted(p.suffix for p in folder.rglob("*") if p.is_file()) == [".json", ".json", ".safetensors"]


def test_many_arrays_are_stored_in_shards(tmp_path, monkeypatch):
    import functools

    monkeypatch.setattr(
        checkpoint, "write_checkpoint", functools.partial(checkpoint.write_checkpoint, max_shard_bytes=24)
    )
    folder = checkpoint.save(tmp_path, _state(1), {})
    assert len(list(folder.glob("state-0000*.safetensors"))) == 2
    assert set(checkpoint.load(folder).arrays) == {"m.a", "v"}


def test_so_many_of_the_newest_are_kept(tmp_path):
    for step in (2, 4, 1000000, 6):
        checkpoint.save(tmp_path, _state(step), _fill(), keep=2)
    assert _names(tmp_path) == ["checkpoint-000006", "checkpoint-1000000", "latest"]
    assert checkpoint.newest(tmp_path) == tmp_path / "checkpoint-1000000"


def test_there_may_be_none(tmp_path):
    assert checkpoint.newest(tmp_path / "absent") is None
    checkpoint.clean(tmp_path / "absent")


def test_the_newest_is_found_when_a_kill_left_latest_behind(tmp_path):
    checkpoint.save(tmp_path, _state(2), _fill())
    checkpoint.save(tmp_path, _state(4), _fill())
    (tmp_path / "latest").write_text("checkpoint-000002\n")
    assert checkpoint.newest(tmp_path) == tmp_path / "checkpoint-000004"


def _full(folder: Path | None) -> None:
    assert folder is not None
    folder.mkdir()
    (folder / "half").write_bytes(b"x" * 10)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_one_line_and_leaves_earlier_checkpoints_as_they_were(tmp_path):
    checkpoint.save(tmp_path, _state(2), _fill())
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(
        CheckpointError, match=r"checkpoint-000004: .*No space left.*last good .*checkpoint-000002"
    ) as e:
        checkpoint.save(tmp_path, _state(4), {"transformer": _full})
    assert "\n" not in str(e.value)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert _names(tmp_path) == ["checkpoint-000002", "latest"]


def test_a_file_size_limit_is_met_like_a_full_disk(tmp_path):
    """The kernel refuses to write more, as on a full disk, in the middle of the state file: safetensors' own error."""
    code = """
        import resource, signal, sys
        from pathlib import Path
        import numpy as np
        from core.train import checkpoint
        out = Path(sys.argv[1])
        small = {"a": np.zeros(8, np.float32)}
        checkpoint.save(out, checkpoint.State(step=1, arrays=small, numbers={}, facts={}), {})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            large = {"a": np.zeros(100_000, np.float32)}
            checkpoint.save(out, checkpoint.State(step=2, arrays=large, numbers={}, facts={}), {})
        except checkpoint.CheckpointError as error:
            print(error)
    """
    root = Path(checkpoint.__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.count("\n") == 1
    assert "checkpoint-000002: the checkpoint can't be written" in run.stdout
    assert _names(tmp_path) == ["checkpoint-000001", "latest"]
    assert checkpoint.load(tmp_path / "checkpoint-000001").step == 1


def test_a_folder_that_can_not_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"can't be written .*there is no earlier checkpoint"):
        checkpoint.save(tmp_path / "file" / "out", _state(1), {})


@pytest.mark.parametrize("point", ["transformer", "state", "before rename", "before latest", "while pruning"])
def test_a_kill_at_any_point_of_a_write_leaves_whole_checkpoints_only(tmp_path, point):
    """A real SIGKILL in a process of its own, each time at another place of the third write."""
    code = """
        import os, signal, sys
        from pathlib import Path
        import numpy as np
        from core.train import checkpoint
        out, point = Path(sys.argv[1]), sys.argv[2]
        def die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)
        def fill(folder):
            folder.mkdir(); (folder / "w").write_text("1"); die() if point == "transformer" and armed else None
        armed = False
        def save(step):
            arrays = {"a": np.full(4, step, np.float32)}
            checkpoint.save(out, checkpoint.State(step=step, arrays=arrays, numbers={}, facts={}), {"t": fill}, keep=2)
        save(1); save(2); armed = True
        text, rmtree = checkpoint.write_text, checkpoint.shutil.rmtree
        if point == "state": checkpoint._write_state = die
        if point == "before rename": checkpoint._flush = die
        if point == "before latest":
            checkpoint.write_text = lambda path, t: die() if path.name == "latest" else text(path, t)
        if point == "while pruning": checkpoint.shutil.rmtree = die
        save(3)
    """
    root = Path(checkpoint.__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path), point],
        env={**os.environ, "PYTHONPATH": str(root)}, check=False,
    )  # fmt: skip
    assert run.returncode == -9
    last = 3 if point in ("before latest", "while pruning") else 2
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert (checkpoint.load(newest).step, checkpoint.load(newest).arrays["a"].tolist()) == (last, [last] * 4)
    assert all(checkpoint.load(folder).step for folder in checkpoint.checkpoints(tmp_path))
    checkpoint.clean(tmp_path)
    assert not list(tmp_path.glob(".*"))
    checkpoint.save(tmp_path, _state(4), _fill(), keep=2)
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == [f"checkpoint-00000{last}", "checkpoint-000004"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "state.safetensors").write_bytes(b"123"), r"state\.safetensors has 3 bytes, need \d+"),
        (lambda f: (f / "transformer" / "config.json").unlink(), r"transformer/config\.json is missing"),
        (lambda f: (f / "state.json").write_text("{"), "not a readable JSON file"),
        (lambda f: (f / "state.json").unlink(), r"no state\.json in it"),
        (lambda f: (f / "state.json").write_text('{"format": 9}'), "format 9, need 1"),
    ],
)
def test_damaged_checkpoints_are_refused_in_one_line(tmp_path, damage, words):
    folder = checkpoint.save(tmp_path, _state(1), _fill())
    damage(folder)
    with pytest.raises(ValueError, match=words) as caught:
        checkpoint.load(folder)
    assert "\n" not in str(caught.value)


def test_names_of_parts_come_apart_again():
    parts = joined(optimizer={"m.a": 1, "step": 2}, ema={"optimizer.x": 3})
    assert split("optimizer", parts) == {"m.a": 1, "step": 2}
    assert split("ema", parts) == {"optimizer.x": 3}


def test_other_folders_are_no_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.step_of(tmp_path / "transformer")
    (tmp_path / "checkpoint-old").mkdir()
    (tmp_path / "checkpoint-000003").write_text("a file")
    assert checkpoint.checkpoints(tmp_path) == []
