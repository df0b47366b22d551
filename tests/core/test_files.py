"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os

import pytest

from core.errors import UserError, WeightsError, unwritable
from core.files import atomic_path, write_text


def test_success_replaces_the_old_file(tmp_path):
    target = tmp_path / "new" / "a.txt"
    write_text(target, "one")
    write_text(target, "two")
    assert target.read_text() == "two"
    assert os.listdir(target.parent) == ["a.txt"]


def test_failure_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "a.npz"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        assert temporary.suffix == ".npz"
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.npz"]


def test_a_long_list_of_problems_is_cut_and_counted():
    error = WeightsError("folder", [f"missing {i}" for i in range(60)])
    assert isinstance(error, UserError)
    assert str(error).startswith("folder: 60 problems: missing 0; missing 1")
    assert str(error).endswith("missing 49; and 10 more")


def test_errors_of_the_place_are_one_line_and_others_are_not_mistaken_for_them():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a/b")
    assert unwritable(full) == (
        "a/b: can't be written (No space left on device); free some space or choose another folder"
    )
    moved = OSError(errno.EACCES, "Permission denied", "from", None, "to")
    assert (unwritable(moved) or "").startswith("to: can't be written (Permission denied)")
    for other in (FileNotFoundError(errno.ENOENT, "No such file", "a"), OSError("no number"), ValueError("x")):
        assert unwritable(other) is None
