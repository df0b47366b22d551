"""The objective: two forms of one loss, time steps spread over a step, losses that do not depend on how it is cut."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import ops
from core.optim.adamw import AdamW
from core.optim.loss_scale import LossScale
from core.train.loss import LOSSES, draw_timesteps, levels, loss_inputs, noise_of
from core.train.step import TrainStep
from tests.core.test_train import SCHEDULER, _batch, _model
from tests.tolerances import relative_error

LATENTS = np.random.default_rng(0).standard_normal((3, 2, 16, 4, 4), np.float32)


def _loss(kind, timesteps, error=0.1):
    """The loss of a model that is wrong by ``error`` of its target, through the arrays that training passes."""
    noise = noise_of(LATENTS.shape[1:], 1, 2, [0, 1, 2])
    steps = np.array(timesteps, np.int64)
    velocity = SCHEDULER.get_velocity(LATENTS, noise, steps)
    arrays = [ms.Tensor(np.ascontiguousarray(a)) for a in loss_inputs(kind, SCHEDULER, LATENTS, noise, steps)]

    def model(noisy, text, timestep):
        return ms.Tensor((velocity * (1 + error)).astype(np.float32))

    noisy, timestep, *rest = arrays
    return float(LOSSES[kind](model, noisy, noisy, timestep, *rest)), float(np.mean((error * velocity) ** 2))


@pytest.mark.parametrize("timesteps", [(0, 1, 2), (10, 500, 998), (999, 999, 999)])
def test_both_forms_are_the_same_loss(timesteps):
    for kind in ("velocity", "x0_weighted"):
        loss, expected = _loss(kind, timesteps)
        assert loss == pytest.approx(expected, rel=2e-5), kind


def test_the_weight_is_that_of_the_published_trainers():
    """diffusers: weight 1 / (1 - alpha_bar) on the squared error of x0, written out here with its own names."""
    steps = np.array([3, 400, 999])
    signal, rest = levels(SCHEDULER, steps)
    alphas = SCHEDULER.alphas_cumprod[steps]
    assert np.allclose(signal.ravel() ** 2, alphas, atol=1e-7)
    assert np.allclose(1 / rest.ravel() ** 2, 1 / (1 - alphas), rtol=1e-6)
    assert (signal.ravel()[-1], rest.ravel()[-1]) == (0.0, 1.0)  # zero SNR at the end: nothing to divide by


def _gradient(kind, scale=None, lr=1e-3):
    ops.configure(mode="pynative")
    model = _model()
    optimizer = AdamW(model.trainable_params(), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    step_fn = TrainStep(
        model,
        SCHEDULER,
        optimizer,
        max_grad_norm=1.0,
        seed=1,
        loss=kind,
        timesteps="uniform_per_rank",
        loss_scale=scale,
    )
    result = step_fn(0, [_batch([0]), _batch([1])], lr)
    return result, np.concatenate([p.asnumpy().ravel() for p in model.get_parameters()])


def test_training_with_either_form_is_the_same():
    (one, first), (other, second) = _gradient("velocity"), _gradient("x0_weighted")
    assert one.loss == pytest.approx(other.loss, rel=1e-5)
    assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-5)
    assert relative_error(first, second) <= 1e-5


def test_a_power_of_two_as_loss_scale_changes_no_bit():
    (one, first), (other, second) = _gradient("velocity"), _gradient("velocity", LossScale.static(1024.0))
    assert (one.loss, one.grad_norm) == (other.loss, other.grad_norm)
    assert np.array_equal(first, second)


@settings(deadline=None, max_examples=50)
@given(count=st.integers(1, 40), step=st.integers(0, 10**6), seed=st.integers(0, 2**32 - 1))
def test_uniform_per_rank_gives_each_sample_an_interval_of_its_own(count, step, seed):
    drawn = draw_timesteps(seed, step, list(range(count)), 1000, kind="uniform_per_rank", count=count)
    # Each interval [i / n, (i + 1) / n) of the steps holds one, up to the rounding of its ends to whole steps.
    for i, timestep in enumerate(sorted(drawn)):
        assert int(i * 1000 / count) <= timestep <= min(999, int((i + 1) * 1000 / count))


def test_samples_of_one_rank_are_those_of_all():
    every = draw_timesteps(3, 5, list(range(8)), 1000, kind="uniform_per_rank", count=8)
    mine = draw_timesteps(3, 5, [6, 2], 1000, kind="uniform_per_rank", count=8)
    assert mine.tolist() == [every[6], every[2]]


@pytest.mark.parametrize("count", [1, 3, 8])
def test_uniform_per_rank_is_uniform_for_each_sample(count):
    drawn = [draw_timesteps(0, s, [0], 1000, kind="uniform_per_rank", count=count)[0] for s in range(4000)]
    shares = np.histogram(drawn, bins=10, range=(0, 1000))[0] / 4000
    assert np.abs(shares - 0.1).max() < 0.02  # four standard deviations of a share of 4000 draws are 0.019


def test_uniform_per_rank_spreads_a_step_better_than_uniform():
    """The paper's point: the mean time step of a global batch varies less from step to step."""

    def spread(kind):
        return np.std([draw_timesteps(0, s, list(range(8)), 1000, kind=kind, count=8).mean() for s in range(300)])

    assert spread("uniform_per_rank") < 0.3 * spread("uniform")
