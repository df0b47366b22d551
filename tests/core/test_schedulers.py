"""Both samplers: by hand, at their limits, and properties that need no reference."""

from __future__ import annotations

import math
from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.configs import SchedulerConfig
from core.errors import UserError
from core.presets import PRESETS
from core.schedulers.ddim import CogVideoXDDIMScheduler
from core.schedulers.dpm import CogVideoXDPMScheduler, extrapolation, first_order, half_log_snr
from core.schedulers.timesteps import KINDS

CONFIG = PRESETS["1.5-5b"].scheduler
# Two steps whose levels are 0.8 and 0.36, so that every root is short.
HAND = replace(CONFIG, num_train_timesteps=2, trained_betas=(0.2, 0.55), rescale_betas_zero_snr=False)
ONE = np.ones((1, 1))
SAMPLERS = (CogVideoXDDIMScheduler, CogVideoXDPMScheduler)


def _run(scheduler, sample, model, draw, rounds=None):
    """Samples from ``model(sample, t)``; ``draw(shape)`` is the noise of a DPM step."""
    old, back = None, None
    for t in scheduler.timesteps.tolist()[:rounds]:
        output = model(sample, t)
        if isinstance(scheduler, CogVideoXDPMScheduler):
            sample, old = scheduler.step(output, old, t, back, sample, noise=draw(sample.shape))
        else:
            sample, old = scheduler.step(output, t, sample)
        back = t
    return sample


def test_ddim_by_hand():
    scheduler = CogVideoXDDIMScheduler(HAND)
    scheduler.set_timesteps(2)
    assert scheduler.timesteps.tolist() == [1, 0]
    # at 0.36: x0 = 0.6 x 1 - 0.8 x 0.5 = 0.2; sqrt(0.2 / 0.64) = 0.559017; sqrt(0.8) - 0.6 x 0.559017 = 0.559017
    previous, clean = scheduler.step(np.array([0.5]), 1, np.array([1.0]))
    assert clean == pytest.approx([0.2])
    assert previous == pytest.approx([0.559017 * 1.2], abs=1e-6)
    # the last step ends at level 1: the estimate itself
    previous, clean = scheduler.step(np.array([0.5]), 0, np.array([1.0]))
    assert previous == pytest.approx(clean)
    assert clean == pytest.approx([math.sqrt(0.8) - math.sqrt(0.2) * 0.5])


def test_without_alpha_one_the_last_step_ends_at_the_first_level():
    scheduler = CogVideoXDDIMScheduler(replace(HAND, set_alpha_to_one=False))
    scheduler.set_timesteps(2)
    previous, _ = scheduler.step(np.array([0.5]), 0, np.array([1.0]))
    assert previous == pytest.approx([1.0])


def test_dpm_factors_by_hand():
    assert half_log_snr(0.8) == pytest.approx(math.log(2))
    assert half_log_snr(0.5) == 0.0
    # e^lambda is 0.75 at 0.36 and 2 at 0.8, so e^-h = 0.375
    keep, gain, spread = first_order(0.36, 0.8)
    assert keep == pytest.approx(math.sqrt(0.2 / 0.64) * 0.375)
    assert gain == pytest.approx((1 - 0.375**2) * math.sqrt(0.8))
    assert spread == pytest.approx(math.sqrt(0.2) * math.sqrt(1 - 0.375**2))
    # lambda = -log 2, 0, log 2: equal strides give the classical 3/2 and -1/2
    assert extrapolation(0.2, 0.5, 0.8) == pytest.approx(0.5)


def test_dpm_factors_at_infinite_lambda():
    assert first_order(0.0, 0.8) == pytest.approx((0.0, math.sqrt(0.8), math.sqrt(0.2)))
    assert first_order(0.5, 1.0) == (0.0, 1.0, 0.0)
    assert first_order(0.0, 1.0) == (0.0, 1.0, 0.0)
    assert extrapolation(0.0, 0.5, 0.8) == 0.0


def test_dpm_second_order_by_hand():
    config = replace(HAND, num_train_timesteps=4, trained_betas=(0.2, 0.375, 0.6, 0.5), prediction_type="sample")
    scheduler = CogVideoXDPMScheduler(config)
    assert scheduler.alphas_cumprod == pytest.approx([0.8, 0.5, 0.2, 0.1])
    scheduler.set_timesteps(4)
    e, one = np.array([0.25]), np.array([1.0])
    previous, clean = scheduler.step(3 * one, 2 * one, 1, 2, one, noise=e)
    keep, gain, spread = first_order(0.5, 0.8)
    assert clean == [3.0]
    assert previous == pytest.approx([keep + gain * (1.5 * 3 - 0.5 * 2) + spread * 0.25])
    # the first step and the one that ends clean have no second order
    assert scheduler.reference_draws(None, 3) == 1
    assert scheduler.reference_draws(one, 1) == 2
    assert scheduler.reference_draws(one, 0) == 1
    assert [scheduler.needs_noise(t) for t in (3, 1, 0)] == [True, True, False]
    assert scheduler.step(3 * one, 2 * one, 0, 1, one)[0] == pytest.approx([3.0])


@settings(max_examples=60, deadline=None)
@given(
    sampler=st.sampled_from(SAMPLERS),
    config=st.sampled_from([PRESETS["5b"].scheduler, PRESETS["2b"].scheduler]),
    steps=st.lists(st.integers(0, 999), min_size=1, max_size=12, unique=True),
    kind=st.sampled_from((None, *KINDS)),
)
def test_a_perfect_model_leads_to_the_clean_sample(sampler, config, steps, kind):
    """With v of the true pair (clean sample, noise of the present one), each path ends at the clean sample."""
    scheduler = sampler(config)
    if kind is None:
        scheduler.set_timesteps(timesteps=sorted(steps, reverse=True))
    else:
        scheduler.set_timesteps(len(steps), kind, previous="list")
    rng = np.random.default_rng(0)
    clean = rng.standard_normal((1, 4))

    def model(sample, t):
        level = scheduler.alpha(t)
        e = (sample - math.sqrt(level) * clean) / math.sqrt(1 - level)
        return math.sqrt(level) * e - math.sqrt(1 - level) * clean

    start = scheduler.add_noise(clean, rng.standard_normal((1, 4)), scheduler.timesteps[:1])
    np.testing.assert_allclose(_run(scheduler, start, model, rng.standard_normal), clean, rtol=1e-7, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 999), min_size=2, max_size=12, unique=True))
def test_ddim_with_a_fixed_noise_stays_on_the_line_between_noise_and_sample(steps):
    scheduler = CogVideoXDDIMScheduler(CONFIG)
    scheduler.set_timesteps(timesteps=sorted(steps, reverse=True))
    clean, e = np.array([[0.7]]), np.array([[-1.3]])

    def model(_sample, t):
        return scheduler.get_velocity(clean, e, [t])

    rounds = len(steps) - 1
    start = scheduler.add_noise(clean, e, scheduler.timesteps[:1])
    there = _run(scheduler, start, model, None, rounds)
    np.testing.assert_allclose(there, scheduler.add_noise(clean, e, scheduler.timesteps[rounds:][:1]), atol=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", KINDS)
def test_zero_snr_never_gives_nan(sampler, kind):
    for n in (1, 2, 3, 50, 1000):
        scheduler = sampler(CONFIG)
        scheduler.set_timesteps(n, kind)
        rng = np.random.default_rng(0)
        final = _run(scheduler, rng.standard_normal((1, 2)), lambda x, t: 0.1 * x, rng.standard_normal)
        assert np.isfinite(final).all(), (kind, n)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_tensors_equal_arrays(sampler):
    scheduler = sampler(CONFIG)
    scheduler.set_timesteps(6, "linear-quadratic")
    x = np.random.default_rng(0).standard_normal((1, 2, 3)).astype(np.float32)

    def final(make):
        rng = np.random.default_rng(1)
        return _run(scheduler, make(x), lambda s, t: 0.3 * s, lambda s: make(rng.standard_normal(s, np.float32)))

    array, tensor = final(lambda a: a), final(ms.Tensor)
    assert array.dtype == np.float32
    assert tensor.dtype == ms.float32
    np.testing.assert_allclose(tensor.asnumpy(), array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [lambda a: a, ms.Tensor], ids=["array", "tensor"])
def test_a_generator_gives_one_draw_a_step(make):
    scheduler = CogVideoXDPMScheduler(CONFIG)
    scheduler.set_timesteps(4)
    x = make(np.ones((2, 3), np.float32))
    generator, draws = np.random.default_rng(5), np.random.default_rng(5)
    old, back = None, None
    for t in scheduler.timesteps[:3]:
        e = make(draws.standard_normal((2, 3), np.float32))
        given_array, _ = scheduler.step(0.5 * x, old, t, back, x, noise=e)
        x, old = scheduler.step(0.5 * x, old, t, back, x, noise=generator)
        assert np.array_equal(np.asarray(given_array), np.asarray(x))
        back = t
    assert generator.standard_normal() == draws.standard_normal()


def test_eta_has_no_effect_as_published():
    ddim, dpm = CogVideoXDDIMScheduler(CONFIG), CogVideoXDPMScheduler(CONFIG)
    ddim.set_timesteps(4)
    dpm.set_timesteps(4)
    assert ddim.step(ONE, 499, ONE, eta=0.7)[0] == ddim.step(ONE, 499, ONE)[0]
    plain, _ = dpm.step(ONE, None, 499, None, ONE, noise=ONE)
    assert dpm.step(ONE, None, 499, None, ONE, noise=ONE, eta=0.7)[0] == plain


def test_prediction_types_agree_on_the_clean_sample():
    x, e = np.array([[0.7]]), np.array([[-1.3]])
    found = []
    for kind in ("v_prediction", "sample", "epsilon"):
        scheduler = CogVideoXDDIMScheduler(replace(CONFIG, prediction_type=kind))
        noisy = scheduler.add_noise(x, e, [400])
        output = {"v_prediction": scheduler.get_velocity(x, e, [400]), "sample": x, "epsilon": e}[kind]
        found.append(scheduler.pred_original(output, 400, noisy).item())
    assert found == pytest.approx([0.7] * 3)


def _ready(config: SchedulerConfig) -> CogVideoXDPMScheduler:
    scheduler = CogVideoXDPMScheduler(config)
    scheduler.set_timesteps(timesteps=[999, 500, 10])
    return scheduler


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: CogVideoXDDIMScheduler(CONFIG).step(ONE, 999, ONE), "set_timesteps first"),
        (lambda: _ready(CONFIG).step(ONE, None, 998, None, ONE), "timestep 998: not one of the 3"),
        (lambda: _ready(CONFIG).step(ONE, None, 999, None, ONE), "noise: got None at time step 999"),
        (lambda: _ready(CONFIG).step(ONE, ONE, 500, None, ONE, noise=ONE), "timestep_back: got None"),
        (lambda: _ready(CONFIG).step(ONE, ONE, 500, 10, ONE, noise=ONE), "timestep_back: got 10"),
        (
            lambda: _ready(replace(CONFIG, prediction_type="epsilon")).step(ONE, None, 999, None, ONE, noise=ONE),
            "zero SNR",
        ),
    ],
)
def test_misuse_is_refused_in_one_line(act, words):
    with pytest.raises(UserError, match=words) as caught:
        act()
    assert "\n" not in str(caught.value)


def test_num_inference_steps_is_unknown_until_chosen():
    scheduler = CogVideoXDDIMScheduler(CONFIG)
    assert scheduler.num_inference_steps is None
    assert len(scheduler.timesteps) == 1000
    scheduler.set_timesteps(5)
    assert scheduler.num_inference_steps == 5
    assert scheduler.scale_model_input(ONE, 3) is ONE
