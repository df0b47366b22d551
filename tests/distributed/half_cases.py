"""Parameters stored in bf16 or fp16 beside fp32 masters, by every stage of ZeRO."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mindspore as ms
import numpy as np

from bench.tasks.train_state import TrainingState
from core.parallel.collectives import Processes, joined
from tests.distributed.train_cases import CONFIG, STEPS, Training
from tests.distributed.train_cases import LORA as OTHER_LORA

TYPES = {"bf16": ms.bfloat16, "fp16": ms.float16}
# Every tensor's rows divide by two: the plan's formulas know no padding.
EVEN = replace(CONFIG, text_embed_dim=12, time_embed_dim=16)
LORA = replace(OTHER_LORA, rank=4)
# (type, ZeRO stage) -> steps
RUNS = {("bf16", 0): 6, ("bf16", 1): 6, ("bf16", 2): STEPS, ("bf16", 3): 6, ("fp16", 2): 6}
CLASSES = ("parameters", "masters", "gradients", "optimizer")


def training(processes: Processes, stage: int, dtype: str, optimizer: str = "adamw", method: str = "sft") -> Training:
    """Two samples and no clipping: a sum of two has one order only, and no norm over parts decides a bit."""
    options: dict[str, Any] = {"config": EVEN, "samples": lambda _: 2, "max_grad_norm": None, "lora": LORA}
    recompute = "all" if stage == 3 else "none"
    return Training(processes, stage, optimizer, method, recompute, dtype=TYPES[dtype], **options)


def result(trained: Training, steps: int) -> dict[str, np.ndarray]:
    """Curve, masters, whole parameters, and bytes held by class: as a training run counts them for its record."""
    curve = np.array(trained.run(0, steps))
    sent = trained.processes.traffic.sent
    purposes = [sum(n for (what, _), n in sent.items() if what == p) for p in ("gradients", "parameters")]
    whole = [q.astype(ms.float32).asnumpy().ravel() for q in trained.zero.whole]
    return {
        "curve": curve,
        "sent": np.array(purposes) / steps,
        "values": trained.values(),
        "whole": np.concatenate(whole) if whole else np.zeros(0, np.float32),
        "held": np.array([held_bytes(trained).get(name, 0) for name in CLASSES]),
    }


def held_bytes(trained: Training) -> dict[str, int]:
    """The training task's own count."""
    parts: dict[str, Any] = {"lora": None, "ema": None, "loss_scale": None}
    state = TrainingState(
        transformer=trained.model, optimizer=trained.optimizer, step_fn=trained.step_fn, zero=trained.zero, **parts
    )
    return state.held_bytes()


def case_half() -> dict[str, Any]:
    """Every stage in bf16, and stage 2 in fp16; then the bytes of CAME and of a LoRA after a step."""
    found: dict[str, Any] = {}
    for (dtype, stage), steps in RUNS.items():
        arrays = result(training(joined(1), stage, dtype), steps)
        found |= {f"{dtype}/{stage}/{name}": value for name, value in arrays.items()}
    for optimizer, method in (("came", "sft"), ("adamw", "lora")):
        for stage in range(4):
            trained = training(joined(1), stage, "bf16", optimizer, method)
            found[f"{optimizer}/{method}/{stage}/held"] = result(trained, 1)["held"]
    return found
