"""Whole sampling paths of diffusers' two CogVideoX schedulers on a few numbers, as arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import diffusers
import numpy as np
import torch

from core.configs import SchedulerConfig
from core.presets import PRESETS
from core.schedulers.timesteps import PUBLISHED
from tests.parity.cases_text import flat

_BASE = PRESETS["1.5-5b"].scheduler
STEPS = (1, 2, 4, 7, 30, 50)
PREDICTIONS = ("v_prediction", "sample", "epsilon")
SHAPE = (2, 3, 4)


def configs() -> Iterator[SchedulerConfig]:
    """Every combination of SNR shift, zero SNR, spacing and prediction type."""
    for shift, zero, kind, prediction in product((1.0, 3.0), (True, False), PUBLISHED, PREDICTIONS):
        yield replace(
            _BASE,
            snr_shift_scale=shift,
            rescale_betas_zero_snr=zero,
            timestep_spacing=kind,
            prediction_type=prediction,
        )


def label(sampler: str, config: SchedulerConfig, n: int) -> str:
    """One line that names a case."""
    zero = "zero SNR" if config.rescale_betas_zero_snr else "no zero SNR"
    return f"{sampler} {config.timestep_spacing} {config.prediction_type} shift {config.snr_shift_scale:g} {zero} n {n}"


def path(sampler: str, config: SchedulerConfig, n: int, seed: int = 0) -> dict[str, Any]:
    """One path: start, model outputs and effective noises in, every ``prev_sample`` and clean estimate out.

    Arrays are fp32 ``[n, *SHAPE]``. The reference draws its own noise from a torch generator; the draws are
    reproduced beside it, and of two in one step the last is kept, the only one with an effect.
    """
    reference = getattr(diffusers, f"CogVideoX{sampler}Scheduler")(**config.to_dict())
    reference.set_timesteps(n)
    rng = np.random.default_rng(seed)
    start = rng.standard_normal(SHAPE).astype(np.float32)
    outputs = rng.standard_normal((len(reference.timesteps), *SHAPE)).astype(np.float32)
    theirs, beside = (torch.Generator().manual_seed(seed) for _ in range(2))
    sample, old, back, noises, previous, clean = torch.tensor(start), None, None, [], [], []
    for t, output in zip(reference.timesteps, outputs, strict=True):
        draw = torch.zeros(SHAPE)
        if sampler == "DPM":
            ends_clean = t - config.num_train_timesteps // n < 0
            for _ in range(1 if old is None or ends_clean else 2):
                draw = torch.randn(SHAPE, generator=beside)
            sample, old = reference.step(
                torch.tensor(output), old, t, back, sample, generator=theirs, return_dict=False
            )
        else:
            sample, old = reference.step(torch.tensor(output), t, sample, return_dict=False)
        assert torch.equal(theirs.get_state(), beside.get_state()), "the reference drew another number of noises"
        back = t
        noises.append(draw.numpy())
        previous.append(sample.numpy())
        clean.append(old.numpy())
    return {
        "name": label(sampler, config, n),
        "config": config.to_dict(),
        "inputs": {"start": start, "model_outputs": outputs, "noises": np.stack(noises), "n": np.int64(n)},
        "weights": {},
        "outputs": {
            "timesteps": reference.timesteps.numpy(),
            "prev_samples": np.stack(previous),
            "pred_original_samples": np.stack(clean),
        },
    }


def all_cases() -> list[dict[str, Any]]:
    """Both samplers at the published configs and at awkward numbers of steps."""
    chosen = [
        ("5b", "trailing", 4),
        ("5b", "trailing", 50),
        ("2b", "trailing", 7),
        ("2b", "linspace", 4),
        ("5b", "leading", 7),
    ]
    return [
        path(sampler, replace(PRESETS[preset].scheduler, timestep_spacing=kind), n)
        for (preset, kind, n), sampler in product(chosen, ("DDIM", "DPM"))
    ]


def cases() -> dict[str, dict[str, np.ndarray]]:
    """Name (the sampler first) -> arrays (see ``cases_text.flat``), about 70 kB in all."""
    return {found["name"]: flat(found) for found in all_cases()}
