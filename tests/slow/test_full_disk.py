"""File systems that are really full or read-only: while checkpoints and caches are written, and before a run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import record as records
from bench.environment import code_root
from core.data import cache, shapes
from core.train import checkpoint
from tests.bench import train_world

# Mounts a small file system that only this command sees, runs the rest of the line and copies what is left.
SCRIPT = """
mount -t tmpfs -o "$1" none "$2" || exit 99
place="$2"; copy="$3"; shift 3
"$@"; code=$?
cp -a "$place" "$copy"
exit $code
"""


def _may_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    try_it = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=64k none /mnt"]
    return subprocess.run(try_it, capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not _may_mount(), reason="this system lets nobody mount a small file system")


def on_a_disk_of(options: str, place: Path, command: list[str]) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Runs the command where ``place`` is mounted with these options; its result and a copy of what is left."""
    place.mkdir()
    copy = place.parent / "copy"
    shell = ["unshare", "-rm", "sh", "-c", SCRIPT, "sh", options, str(place), str(copy), *command]
    env = {**os.environ, "PYTHONPATH": str(code_root())}
    return subprocess.run(shell, env=env, capture_output=True, text=True, check=False), copy


def run_command(recipe: dict, folder: Path, out: Path) -> list[str]:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return [sys.executable, "-m", "bench.cli", "run", str(path), "--out", str(out)]


def test_a_checkpoint_that_does_not_fit_leaves_the_last_one_whole(tmp_path):
    world = train_world.make_world(tmp_path / "world")
    recipe = train_world.recipe(world, train={"save_every": 1, "steps": 30, "keep_checkpoints": 100})
    recipe["output"] = {"folder": str(tmp_path / "small" / "out")}
    done, copy = on_a_disk_of("size=6m", tmp_path / "small", run_command(recipe, tmp_path, tmp_path / "run"))
    record = records.read(tmp_path / "run")
    assert (done.returncode, record.status) == (2, "failed")  # as every error that a user can mend
    assert "No space left on device" in (record.reason or "")
    found = checkpoint.checkpoints(copy / "out")
    assert found
    assert len(found) == len(record.steps) - 1
    for folder in found:  # each can be read whole, and no half one stands under its name
        assert checkpoint.load(folder).step == int(folder.name.rsplit("-", 1)[1])


def test_caches_that_do_not_fit_end_the_run_and_those_written_are_whole(tmp_path):
    folder = tmp_path / "clips"
    shapes.write_clips(folder, [shapes.draw_clip(0, i) for i in range(6)], frames=17, height=64, width=96, fps=8)
    recipe = {
        "schema": 1, "kind": "encode-video", "name": "full", "model": {"preset": "tiny-1.5"},
        "data": {"csv": str(folder / "video_caption.csv"), "video_folder": str(folder)},
        "video": {"height": 64, "width": 96, "max_frames": 17},
        "output": {"folder": str(tmp_path / "small")},
    }  # fmt: skip
    done, copy = on_a_disk_of("size=160k", tmp_path / "small", run_command(recipe, tmp_path, tmp_path / "run"))
    record = records.read(tmp_path / "run")
    assert (done.returncode, record.status) == (2, "failed")  # as every error that a user can mend
    assert "can't be written (No space left on device); free some space or set output.folder" in (record.reason or "")
    written = sorted(copy.rglob("*.npz"))
    assert 0 < len(written) < 6
    for path in written:
        cache.read_video_cache(path)
    assert [path for path in copy.rglob("*") if path.is_file() and path.suffix != ".npz"] == []


@pytest.mark.parametrize("which", ["run folder", "output folder"])
def test_a_read_only_place_is_one_line(tmp_path, which):
    small = tmp_path / "small"
    recipe = {
        "schema": 1, "kind": "make-clips", "name": "ro",
        "clips": {"count": 1, "height": 32, "width": 32, "frames": 5, "fps": 8},
        "output": {"folder": str((small if which == "output folder" else tmp_path) / "clips")},
    }  # fmt: skip
    run = (small if which == "run folder" else tmp_path) / "run"
    done, copy = on_a_disk_of("ro", small, run_command(recipe, tmp_path, run))
    said = f"{run if which == 'run folder' else small / 'clips'}: can't be written (Read-only file system); free some"
    assert done.returncode == 2
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert list(copy.iterdir()) == []
