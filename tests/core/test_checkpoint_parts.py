"""Several processes write one checkpoint, or none: threads stand for processes here."""

from __future__ import annotations

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from core.train import checkpoint
from core.train.checkpoint import CheckpointError, State
from core.train.parts import Parts, Writers


class _Agreement:
    """What ``Group.agree`` does, for threads."""

    def __init__(self, count: int):
        self._barrier, self._votes = threading.Barrier(count, timeout=20), [True] * count

    def of(self, index: int):
        def agree(ok: bool) -> bool:
            self._votes[index] = ok
            self._barrier.wait()
            result = all(self._votes)
            self._barrier.wait()
            return result

        return agree


class _Full(dict):
    """Arrays that can't be written."""

    def items(self):
        raise OSError(errno.ENOSPC, "No space left on device")


def _save(out: Path, arrays: list[dict], keep: int | None = None) -> list:
    agreement = _Agreement(len(arrays))

    def one(index: int):
        state = State(step=3, arrays=arrays[index], numbers={"a": 1}, facts={}, parted=True)
        writers = Writers(index, len(arrays), agreement.of(index))
        try:
            return checkpoint.save(out, state, {}, keep=keep, writers=writers)
        except CheckpointError as error:
            return error

    with ThreadPoolExecutor(len(arrays)) as pool:
        return list(pool.map(one, range(len(arrays))))


def test_rows_of_all_parts_make_the_tensor(tmp_path):
    whole = np.arange(10, dtype=np.float32).reshape(5, 2)
    alone = np.ones(3, np.float32)
    parts = [{"m.w": whole[:2], "c.w": alone}, {"m.w": whole[2:4]}, {"m.w": whole[4:]}, {"m.w": whole[5:]}]
    assert _save(tmp_path, parts) == [tmp_path / "checkpoint-000003"] * 4
    state = checkpoint.load(tmp_path / "checkpoint-000003")
    assert set(state.arrays) == {"m.w", "c.w"}
    assert np.array_equal(state.arrays["m.w"], whole)
    assert np.array_equal(state.arrays["c.w"], alone)
    assert not list(tmp_path.glob(".checkpoint-*"))


@pytest.mark.parametrize("failing", [0, 1])
def test_if_one_can_not_write_all_fail_and_nothing_is_left(tmp_path, failing):
    arrays: list[dict] = [{"m.w": np.ones((1, 2), np.float32)} for _ in range(2)]
    arrays[failing] = _Full()
    found = _save(tmp_path, arrays)
    assert all(isinstance(error, CheckpointError) for error in found)
    assert "No space left" in str(found[failing])
    assert "another process could not write its part" in str(found[1 - failing])
    assert not list(tmp_path.iterdir())


def test_a_part_that_is_gone_is_named(tmp_path):
    _save(tmp_path, [{"m.w": np.ones((1, 2), np.float32)} for _ in range(2)])
    (tmp_path / "checkpoint-000003" / "part-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"part-00001-of-00002\.safetensors is missing"):
        checkpoint.load(tmp_path / "checkpoint-000003")


def test_a_folder_without_parts_has_no_arrays(tmp_path):
    assert len(Parts(tmp_path)) == 0
