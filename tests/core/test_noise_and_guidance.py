"""Noise tables, noising and guidance by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import mindspore as ms
import numpy as np
import pytest

from core.errors import UserError
from core.presets import PRESETS
from core.schedulers import noise
from core.schedulers.ddim import CogVideoXDDIMScheduler
from core.schedulers.guidance import dynamic_guidance_scale, guided

CONFIG = PRESETS["1.5-5b"].scheduler


def test_scaled_linear_by_hand():
    table = noise.alphas_cumprod(replace(CONFIG, num_train_timesteps=3, rescale_betas_zero_snr=False))
    middle = ((math.sqrt(0.00085) + math.sqrt(0.012)) / 2) ** 2
    assert table == pytest.approx([0.99915, 0.99915 * (1 - middle), 0.99915 * (1 - middle) * 0.988], abs=1e-14)
    assert table.dtype == np.float64


def test_linear_and_cosine_by_hand():
    config = replace(CONFIG, num_train_timesteps=2, beta_start=0.1, beta_end=0.3)
    assert noise.betas(replace(config, beta_schedule="linear")) == pytest.approx([0.1, 0.3])
    cosine = noise.betas(replace(config, beta_schedule="squaredcos_cap_v2"))
    level = [math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0, 0.5)]
    assert cosine == pytest.approx([1 - level[1] / level[0], 0.999])


def test_shift_and_rescale_by_hand():
    levels = np.array([0.81, 0.36, 0.04])
    # signal to noise 4 : 1 divided by 3 is 4 : 3
    assert noise.shift_snr(np.array([0.8]), 3.0) == pytest.approx([4 / 7])
    # roots 0.9, 0.6, 0.2 less 0.2 and times 0.9 / 0.7
    assert noise.rescale_zero_snr(levels) == pytest.approx([0.81, (0.4 * 9 / 7) ** 2, 0.0])
    assert noise.rescale_zero_snr(levels)[-1] == 0.0


def test_shift_comes_before_the_rescale():
    plain = replace(CONFIG, rescale_betas_zero_snr=False, snr_shift_scale=1.0)
    base = noise.alphas_cumprod(plain)
    both = noise.alphas_cumprod(replace(plain, rescale_betas_zero_snr=True, snr_shift_scale=3.0))
    np.testing.assert_array_equal(both, noise.rescale_zero_snr(noise.shift_snr(base, 3.0)))
    assert np.abs(both - noise.shift_snr(noise.rescale_zero_snr(base), 3.0)).max() > 1e-4


@pytest.mark.parametrize("name", ["5b", "2b"])
def test_published_tables_end_in_pure_noise(name):
    table = noise.alphas_cumprod(PRESETS[name].scheduler)
    assert len(table) == 1000
    assert table[-1] == 0.0
    assert 0.99 < table[0] < 1.0
    assert (np.diff(table) < 0).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trained_betas": (0.1, 0.2)}, "got 2 values, need num_train_timesteps 1000"),
        ({"beta_schedule": "linear", "beta_start": -0.1}, "betas between 0 and 1"),
        ({"snr_shift_scale": 0.0}, "positive scale"),
    ],
)
def test_impossible_tables_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        CogVideoXDDIMScheduler(replace(CONFIG, **change))


def test_add_noise_and_velocity_by_hand():
    table = np.array([0.64, 0.36])
    x, e = np.array([[1.0], [2.0]]), np.array([[3.0], [-1.0]])
    np.testing.assert_allclose(noise.add_noise(table, x, e, [0, 1]), [[0.8 + 1.8], [1.2 - 0.8]])
    np.testing.assert_allclose(noise.velocity(table, x, e, [0, 1]), [[2.4 - 0.6], [-0.6 - 1.6]])


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 5, 6)])
def test_noise_on_tensors_equals_arrays(shape):
    scheduler = CogVideoXDDIMScheduler(CONFIG)
    rng = np.random.default_rng(0)
    x, e = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    for method in (scheduler.add_noise, scheduler.get_velocity):
        array = method(x, e, np.array([7, 900]))
        tensor = method(ms.Tensor(x), ms.Tensor(e), ms.Tensor([7, 900]))
        assert array.dtype == np.float32
        assert tensor.dtype == ms.float32
        np.testing.assert_allclose(tensor.asnumpy(), array, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("timestep", "expected"),
    [
        (0, 7.0),  # base 1: cos(pi) = -1
        (50, 1.0),  # base 0
        (25, 1.0 + 6.0 * (1.0 - math.cos(math.pi / 32.0)) / 2.0),  # base 1/2
        (100, 7.0),  # base -1: a negative base under the fifth power
        (150, 1.0),  # base -2: cos(-32 pi) = 1
    ],
)
def test_dynamic_guidance_by_hand(timestep, expected):
    assert dynamic_guidance_scale(6.0, timestep, 50) == pytest.approx(expected, abs=1e-9)


def test_dynamic_guidance_jumps_about_with_the_published_argument():
    scales = [dynamic_guidance_scale(6.0, t, 50) for t in range(999, -1, -20)]
    assert [round(s, 2) for s in scales[:6]] == [2.29, 2.54, 6.97, 6.42, 2.79, 4.27]
    assert sum(a > b for a, b in pairwise(scales)) > 15


def test_guided_by_hand():
    np.testing.assert_allclose(guided(np.array([1.0, 2.0]), np.array([2.0, 0.0]), 6.0), [7.0, -10.0])
    np.testing.assert_allclose(guided(np.array([1.0]), np.array([2.0]), 1.0), [2.0])
