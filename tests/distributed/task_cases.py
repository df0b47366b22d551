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
from bench.tasks import make_model, train
from bench.tasks import models as models_module
from core.data import shapes
from core.parallel.collectives import joined
from recipes.load import from_dict
from tests.bench import train_world

STEPS, HALF, SAMPLES = 4, 2, 2
# name -> (sequence parallel, ZeRO stage, begins at the checkpoint of this run, type of the parameters)
RUNS = {
    "whole": (1, 2, None, "fp32"), "same": (1, 2, "whole", "fp32"), "stage3": (2, 3, "whole", "fp32"),
    "bf16": (1, 2, None, "bf16"), "bf16-same": (1, 2, "bf16", "bf16"),
}  # fmt: skip
# Eight ranks, then four from their first checkpoint, then one from the second one of those; four samples a step.
CHAIN, CHAIN_SAMPLES = {8: (2, 2), 4: (2, 3), 1: (1, 0)}, 4
SIZE = {"height": 32, "width": 48}


def recipe(
    world: Path, ranks: int, sequence: int, stage: int, resume: bool, *, dtype: str = "fp32", every: int = HALF,
    samples: int = SAMPLES,
) -> dict[str, Any]:  # fmt: skip
    """``samples`` a step, an average, whatever the layout."""
    return train_world.recipe(
        world,
        runtime={"workers": ranks, "dtype": dtype},
        parallel={"sequence_parallel": sequence, "zero_stage": stage},
        train={
            "steps": STEPS, "save_every": every, "gradient_accumulation_steps": samples * sequence // ranks,
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
    for name, (sequence, stage, start, dtype) in RUNS.items():
        out = Path(name)
        if start and rank == 0:
            begin(Path(start), HALF, out)
        processes.world.wait()
        data = recipe(world, ranks, sequence, stage, start is not None, dtype=dtype)
        found[f"{name}/curve"] = np.array(run(data, out, Path(f"{name}-{rank}.jsonl")))
        processes.world.wait()
    return found


def begin(source: Path, step: int, out: Path) -> None:
    """Puts the checkpoint after ``step`` steps of the run in ``source`` where a run in ``out`` goes on from it."""
    name = f"checkpoint-{step:06d}"
    out.mkdir(parents=True)
    shutil.copytree(source / name, out / name)


def case_chain() -> dict[str, Any]:
    """A link of ``CHAIN``: goes on from the checkpoint in ``run``, if there is one."""
    world, out, processes = Path("world"), Path("run"), joined(1)
    rank, ranks = communication.get_rank(), communication.get_group_size()
    if rank == 0 and not world.exists():
        train_world.make_world(world)
    processes.world.wait()
    sequence, stage = CHAIN[ranks]
    data = recipe(world, ranks, sequence, stage, out.exists(), every=1, samples=CHAIN_SAMPLES)
    processes.world.wait()
    return {"curve": np.array(run(data, out, Path(f"run-{rank}.jsonl")))}


def online_recipe(world: Path, ranks: int) -> dict[str, Any]:
    """Two steps of two clips that are encoded in the loop, full fine-tuning by ZeRO-2."""
    csv = str(world / "clips" / "video_caption.csv")
    return {
        "schema": 1, "kind": "train", "name": "online", "runtime": {"mode": "pynative", "workers": ranks},
        "model": {"path": str(world / "model")}, "text": {"max_length": 16}, "video": {**SIZE, "frames": 9},
        "data": {"csv": csv, "encode": "online", "video_folder": str(world / "clips")},
        "parallel": {"zero_stage": 2 if ranks > 1 else 0},
        "train": {"steps": 2, "gradient_accumulation_steps": 2 // ranks, "horizontal_flip": True},
    }  # fmt: skip


def case_online() -> dict[str, Any]:
    """Two ranks that each encode their own clips."""
    world, processes = Path("online-world"), joined(1)
    rank, ranks = communication.get_rank(), communication.get_group_size()
    if rank == 0:
        make_online_world(world)
    processes.world.wait()
    return {"curve": np.array(run(online_recipe(world, ranks), Path("online"), Path(f"online-{rank}.jsonl")))}


def make_online_world(world: Path) -> None:
    """A tiny model with VAE and text encoder, and three clips."""
    make_model.start_mindspore = lambda runtime, seed: {}
    loaded = from_dict({"schema": 1, "kind": "make-model", "name": "m", "model": {"preset": "tiny-1.5"}})
    (world / "model").mkdir(parents=True)
    make_model.run(loaded, RunContext(loaded, world / "model", loaded.seed, EventLog(world / "model.jsonl")))
    shapes.write_clips(world / "clips", [shapes.draw_clip(0, i) for i in range(3)], frames=9, fps=8, **SIZE)
