"""Sampling N(0.3, 0.5^2) with its exact model: what each time step rule costs, without random numbers.

With this model every step is linear in (1, the start noise, the noise of each step). A sample is kept as those
coefficients: entry 0 is then the mean of the result, the norm of the rest its standard deviation.
The numbers are those of docs/design/004-timesteps.md.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from core.presets import PRESETS
from core.schedulers.base import Scheduler
from core.schedulers.ddim import CogVideoXDDIMScheduler
from core.schedulers.dpm import CogVideoXDPMScheduler
from core.schedulers.timesteps import linear_quadratic

CONFIG = PRESETS["1.5-5b"].scheduler
MEAN, STD = 0.3, 0.5
DDIM, DPM = CogVideoXDDIMScheduler, CogVideoXDPMScheduler


def _result(sampler: type[Scheduler], *, n=None, kind=None, timesteps=None, previous=None) -> tuple[float, float]:
    """Mean and standard deviation of what the sampler makes of standard normal noise."""
    scheduler = sampler(CONFIG)
    scheduler.set_timesteps(n, kind, timesteps, previous)
    unit = np.eye(len(scheduler.timesteps) + 2)
    sample, old, back = unit[1], None, None
    for i, t in enumerate(scheduler.timesteps.tolist()):
        level = scheduler.alpha(t)
        mean = math.sqrt(level) * MEAN * unit[0]
        gain = math.sqrt(level) * STD**2 / (level * STD**2 + 1 - level)
        clean = MEAN * unit[0] + gain * (sample - mean)
        output = (math.sqrt(level) * sample - clean) / math.sqrt(1 - level)
        if isinstance(scheduler, CogVideoXDPMScheduler):
            sample, old = scheduler.step(output, old, t, back, sample, noise=unit[i + 2])
        else:
            assert isinstance(scheduler, CogVideoXDDIMScheduler)
            sample, old = scheduler.step(output, t, sample)
        back = t
    return sample[0], float(np.linalg.norm(sample[1:]))


def _mirrored(n: int) -> list[int]:
    """Fine steps at the clean end instead of the noisy one."""
    return [999, *(999 - linear_quadratic(n, 1000)[::-1])[1:].tolist()]


@pytest.mark.parametrize("sampler", [DDIM, DPM])
@pytest.mark.parametrize("kind", ["trailing", "linspace", "linear-quadratic"])
def test_both_samplers_approach_the_distribution(sampler, kind):
    errors = [abs(_result(sampler, n=n, kind=kind, previous="list")[1] - STD) for n in (10, 50, 250, 1000)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01


# sampler, n, trailing, linear-quadratic, mirrored: standard deviations, 0.5 is right
TABLE = [
    (DDIM, 10, 0.3791, 0.2329, 0.4027),
    (DDIM, 50, 0.4674, 0.4080, 0.4813),
    (DDIM, 100, 0.4820, 0.4476, 0.4911),
    (DPM, 10, 0.3968, 0.2290, 0.5179),
    (DPM, 50, 0.4891, 0.4302, 0.4999),
    (DPM, 100, 0.4962, 0.4727, 0.4997),
]


@pytest.mark.parametrize(("sampler", "n", "trailing", "linear_quadratic_", "mirrored"), TABLE)
def test_linear_quadratic_is_less_accurate_than_trailing(sampler, n, trailing, linear_quadratic_, mirrored):
    found = [
        _result(sampler, n=n, kind="trailing")[1],
        _result(sampler, n=n, kind="linear-quadratic")[1],
        _result(sampler, timesteps=_mirrored(n))[1],
    ]
    assert found == pytest.approx([trailing, linear_quadratic_, mirrored], abs=6e-5)


# n, sampler, mean and deviation with the published end of a step, the same with the list's
MISSED = [
    (7, DDIM, (0.2992, 0.3610), (0.3000, 0.3414)),
    (7, DPM, (0.2991, 0.7740), (0.3000, 0.3487)),
    (60, DDIM, (0.2929, 0.4926), (0.3000, 0.4719)),
    (60, DPM, (0.2968, 0.5777), (0.3000, 0.4910)),
    (600, DDIM, (0.2118, 0.6586), (0.3000, 0.4960)),
    (600, DPM, (0.2552, 0.5832), (0.3000, 0.4994)),
]


@pytest.mark.parametrize(("n", "sampler", "reference", "listed"), MISSED)
def test_what_the_published_arithmetic_costs_where_n_does_not_divide(n, sampler, reference, listed):
    assert _result(sampler, n=n, kind="trailing", previous="reference") == pytest.approx(reference, abs=6e-5)
    assert _result(sampler, n=n, kind="trailing", previous="list") == pytest.approx(listed, abs=6e-5)
