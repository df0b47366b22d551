"""The same command on two nodes: network namespaces of this machine, so that each has an address of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench import record as records
from tests.bench import train_world
from tests.distributed.jobs import ROOT

_SCRIPT = Path(__file__).with_name("two_nodes.sh")
_BOUND_SECONDS = 400


def _can_make_namespaces() -> bool:
    if not all(shutil.which(tool) for tool in ("unshare", "nsenter", "ip")):
        return False
    probe = "ip link add near type veth peer name far"
    return subprocess.run(["unshare", "-n", "sh", "-c", probe], capture_output=True, check=False).returncode == 0


def test_a_run_of_two_nodes(tmp_path):
    if not _can_make_namespaces():
        pytest.skip("needs the right to make network namespaces (root) and iproute2: msrun tells nodes by address")
    world = train_world.make_world(tmp_path / "world")
    data = train_world.recipe(
        world,
        runtime={"workers": 2, "mode": "pynative", "timeout_s": _BOUND_SECONDS},
        parallel={"zero_stage": 2},
        train={"steps": 2, "gradient_accumulation_steps": 1, "save_every": 2},
        output={"folder": str(tmp_path / "shared")},
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(data))
    for node in ("0", "1"):
        (tmp_path / node).mkdir()
    command = ["unshare", "-n", "sh", str(_SCRIPT), sys.executable, str(recipe), str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        code = process.wait(_BOUND_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    logs = [(tmp_path / f"{node}.log").read_text() for node in (0, 1)]
    assert code == 0, logs
    first, second = (records.read(tmp_path / str(node)) for node in (0, 1))
    assert (first.status, second.status) == ("ok", "ok")
    assert [[row.rank for row in record.ranks] for record in (first, second)] == [[0], [1]]
    losses = [[step.loss_hex for step in record.steps] for record in (first, second)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2
    parts = sorted(path.name for path in (tmp_path / "shared" / "checkpoint-000002").glob("part-*"))
    assert parts == [f"part-{rank:05d}-of-00002.safetensors" for rank in (0, 1)]
