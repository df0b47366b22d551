"""The training task itself on several ranks: checkpoints of one layout, resumed at others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import communication

from bench.context import RunContext
from bench.events import EventLog
from bench.tasks import models as models_module
from bench.tasks import train
from core.parallel.collectives import joined
from recipes.load import from_dict
from tests.bench import train_world

STEPS, HALF, SAMPLES = 4, 2, 2
# name -> (sequence parallel, ZeRO stage, begins at the checkpoint of "whole")
RUNS = {"whole": (1, 2, False), "same": (1, 2, True), "stage3": (2, 3, True)}


def recipe(world: Path, ranks: int, sequence: int, stage: int, resume: bool) -> dict[str, Any]:
    """Two samples a step, an average, whatever the layout."""
    return train_world.recipe(
        world,
        runtime={"workers": ranks},
        parallel={"sequence_parallel": sequence, "zero_stage": stage},
        train={
            "steps": STEPS, "save_every": HALF, "gradient_accumulation_steps": SAMPLES * sequence // ranks,
            "resume": "latest" if resume else None, "recompute": "all",
        },
        optimizer={"name": "came", "lr": 1e-3, "betas": [0.9, 0.95, 0.99], "eps": [1e-8, 1e-8]},
        ema={"decay": 0.5, "warmup": False},
    )  # fmt: skip


def run(data: dict[str, Any], out: Path, log: Path) -> list[tuple[float, float]]:
    """Runs the task in this process; (loss, gradient norm) of each step."""
    models_module.start_mindspore = lambda runtime, seed: {}
    loaded = from_dict(data)
    out.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    train.run(loaded, RunContext(loaded, out, loaded.seed, EventLog(log)))
    events = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [event for event in events if event["type"] == "step" and "eval" not in event["tags"]]
    return [(float.fromhex(step["loss_hex"]), step["extra"]["grad_norm"]) for step in steps]


def case_task() -> dict[str, Any]:
    """Runs every entry of ``RUNS`` in the working directory, which all ranks share."""
    world, processes, found = Path("world"), joined(1), {}
    rank, ranks = communication.get_rank(), communication.get_group_size()
    if rank == 0:
        train_world.make_world(world)
    processes.world.wait()
    for name, (sequence, stage, resume) in RUNS.items():
        out = Path(name)
        if resume and rank == 0:
            out.mkdir()
            shutil.copytree(f"whole/checkpoint-{HALF:06d}", out / f"checkpoint-{HALF:06d}")
        processes.world.wait()
        data = recipe(world, ranks, sequence, stage, resume)
        found[f"{name}/curve"] = np.array(run(data, out, Path(f"{name}-{rank}.jsonl")))
        processes.world.wait()
    return found
