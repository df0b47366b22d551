"""Overflows, skipped steps and the loss on clips that are not trained on."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

from core import ops
from core.optim.adamw import AdamW
from core.optim.loss_scale import LossScale
from core.train.step import TrainStep
from core.train.validate import Validation
from tests.core.test_train import SCHEDULER, _batch, _model


class _Fixed(TrainStep):
    """Its gradients overflow at the steps in ``broken``."""

    broken: tuple[int, ...] = ()

    def _pass(self, step, batch, count, scale):
        loss, gradients = super()._pass(step, batch, count, scale)
        if step in self.broken:
            gradients[0] = gradients[0] * float("inf")
        return loss, gradients


def _step_fn(scale, **options):
    ops.configure(mode="pynative")
    model = _model()
    optimizer = AdamW(model.trainable_params(), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    step_fn = _Fixed(model, SCHEDULER, optimizer, max_grad_norm=1.0, seed=1, loss_scale=scale, **options)
    return step_fn, model


def _values(model):
    return np.concatenate([p.asnumpy().ravel() for p in model.get_parameters()])


def test_an_overflow_is_skipped_counted_and_halves_the_scale():
    scale = LossScale.dynamic(8.0, window=2)
    step_fn, model = _step_fn(scale)
    step_fn.broken = (1,)
    step_fn(0, [_batch([0])], 1e-3)
    before, count = _values(model), step_fn.optimizer.step_count
    result = step_fn(1, [_batch([0])], 1e-3)
    assert (result.skipped, scale.value, scale.skipped, step_fn.skips_in_a_row) == (True, 4.0, 1, 1)
    assert np.isfinite(result.loss)
    assert np.array_equal(before, _values(model))
    assert step_fn.optimizer.step_count == count
    assert not step_fn(2, [_batch([0])], 1e-3).skipped
    assert step_fn.skips_in_a_row == 0
    assert not np.array_equal(before, _values(model))


def test_skips_in_a_row_end_the_run():
    step_fn, _ = _step_fn(LossScale.static(8.0), max_skips=2)
    step_fn.broken = (0, 1, 2)
    assert step_fn(0, [_batch([0])], 1e-3).skipped
    assert step_fn(1, [_batch([0])], 1e-3).skipped
    with pytest.raises(FloatingPointError, match=r"step 2: .*gradient norm (inf|nan) after 2 skipped steps in a row"):
        step_fn(2, [_batch([0])], 1e-3)


@pytest.mark.parametrize("scale", [None, LossScale.dynamic(1.0)])
def test_an_overflow_that_no_smaller_scale_cures_ends_the_run(scale):
    step_fn, model = _step_fn(scale)
    step_fn.broken = (0,)
    before = _values(model)
    with pytest.raises(FloatingPointError, match=r"step 0: .*the batch was clip0"):
        step_fn(0, [_batch([0])], 1e-3)
    assert np.array_equal(before, _values(model))


def test_a_loss_that_is_not_finite_is_never_skipped():
    step_fn, _ = _step_fn(LossScale.dynamic(8.0))
    batch = _batch([0])
    batch.latents[0, 0, 0, 0, 0] = np.inf
    with pytest.raises(FloatingPointError, match=r"loss (nan|inf)"):
        step_fn(0, [batch], 1e-3)


class _Clips:
    """Three clips in batches of two: the last one is filled with a clip that was there before."""

    def __init__(self, values=(1.0, 2.0, 3.0)):
        self.values = values

    def statistics(self):
        return {"steps_per_epoch": len(self.values) / 2}

    def batch(self, step):
        items = [(2 * step + i) % len(self.values) for i in range(2)]
        latents = np.stack([np.full((1, 1, 2, 2), self.values[i], np.float32) for i in items])
        return {"item": items, "latents": latents, "prompt_embeds": np.zeros((2, 1, 1), np.float32)}


def _zero(noisy, text, timesteps):
    return ms.Tensor(np.zeros(noisy.shape, np.float32))


def test_validation_counts_each_clip_once_at_each_time_step():
    result = Validation(_zero, SCHEDULER, _Clips(), (999,), seed=0)()
    # At zero SNR the velocity is -x0, so the loss of a model that says 0 is the mean of the squares.
    assert (result.samples, result.loss) == (3, pytest.approx((1 + 4 + 9) / 3, rel=1e-6))
    two = Validation(_zero, SCHEDULER, _Clips(), (999, 500), seed=0)()
    assert two.loss == pytest.approx(np.mean(list(two.by_timestep.values())))
    assert two.by_timestep[999] == result.loss


def test_validation_has_the_same_noise_each_time_and_each_batch_size():
    one = Validation(_zero, SCHEDULER, _Clips(), (300, 700), seed=0)
    first, second = one(), one()
    assert first == second
    assert Validation(_zero, SCHEDULER, _Clips(), (300, 700), seed=1)().loss != first.loss
    assert Validation(_zero, SCHEDULER, _Clips(), (700,), seed=0)().by_timestep[700] == first.by_timestep[700]
