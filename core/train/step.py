"""One optimiser step: gradients of several micro-batches, loss scale, clipping, update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np

from core import ops
from core.optim.clip import clip_factor
from core.parallel.collectives import alone
from core.parallel.zero import Zero
from core.schedulers.base import Scheduler
from core.train.in_backward import InBackward
from core.train.loss import LOSSES, LossKind, TimestepKind, draw_timesteps, loss_inputs, noise_of


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Training input: scaled latents ``[B, F, C, H, W]``, text ``[B, L, D]``, the samples' numbers, their files.

    ``bucket``: which of the run's sizes this is.
    """

    latents: np.ndarray
    text: np.ndarray
    samples: list[int]
    files: list[str]
    bucket: int = 0


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Mean loss over the micro-batches and the gradients' global norm before clipping, both without loss scale.

    ``skipped``: the gradients overflowed and nothing was updated.
    """

    loss: float
    grad_norm: float
    skipped: bool = False


class TrainStep:
    """Computes gradients and updates the parameters; a function of its arguments and the state it is given.

    Args:
        transformer: the model; ``optimizer.parameters`` of it are updated.
        scheduler: gives the noise table.
        optimizer: ``step(gradients, lr, factor)``.
        max_grad_norm: bound of the global norm, None for no clipping.
        seed: of noise and time steps.
        loss, timesteps: see ``core.train.loss``.
        loss_scale: ``.value`` multiplies the loss before its gradients are taken, ``.update(overflowed)`` follows each
            step; None for 1 and no skipping.
        max_skips: skipped steps in a row after which a further overflow is an error.
        zero: what of the parameters this process holds and exchanges; ``optimizer.parameters`` are its ``parameters``.
            None is for the only process.
        data_ranks: number of processes, or groups of them, that work on other samples of the step.
        in_backward: updates while gradients are computed (one process, one micro-batch, no loss scale); with
            ``max_grad_norm`` each step computes its gradients twice, first for their norm.
    """

    def __init__(
        self,
        transformer: Any,
        scheduler: Scheduler,
        optimizer: Any,
        *,
        max_grad_norm: float | None,
        seed: int,
        loss: LossKind = "velocity",
        timesteps: TimestepKind = "uniform",
        loss_scale: Any = None,
        max_skips: int = 20,
        zero: Zero | None = None,
        data_ranks: int = 1,
        in_backward: InBackward | None = None,
    ):
        assert in_backward is None or (loss_scale is None and data_ranks == 1)
        self.in_backward = in_backward
        self.zero = zero or Zero(transformer, optimizer.parameters, alone().world, 0, masters=False)
        self.data_ranks = data_ranks
        self.scheduler, self.optimizer, self.loss_scale = scheduler, optimizer, loss_scale
        self.max_grad_norm, self.seed, self.max_skips = max_grad_norm, seed, max_skips
        self.loss: LossKind = loss
        self.timesteps: TimestepKind = timesteps
        self.skips_in_a_row = 0
        self.gradient_bytes: int | None = None  # of the reduced gradients that this process holds, after the first step

        def scaled(scale, text, noisy, timesteps, *rest):
            return LOSSES[loss](transformer, noisy, text, timesteps, *rest) * scale

        variables = self.zero.variables if in_backward is None else in_backward.variables
        self._gradients = ops.value_and_gradients(scaled, variables)

    def __call__(self, step: int, batches: Sequence[Batch], lr: float) -> StepResult:
        """Runs optimiser step ``step`` on this process's micro-batches, one or more of equal size.

        Every process gets the same result and takes the same decisions.

        Raises:
            FloatingPointError: the loss or the gradients are not finite and a smaller loss scale can't help; nothing
                was updated.
        """
        if self.in_backward is not None:
            return self._at_once(step, batches, lr)
        scale = 1.0 if self.loss_scale is None else float(self.loss_scale.value)
        losses = self._passes(step, batches, scale)
        total = self.zero.reduced()
        if self.gradient_bytes is None:
            self.gradient_bytes = sum(gradient.size * gradient.itemsize for gradient in total)
        parts = len(batches) * self.data_ranks
        norm = self.zero.norm(total) / (parts * scale)
        loss, grad_norm = self.zero.mean(float(np.mean(losses))), float(norm)
        overflowed = not np.isfinite(grad_norm)
        if not np.isfinite(loss) or (overflowed and not self._may_skip()):
            raise FloatingPointError(self._report(step, batches, loss, grad_norm))
        if self.loss_scale is not None:
            self.loss_scale.update(overflowed)
        self.skips_in_a_row = self.skips_in_a_row + 1 if overflowed else 0
        if not overflowed:
            self.optimizer.step(total, lr, clip_factor(norm, self.max_grad_norm) / (parts * scale))
            self.zero.updated(self.optimizer)
        return StepResult(loss=loss, grad_norm=grad_norm, skipped=overflowed)

    def _at_once(self, step: int, batches: Sequence[Batch], lr: float) -> StepResult:
        """The step whose updates happen in the backward pass: without clipping what is not finite is seen too late."""
        assert self.in_backward is not None
        assert len(batches) == 1, "gradients of several micro-batches are summed first"
        count, factor = len(batches[0].samples), ms.Tensor(1.0, ms.float32)
        if self.max_grad_norm is not None:
            self.in_backward.measure()
            loss, _ = self._pass(step, batches[0], count, 1.0)
            norm = self.in_backward.finish()
            if not np.isfinite(loss) or not np.isfinite(float(norm)):
                raise FloatingPointError(self._report(step, batches, loss, float(norm)))
            factor = clip_factor(norm, self.max_grad_norm)
        self.in_backward.begin(lr, factor)
        loss, _ = self._pass(step, batches[0], count, 1.0)
        norm = float(self.in_backward.finish())
        self.gradient_bytes = self.in_backward.largest
        if not np.isfinite(loss) or not np.isfinite(norm):
            raise FloatingPointError(f"{self._report(step, batches, loss, norm)}; parameters are updated already")
        self.zero.updated(self.optimizer)
        return StepResult(loss=loss, grad_norm=norm)

    def _passes(self, step: int, batches: Sequence[Batch], scale: float) -> list[float]:
        """Losses of the micro-batches; ``zero`` gets their scaled gradients."""
        count = sum(len(batch.samples) for batch in batches) * self.data_ranks
        losses: list[float] = []
        for number, batch in enumerate(batches, start=1):
            self.zero.begin_pass(first=number == 1, last=number == len(batches))
            loss, gradients = self._pass(step, batch, count, scale)
            self.zero.end_pass(gradients)
            gradients = []
            losses.append(loss)
        return losses

    def _pass(self, step: int, batch: Batch, count: int, scale: float) -> tuple[float, list[Any]]:
        """One micro-batch's loss and scaled gradients; ``count``: samples of the whole step."""
        arrays = [np.ascontiguousarray(a) for a in (batch.text, *self._inputs(step, batch, count))]
        loss, gradients = self._gradients(ms.Tensor(scale, ms.float32), *(ms.Tensor(a) for a in arrays))
        return float(loss) / scale, list(gradients)

    def _inputs(self, step: int, batch: Batch, count: int) -> tuple[np.ndarray, ...]:
        steps = self.scheduler.config.num_train_timesteps
        drawn = draw_timesteps(self.seed, step, batch.samples, steps, kind=self.timesteps, count=count)
        noise = noise_of(batch.latents.shape[1:], self.seed, step, batch.samples)
        return loss_inputs(self.loss, self.scheduler, batch.latents, noise, drawn)

    def _may_skip(self) -> bool:
        scale = self.loss_scale
        if scale is None or self.skips_in_a_row >= self.max_skips:
            return False
        return scale.factor == 1 or not scale.exhausted  # a dynamic scale of 1 can't become smaller

    def _report(self, step: int, batches: Sequence[Batch], loss: float, grad_norm: float) -> str:
        files = ", ".join(f for batch in batches for f in batch.files)
        many = f" after {self.skips_in_a_row} skipped steps in a row" if self.skips_in_a_row else ""
        return (
            f"step {step}: loss {loss}, gradient norm {grad_norm}{many}; the batch was {files}; "
            "lower optimizer.lr, or check these files"
        )
