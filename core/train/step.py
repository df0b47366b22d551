"""One optimiser step: gradients of several micro-batches, clipping, update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np

from core import ops
from core.optim.clip import clip_factor, global_norm
from core.schedulers.base import Scheduler
from core.train.loss import noised, velocity_loss


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Training input: scaled latents ``[B, F, C, H, W]``, text ``[B, L, D]``, the samples' numbers, their files."""

    latents: np.ndarray
    text: np.ndarray
    samples: list[int]
    files: list[str]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Mean loss over the micro-batches and the gradients' global norm before clipping."""

    loss: float
    grad_norm: float


class TrainStep:
    """Computes gradients and updates the parameters.

    Args:
        transformer: the model; its trainable parameters are updated.
        scheduler: gives the noise table.
        optimizer: ``step(gradients, lr, factor)``.
        max_grad_norm: bound of the global norm, None for no clipping.
        seed: of noise and time steps.
    """

    def __init__(
        self, transformer: Any, scheduler: Scheduler, optimizer: Any, *, max_grad_norm: float | None, seed: int
    ):
        self.scheduler, self.optimizer = scheduler, optimizer
        self.max_grad_norm, self.seed = max_grad_norm, seed
        self.names = [q.name for q in optimizer.parameters]

        def loss(noisy, text, timesteps, target):
            return velocity_loss(transformer, noisy, text, timesteps, target)

        self._gradients = ops.value_and_gradients(loss, optimizer.parameters)

    def __call__(self, step: int, batches: Sequence[Batch], lr: float) -> StepResult:
        """Runs optimiser step ``step`` on one or more micro-batches of equal size.

        Raises:
            FloatingPointError: the loss or the gradients are not finite; nothing was updated.
        """
        losses: list[float] = []
        total: list[ms.Tensor] = []
        for batch in batches:
            noisy, target, timesteps = noised(self.scheduler, batch.latents, self.seed, step, batch.samples)
            arrays = (noisy, batch.text, timesteps, target)
            loss, gradients = self._gradients(*(ms.Tensor(np.ascontiguousarray(a)) for a in arrays))
            losses.append(float(loss))
            total = [a + b for a, b in zip(total, gradients, strict=True)] if total else list(gradients)
        norm = global_norm(dict(zip(self.names, total, strict=True))) / len(batches)
        result = StepResult(loss=float(np.mean(losses)), grad_norm=float(norm))
        if not np.isfinite(result.loss) or not np.isfinite(result.grad_norm):
            files = ", ".join(f for batch in batches for f in batch.files)
            raise FloatingPointError(
                f"step {step}: loss {result.loss}, gradient norm {result.grad_norm}; the batch was {files}; "
                "lower optimizer.lr, or check these files"
            )
        self.optimizer.step(total, lr, clip_factor(norm, self.max_grad_norm) / len(batches))
        return result
