"""What the two samplers share: the noise table, the time step list and the estimate of the clean sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from core.configs import SchedulerConfig
from core.errors import UserError
from core.schedulers import noise
from core.schedulers.timesteps import PUBLISHED, checked, spaced

Previous = Literal["reference", "list"]


class Scheduler:
    """Base of the samplers; works on NumPy arrays and MindSpore tensors alike and keeps no state between steps.

    Attributes:
        alphas_cumprod: float64 ``[T]``.
        final_alpha_cumprod: level after the last step, 1 unless ``set_alpha_to_one`` is false.
        timesteps: int64 ``[n]``, strictly decreasing; all T of them until ``set_timesteps``.
    """

    init_noise_sigma = 1.0

    def __init__(self, config: SchedulerConfig):
        self.config = config
        self.alphas_cumprod = noise.alphas_cumprod(config)
        self.final_alpha_cumprod = 1.0 if config.set_alpha_to_one else float(self.alphas_cumprod[0])
        self.timesteps = np.arange(config.num_train_timesteps, dtype=np.int64)[::-1].copy()
        self.previous: Previous = "list"
        self._following: dict[int, int] = {}
        self._stride: int | None = None

    @property
    def num_inference_steps(self) -> int | None:
        """Number of steps, None before ``set_timesteps``."""
        return None if self._stride is None else len(self.timesteps)

    def set_timesteps(
        self,
        n: int | None = None,
        kind: str | None = None,
        timesteps: Sequence[int] | np.ndarray | None = None,
        previous: Previous | None = None,
    ) -> None:
        """Chooses the steps: ``n`` of a ``kind`` (default: the config's ``timestep_spacing``), or a list.

        ``previous`` decides where a step at t ends: ``"reference"`` at t - T // n as the published code computes
        (which misses the list where n does not divide T), ``"list"`` at the next element. Default: reference for
        trailing, linspace and leading, list for linear-quadratic and explicit lists.

        Raises:
            UserError: an illegal n, kind or list.
        """
        total = self.config.num_train_timesteps
        if timesteps is not None:
            if kind is not None:
                raise UserError(f"timesteps: got a list and also kind {kind!r}, need one of the two")
            chosen = checked(timesteps, total)
            if n is not None and n != len(chosen):
                raise UserError(f"timesteps: got {len(chosen)} values but {n} steps, need equal numbers or no steps")
        elif n is None:
            raise UserError("steps: got nothing, need a number of steps or a list of time steps")
        else:
            kind = kind or self.config.timestep_spacing
            chosen = spaced(kind, n, total, self.config.steps_offset)
        if previous not in (None, "reference", "list"):
            raise UserError(f"previous: got {previous!r}, need 'reference' or 'list'")
        self.previous = previous or ("reference" if kind in PUBLISHED else "list")
        self.timesteps = chosen
        self._stride = total // len(chosen)
        self._following = dict(zip(chosen.tolist(), [*chosen[1:].tolist(), -1], strict=True))

    def previous_timestep(self, timestep: int) -> int:
        """Where the step at ``timestep`` ends; negative means clean data (``final_alpha_cumprod``)."""
        if self._stride is None:
            raise UserError("scheduler: step before set_timesteps, need set_timesteps first")
        if self.previous == "reference":
            return timestep - self._stride
        if timestep not in self._following:
            raise UserError(f"timestep {timestep}: not one of the {len(self.timesteps)} chosen time steps")
        return self._following[timestep]

    def alpha(self, timestep: int) -> float:
        """Signal level at ``timestep``; a negative one means after the last step."""
        return float(self.alphas_cumprod[timestep]) if timestep >= 0 else self.final_alpha_cumprod

    def scale_model_input(self, sample: Any, timestep: int | None = None) -> Any:
        """``sample`` unchanged; present because pipelines call it."""
        return sample

    def pred_original(self, model_output: Any, timestep: int, sample: Any) -> Any:
        """Estimate of the clean sample from the model's output; all three of shape ``[B, ...]``.

        Raises:
            UserError: a model that predicts the noise cannot be inverted where no signal is left.
        """
        level = self.alpha(timestep)
        signal, rest = math.sqrt(level), math.sqrt(1.0 - level)
        kind = self.config.prediction_type
        if kind == "v_prediction":
            return signal * sample - rest * model_output
        if kind == "sample":
            return model_output
        if signal == 0.0:
            raise UserError(
                f"timestep {timestep}: no signal is left there (zero SNR), so a noise prediction says nothing about "
                "the sample; need prediction_type v_prediction or sample, or rescale_betas_zero_snr false"
            )
        return (sample - rest * model_output) / signal

    def add_noise(self, original_samples: Any, noise_: Any, timesteps_: Any) -> Any:
        """x_0 ``[B, ...]``, noise ``[B, ...]``, time steps ``[B]`` -> x_t ``[B, ...]``."""
        return noise.add_noise(self.alphas_cumprod, original_samples, noise_, timesteps_)

    def get_velocity(self, sample: Any, noise_: Any, timesteps_: Any) -> Any:
        """x_0 ``[B, ...]``, noise ``[B, ...]``, time steps ``[B]`` -> target of v-prediction ``[B, ...]``."""
        return noise.velocity(self.alphas_cumprod, sample, noise_, timesteps_)
