"""Parameters stored in bf16 or fp16 beside fp32 masters, by every stage of ZeRO."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np

from bench.tasks.train_state import TrainingState
from core.parallel.collectives import Processes, joined
from core.parallel.gathering import Gathering
from tests.distributed.train_cases import STEPS, Training, batch

TYPES = {"bf16": ms.bfloat16, "fp16": ms.float16, "fp32": ms.float32}
# (type, ZeRO stage) -> steps
RUNS = {("bf16", 0): 6, ("bf16", 1): 6, ("bf16", 2): STEPS, ("bf16", 3): 6, ("fp16", 2): 6}
# (ZeRO stage, optimiser): six steps whose gradients are scaled down to a norm that none of them is below.
CLIPPED, CLIPPED_STEPS, MAX_NORM = [(0, "adamw"), (1, "came"), (2, "adamw"), (3, "came")], 6, 0.05
SHARED_STEPS = 6
CLASSES = ("parameters", "masters", "gradients", "optimizer")


def training(
    processes: Processes, stage: int, dtype: str, optimizer: str = "adamw", method: str = "sft",
    max_grad_norm: float | None = None,
) -> Training:  # fmt: skip
    """Two samples: a sum of two has one order only; and without clipping no norm over parts decides a bit."""
    options: dict[str, Any] = {"samples": lambda _: 2, "max_grad_norm": max_grad_norm}
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


def case_clipped() -> dict[str, Any]:
    """bf16 with clipping, whose norm is summed over parts."""
    found: dict[str, Any] = {}
    for stage, optimizer in CLIPPED:
        trained = training(joined(1), stage, "bf16", optimizer, max_grad_norm=MAX_NORM)
        found |= {f"{stage}/{name}": value for name, value in result(trained, CLIPPED_STEPS).items()}
    return found


def case_shared() -> dict[str, Any]:
    """bf16 where two ranks share a sample's tokens: the first gradients, then some steps."""
    trained = training(joined(2), 2, "bf16")
    found: dict[str, Any] = {"parts": _flat(first_gradients(trained)), "wanted": _flat(_rounded_by_hand())}
    return found | result(trained, SHARED_STEPS)


def first_gradients(trained: Training) -> list[Any]:
    """Of the first sample, as they come out of the backward pass: reduced already in stages 2 and 3."""
    zero, data = trained.step_fn.zero, trained.step_fn.data_ranks
    zero.begin_pass(first=True, last=False)
    zero.end_pass(trained.step_fn._pass(0, batch(0, [0]), data, 1.0)[1])
    return zero._total or [zero._reducer._total[place] for place in range(len(zero.names))]


def _rounded_by_hand() -> list[Any]:
    """The same parts from fp32 parameters of the same values: own gradients, each rounded once, summed in fp32."""
    other = training(joined(2), 0, "fp32")
    for q in other.zero.whole:
        q.set_data(q.astype(ms.bfloat16).astype(ms.float32))
    cuts = training(joined(2), 2, "bf16").zero.cuts
    wire = Gathering(other.processes.world, (), tuple(cuts), ms.bfloat16, ms.float32)
    return wire.scatter(first_gradients(other))


def _flat(tensors: list[Any]) -> np.ndarray:
    return np.concatenate([tensor.astype(ms.float32).asnumpy().ravel() for tensor in tensors])
