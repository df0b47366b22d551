"""Training: steps that are equal however they are cut up, and the loss."""

from __future__ import annotations

from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest

from core import ops
from core.optim.adamw import AdamW
from core.presets import PRESETS
from core.train.loss import draw_timesteps, noised, velocity_loss
from core.train.step import Batch, TrainStep
from core.transformer.model import CogVideoXTransformer3DModel
from core.weights import make_scheduler
from tests.tolerances import relative_error

CONFIG = replace(
    PRESETS["tiny-1.5"].transformer, num_layers=1, text_embed_dim=8, num_attention_heads=2, attention_head_dim=16
)
SCHEDULER = make_scheduler(PRESETS["tiny-1.5"].scheduler, "ddim")


def test_noised_latents_by_hand():
    latents = np.random.default_rng(0).standard_normal((2, 2, 3, 4, 4), np.float32)
    noisy, velocity, timesteps = noised(SCHEDULER, latents, 5, 7, [0, 3])
    assert timesteps.tolist() == draw_timesteps(5, 7, [0, 3], 1000).tolist()
    signal = np.sqrt(SCHEDULER.alphas_cumprod[timesteps]).reshape(2, 1, 1, 1, 1)
    rest = np.sqrt(1 - signal**2)
    # Clean sample and noise come back from the pair: x = s z - r v, e = r z + s v.
    assert np.allclose(signal * noisy - rest * velocity, latents, atol=1e-5)
    alone = noised(SCHEDULER, latents[1:], 5, 7, [3])
    assert np.array_equal(alone[0][0], noisy[1])


def _model():
    return CogVideoXTransformer3DModel(CONFIG).initialize(0)


def _batch(samples):
    rng = [np.random.default_rng(s) for s in samples]
    return Batch(
        latents=np.stack([g.standard_normal((2, 16, 4, 4), np.float32) for g in rng]),
        text=np.stack([g.standard_normal((3, 8), np.float32) for g in rng]),
        samples=list(samples),
        files=[f"clip{s}" for s in samples],
    )


def _trained(groups, steps=3, mode: ops.Mode = "graph", lr=1e-2, recompute=False):
    ops.configure(mode=mode)
    model = _model()
    model.recompute(recompute)
    optimizer = AdamW(model.trainable_params(), betas=(0.9, 0.95), eps=1e-8, weight_decay=1e-2)
    step_fn = TrainStep(model, SCHEDULER, optimizer, max_grad_norm=1.0, seed=1)
    results = [step_fn(step, [_batch(group) for group in groups], lr) for step in range(steps)]
    return results, {name: p.asnumpy() for name, p in model.parameters_dict().items()}


def _same(one, other, tolerance):
    for a, b in zip(one[0], other[0], strict=True):
        assert a.loss == pytest.approx(b.loss, rel=tolerance)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=tolerance)
    flat = [np.concatenate([v.ravel() for v in parameters.values()]) for parameters in (one[1], other[1])]
    assert relative_error(*flat) <= tolerance


def test_two_micro_batches_equal_one_of_both():
    _same(_trained([[0], [1]]), _trained([[0, 1]]), 2e-5)


def test_graph_equals_pynative():
    _same(_trained([[0, 1]]), _trained([[0, 1]], mode="pynative"), 2e-5)


@pytest.mark.parametrize("mode", ["pynative", "graph"])
def test_recomputing_changes_no_step(mode):
    _same(_trained([[0, 1]], mode=mode), _trained([[0, 1]], mode=mode, recompute=True), 2e-5)


def test_a_repeated_run_has_the_same_bits():
    one, other = _trained([[0, 1]]), _trained([[0, 1]])
    assert [r.loss.hex() for r in one[0]] == [r.loss.hex() for r in other[0]]
    assert all(np.array_equal(one[1][name], other[1][name]) for name in one[1])


def test_the_loss_falls():
    ops.configure(mode="graph")
    model = _model()
    optimizer = AdamW(model.trainable_params(), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    step_fn = TrainStep(model, SCHEDULER, optimizer, max_grad_norm=1.0, seed=1)
    losses = [step_fn(0, [_batch([0, 1])], 3e-3).loss for _ in range(25)]  # step 0 again: the same noise each time
    assert losses[-1] < 0.7 * losses[0]


def test_positions_of_a_learned_model_are_not_trained():
    config = replace(
        PRESETS["tiny-1.0-5b"].transformer, num_layers=1, text_embed_dim=8, use_learned_positional_embeddings=True
    )
    names = {p.name for p in CogVideoXTransformer3DModel(config).trainable_params()}
    assert "patch_embed.pos_embedding" not in names
    assert "patch_embed.proj.weight" in names


def test_a_loss_that_is_not_finite_stops_before_the_update():
    ops.configure(mode="pynative")
    model = _model()
    before = {name: p.asnumpy().copy() for name, p in model.parameters_dict().items()}
    optimizer = AdamW(model.trainable_params(), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    step_fn = TrainStep(model, SCHEDULER, optimizer, max_grad_norm=1.0, seed=1)
    batch = _batch([0, 1])
    batch.latents[0, 0, 0, 0, 0] = np.nan
    with pytest.raises(FloatingPointError, match=r"step 4: loss nan.*clip0, clip1"):
        step_fn(4, [batch], 1e-3)
    assert all(np.array_equal(before[name], p.asnumpy()) for name, p in model.parameters_dict().items())


def test_the_loss_is_the_mean_squared_error():
    def model(noisy, text, timesteps):
        return noisy + 1.0

    zeros = ms.Tensor(np.zeros((1, 2), np.float32))
    assert float(velocity_loss(model, zeros, zeros, zeros, ms.Tensor([[3.0, 1.0]]))) == 2.0
