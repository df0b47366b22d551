"""``parallel.zero_ranks`` by the command: ZeRO over two of four ranks, its record, and its checkpoint read by one."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench import record as records
from bench.cli import main
from bench.plan.workload import sizes_of
from bench.record import Record
from core.parallel.mesh import share
from core.transformer.parameters import parameter_table
from recipes.load import from_dict
from tests.bench import train_world
from tests.tolerances import MODULE, relative_error

STEPS = 3


def run(folder: Path, world: Path, workers: int, **sections) -> Record:
    """``cogbench run`` of two samples a step in a folder of its own."""
    data = train_world.recipe(world, runtime={"mode": "pynative", "kernels": "operators"}, **sections)
    folder.mkdir(exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps(data))
    code = main(["run", str(folder / "recipe.json"), "--workers", str(workers), "--out", str(folder / "run")])
    record = records.read(folder / "run")
    assert (code, record.status) == (0, "ok"), record.log_tail
    return record


def curve(record: Record) -> list[list[float]]:
    """Loss and gradient norm of each step."""
    return [[step.loss or 0.0, step.extra["grad_norm"]] for step in record.steps]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return train_world.make_world(tmp_path_factory.mktemp("world"))


def test_two_of_four_ranks_hold_everything_and_two_are_copies(tmp_path, world):
    train = {"steps": STEPS, "save_every": 2}
    one = run(tmp_path / "one", world, 1, train=train | {"gradient_accumulation_steps": 2})
    layout = {"sequence_parallel": 2, "zero_stage": 2, "zero_ranks": 2}
    four = run(tmp_path / "four", world, 4, train=train | {"gradient_accumulation_steps": 1}, parallel=layout)
    assert relative_error(curve(four), curve(one)) <= MODULE
    assert four.notes["parallel"]["zero_ranks"] == 2
    _check_bytes(four)
    written = tmp_path / "four" / "run" / "out" / f"checkpoint-{2:06d}"
    parts = sorted(path.name for path in written.glob("part-*"))
    assert parts == [f"part-{rank:05d}-of-00002.safetensors" for rank in (0, 1)], "copies write nothing"
    out = tmp_path / "again" / "out"
    shutil.copytree(written, out / written.name)
    again = train | {"gradient_accumulation_steps": 2, "resume": "latest"}
    resumed = run(tmp_path / "again", world, 1, train=again, output={"folder": str(out)})
    assert relative_error(curve(resumed), curve(one)[2:]) <= MODULE


def _check_bytes(record: Record) -> None:
    """Held and sent bytes by hand; the plan in the record says the same."""
    recipe: Any = from_dict(record.recipe)
    table = parameter_table(sizes_of(recipe.model).transformer)
    shapes = [spec.shape for spec in table.values() if spec.trainable]
    whole, half = (4 * sum(share(shape[0], n) * math.prod(shape[1:]) for shape in shapes) for n in (1, 2))
    held, plan = record.notes["held_bytes"], record.notes["plan"]
    assert held == {"parameters": whole, "masters": half, "gradients": half, "optimizer": 2 * half}
    update = next(phase["bytes"] for phase in plan["phases"] if phase["name"] == "optimiser update")
    assert held == {name: update[name] for name in held}
    # A rank sends half of its gradients, which is one part, to the other, then its part to the one copy; then its part.
    sent = record.notes["traffic"]["sent"]
    assert {kind: row["bytes"] for kind, row in sent["gradients"].items()} == {
        "reduce_scatter": STEPS * half, "all_reduce": STEPS * half,
    }  # fmt: skip
    assert sent["parameters"]["all_gather"]["bytes"] == STEPS * half
    names = ("gradient reduce-scatter", "gradient all-reduce of copies", "parameter all-gather")
    assert [plan["communication"][name] for name in names] == [half] * 3
