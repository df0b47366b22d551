"""The loss on clips that are not trained on, at fixed time steps with fixed noise: comparable between steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np

from core import draws
from core.schedulers.base import Scheduler
from core.train.loss import loss_inputs, velocity_loss


@dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """Mean loss over clips and time steps, and over the clips at each time step."""

    loss: float
    by_timestep: dict[int, float]
    samples: int


class Validation:
    """Velocity loss of ``transformer`` on every clip once.

    Args:
        clips: ``core.data.clips.TrainingClips``, not shuffled and without text drop.
        timesteps: where the loss is taken.
        seed: of the noise, one stream for each (time step, clip).
    """

    def __init__(self, transformer: Any, scheduler: Scheduler, clips: Any, timesteps: Sequence[int], seed: int):
        self.transformer, self.scheduler, self.clips = transformer, scheduler, clips
        self.timesteps, self.seed = tuple(timesteps), seed

    def __call__(self) -> ValidationResult:
        """Runs it; changes nothing."""
        totals = dict.fromkeys(self.timesteps, 0.0)
        seen: set[int] = set()
        for step in range(math.ceil(self.clips.statistics()["steps_per_epoch"])):
            batch = self.clips.batch(step)
            # Last batches are filled up with clips that were there before: each clip counts once.
            new = [place for place, item in enumerate(batch["item"]) if item not in seen]
            new = [place for place in new if batch["item"].index(batch["item"][place]) == place]
            seen.update(batch["item"])
            for timestep in self.timesteps if new else ():
                totals[timestep] += len(new) * self._loss(batch, new, timestep)
        means = {timestep: total / len(seen) for timestep, total in totals.items()}
        return ValidationResult(loss=float(np.mean(list(means.values()))), by_timestep=means, samples=len(seen))

    def _loss(self, batch: dict[str, Any], places: list[int], timestep: int) -> float:
        latents, text = batch["latents"][places], batch["prompt_embeds"][places]
        items = [batch["item"][place] for place in places]
        noise = np.stack([draws.normal(latents.shape[1:], self.seed, "validation", timestep, item) for item in items])
        steps = np.full(len(places), timestep, np.int64)
        noisy, _, target = loss_inputs("velocity", self.scheduler, latents, noise, steps)
        arrays = (noisy, text, steps, target)
        return float(velocity_loss(self.transformer, *(ms.Tensor(np.ascontiguousarray(a)) for a in arrays)))
