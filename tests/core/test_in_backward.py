"""The optimiser in the backward pass: the bits of a usual step, and one block's gradients at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mindspore as ms
import numpy as np
import pytest

from bench.plan.memory import largest_hand_out
from core import ops
from core.optim.adamw import AdamW
from core.optim.came import CAME
from core.parallel.collectives import alone
from core.parallel.zero import Zero
from core.presets import PRESETS
from core.train.in_backward import InBackward
from core.train.step import TrainStep
from core.transformer.model import CogVideoXTransformer3DModel
from tests.core.test_train import CONFIG, SCHEDULER, _batch, _model


def _adamw(parameters) -> Any:
    return AdamW(parameters, betas=(0.9, 0.95), eps=1e-8, weight_decay=1e-2)


def _came(parameters) -> Any:
    return CAME(parameters, betas=(0.9, 0.95, 0.99), eps=(1e-8, 1e-8), weight_decay=1e-2)


def _step_fn(model, make, *, at_once: bool, clip: float | None = None) -> TrainStep:
    zero = Zero(model, model.trainable_params(), alone().world, 0)
    optimizer = make(zero.parameters)
    in_backward = InBackward(model, zero, optimizer) if at_once else None
    return TrainStep(model, SCHEDULER, optimizer, max_grad_norm=clip, seed=1, zero=zero, in_backward=in_backward)


def _trained(make, mode: Any, recompute: Any, *, at_once: bool, steps: int = 3, clip: float | None = None):
    ops.configure(mode=mode)
    model = _model()
    model.recompute(recompute)
    step_fn = _step_fn(model, make, at_once=at_once, clip=clip)
    results = [step_fn(step, [_batch([0, 1])], 1e-3) for step in range(steps)]
    values = {name: q.asnumpy().copy() for name, q in model.parameters_dict().items()}
    return results, values, step_fn


@pytest.mark.parametrize("make", [_adamw, _came])
@pytest.mark.parametrize(
    ("mode", "recompute"), [("pynative", "none"), ("pynative", "all"), ("graph", "keep_attention")]
)
def test_the_bits_of_a_step_without_clipping(make, mode, recompute) -> None:
    plain, values, _ = _trained(make, mode, recompute, at_once=False)
    results, found, step_fn = _trained(make, mode, recompute, at_once=True)
    assert [r.loss for r in results] == [r.loss for r in plain]
    np.testing.assert_allclose([r.grad_norm for r in results], [r.grad_norm for r in plain], rtol=1e-6)
    assert {name for name in values if not np.array_equal(values[name], found[name])} == set()
    assert step_fn.optimizer.step_count == 3


@pytest.mark.parametrize("make", [_adamw, _came])
def test_clipped_as_a_usual_step(make) -> None:
    """Bits where the norm is below the bound; else the factor is that of a norm that is summed in another order."""
    plain, values, _ = _trained(make, "pynative", "all", at_once=False, clip=1e6)
    results, found, step_fn = _trained(make, "pynative", "all", at_once=True, clip=1e6)
    assert [r.loss for r in results] == [r.loss for r in plain]
    assert {name for name in values if not np.array_equal(values[name], found[name])} == set()
    assert step_fn.optimizer.step_count == 3
    bound = min(r.grad_norm for r in plain) / 3
    plain, values, _ = _trained(make, "pynative", "all", at_once=False, clip=bound)
    results, found, _ = _trained(make, "pynative", "all", at_once=True, clip=bound)
    np.testing.assert_allclose([r.grad_norm for r in results], [r.grad_norm for r in plain], rtol=1e-6)
    start = {name: q.asnumpy() for name, q in _model().parameters_dict().items()}
    for name, value in values.items():
        assert np.linalg.norm(found[name] - value) <= 1e-4 * np.linalg.norm(value - start[name]), name


def test_what_is_not_finite_is_seen_in_time_with_clipping() -> None:
    ops.configure(mode="pynative")
    model = _model()
    before = {name: q.asnumpy().copy() for name, q in model.parameters_dict().items()}
    step_fn = _step_fn(model, _adamw, at_once=True, clip=1.0)
    batch = _batch([0])
    batch.latents[0, 0, 0, 0, 0] = np.inf
    with pytest.raises(FloatingPointError, match=r"loss (nan|inf).*the batch was clip0") as caught:
        step_fn(0, [batch], 1e-3)
    assert "updated already" not in str(caught.value)
    after = {name: q.asnumpy() for name, q in model.parameters_dict().items()}
    assert {name for name in before if not np.array_equal(before[name], after[name])} == set()


@pytest.mark.parametrize("clip", [None, 1.0])
def test_no_more_than_one_hand_out_of_gradients_exists(clip) -> None:
    ops.configure(mode="pynative")
    model = CogVideoXTransformer3DModel(replace(CONFIG, num_layers=6)).initialize(0)
    model.recompute("all")
    step_fn = _step_fn(model, _adamw, at_once=True, clip=clip)
    step_fn(0, [_batch([0])], 1e-3)
    sizes = {name: q.size * q.itemsize for name, q in model.parameters_dict().items()}
    block = sum(size for name, size in sizes.items() if name.startswith("transformer_blocks.0."))
    assert step_fn.gradient_bytes == block
    assert block < sum(sizes.values()) / 4
    assert block == 4 * largest_hand_out(model.table)
    assert step_fn.in_backward is not None
    assert not step_fn.in_backward._arriving._waiting


def test_what_is_handed_out_twice_is_updated_once() -> None:
    """Learned positions, which are not trained, are read from parameters that are handed out before, too."""
    sizes = {"num_layers": 1, "text_embed_dim": 24, "use_learned_positional_embeddings": True}
    config = replace(PRESETS["tiny-1.0-5b"].transformer, **sizes)
    found = []
    for at_once in (False, True):
        ops.configure(mode="pynative")
        model = CogVideoXTransformer3DModel(config).initialize(0)
        step_fn = _step_fn(model, _adamw, at_once=at_once)
        rng = np.random.default_rng(0)
        frames = (config.sample_frames - 1) // 4 + 1
        batch = _batch([0])
        shape = (1, frames, config.in_channels, config.sample_height, config.sample_width)
        batch = replace(
            batch, latents=rng.standard_normal(shape, np.float32),
            text=rng.standard_normal((1, config.max_text_seq_length, 24), np.float32),
        )  # fmt: skip
        step_fn(0, [batch], 1e-3)
        found.append({name: q.asnumpy().copy() for name, q in model.parameters_dict().items()})
    assert {name for name in found[0] if not np.array_equal(found[0][name], found[1][name])} == set()


def test_what_is_not_finite_ends_the_run_and_says_that_it_is_late() -> None:
    ops.configure(mode="pynative")
    step_fn = _step_fn(_model(), _adamw, at_once=True)
    batch = _batch([0])
    batch.latents[0, 0, 0, 0, 0] = np.inf
    with pytest.raises(
        FloatingPointError, match=r"loss (nan|inf).*the batch was clip0.*parameters are updated already"
    ):
        step_fn(0, [batch], 1e-3)


def test_half_precision_keeps_masters() -> None:
    found = []
    for at_once in (False, True):
        ops.configure(mode="pynative")
        model = CogVideoXTransformer3DModel(PRESETS["tiny-1.5"].transformer, ms.float16).initialize(0)
        step_fn = _step_fn(model, _adamw, at_once=at_once)
        assert step_fn.zero.parameters[0].dtype == ms.float32
        config, rng = model.config, np.random.default_rng(0)
        batch = replace(
            _batch([0]), latents=rng.standard_normal((1, 2, config.in_channels, 4, 6), np.float32),
            text=rng.standard_normal((1, 5, config.text_embed_dim), np.float32),
        )  # fmt: skip
        step_fn(0, [batch], 1e-3)
        found.append([q.asnumpy().copy() for q in step_fn.zero.parameters])
    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))
