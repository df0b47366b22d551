"""kill -9 at many points of real training runs, compiled as users run them: every bit as without a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import record as records
from bench.environment import code_root
from core.train import checkpoint
from tests.bench import train_world
from tests.bench.test_train_resume import VARIANTS, compare_with_killed

KILLS = [
    {"at": "after step", "step": 1},
    {"at": "in state", "step": 2},
    {"at": "before rename", "step": 2},
    {"at": "before latest", "step": 2},
    {"at": "after step", "step": 4},
    {"at": "in state", "step": 6},
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return train_world.make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("name", VARIANTS)
def test_killed_at_six_points_one_after_the_other(world, tmp_path, name):
    recipe = train_world.recipe(world, **VARIANTS[name])
    recipe["runtime"]["mode"] = "graph"
    compare_with_killed(world, tmp_path, recipe, KILLS)


def _command(recipe: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "bench.cli", "run", str(recipe), "--out", str(out), *more]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(code_root())}


def test_the_command_is_killed_with_its_child_and_resumed(world, tmp_path):
    """The parent is killed, not the child: no record is written, and the kernel ends the child."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(train_world.recipe(world, "mixed", train={"steps": 12, "save_every": 1})))
    whole, out = tmp_path / "whole", tmp_path / "run"
    subprocess.run(_command(recipe, whole), env=_environment(), check=True, capture_output=True)
    for wanted in (2, 5):
        arguments = _command(recipe, out, "--resume")
        process = subprocess.Popen(arguments, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(checkpoint.checkpoints(out / "out")) < wanted:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(2)  # the child gets SIGTERM from the kernel and cleans up
    assert not (out / "record.json").exists()
    subprocess.run(_command(recipe, out, "--resume"), env=_environment(), check=True, capture_output=True)
    first, last = records.read(whole), records.read(out)
    assert last.digests == first.digests
    bits = {step.index: step.loss_hex for step in first.steps}
    assert all(bits[step.index] == step.loss_hex for step in last.steps)
    assert last.steps[-1].index == 11
    assert len(last.steps) < 12
    assert len(list((out / "attempts").iterdir())) == 2
