"""AdamW, clipping, learning rates, averages and loss scale against torch and diffusers."""

from __future__ import annotations

import math
from typing import Any

import mindspore as ms
import numpy as np
import pytest
import torch
from diffusers import optimization
from diffusers.training_utils import EMAModel

from core import ops
from core.optim.adamw import AdamW
from core.optim.clip import clip_factor, global_norm
from core.optim.ema import EMA
from core.optim.loss_scale import LossScale
from core.optim.lr import Schedule, learning_rate
from tests.parity.cases_came import gradients, start
from tests.tolerances import OPERATOR, relative_error

STEPS = 20


@pytest.mark.parametrize("mode", ["pynative", "graph"])
@pytest.mark.parametrize("settings", [((0.9, 0.95), 1e-8, 1e-2), ((0.9, 0.999), 1e-3, 0.0)])
def test_adamw_over_twenty_steps(settings, mode):
    ops.configure(mode=mode)
    betas, eps, decay = settings
    ours = [ms.Parameter(ms.Tensor(value), name=f"w{i}") for i, value in enumerate(start(0))]
    theirs = [torch.nn.Parameter(torch.from_numpy(value)) for value in start(0)]
    optimizer = AdamW(ours, betas=betas, eps=eps, weight_decay=decay)
    reference = torch.optim.AdamW(theirs, lr=1e-2, betas=betas, eps=eps, weight_decay=decay)
    for step in range(STEPS):
        drawn = gradients(0, step)
        for parameter, gradient in zip(theirs, drawn, strict=True):
            parameter.grad = torch.from_numpy(gradient)
        reference.step()
        optimizer.step([ms.Tensor(g) for g in drawn], 1e-2)
    for i, parameter in enumerate(theirs):
        state = reference.state[parameter]
        pairs = [(ours[i].asnumpy(), parameter.detach())]
        pairs += [(optimizer.states[i]["m"].asnumpy(), state["exp_avg"])]
        pairs += [(optimizer.states[i]["v"].asnumpy(), state["exp_avg_sq"])]
        assert max(relative_error(a, b.numpy()) for a, b in pairs) <= OPERATOR


@pytest.mark.parametrize("max_norm", [0.1, 1e3])
def test_clipping(max_norm):
    drawn = gradients(0, 0)
    theirs = [torch.nn.Parameter(torch.zeros(g.shape)) for g in drawn]
    for parameter, gradient in zip(theirs, drawn, strict=True):
        parameter.grad = torch.from_numpy(gradient.copy())
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    norm = global_norm({str(i): ms.Tensor(g) for i, g in enumerate(drawn)})
    assert float(norm) == pytest.approx(float(expected), rel=1e-6)
    factor = float(clip_factor(norm, max_norm))
    for gradient, parameter in zip(drawn, theirs, strict=True):
        assert parameter.grad is not None
        assert relative_error(gradient * factor, parameter.grad.numpy()) <= OPERATOR


def _rates(make) -> list[float]:
    """Rates of steps 0 .. 40 of a torch scheduler."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = make(optimizer)
    rates = []
    for _ in range(41):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


DIFFUSERS: list[tuple[Schedule, dict, Any]] = [
    ("constant", {}, lambda o: optimization.get_constant_schedule_with_warmup(o, 7)),
    ("linear", {}, lambda o: optimization.get_linear_schedule_with_warmup(o, 7, 40)),
    ("linear", {"end": 0.03}, lambda o: optimization.get_linear_schedule_with_warmup(o, 7, 40, f_min=0.1)),
    ("cosine", {}, lambda o: optimization.get_cosine_schedule_with_warmup(o, 7, 40)),
    (
        "polynomial",
        {"power": 2.5, "end": 1e-3},
        lambda o: optimization.get_polynomial_decay_schedule_with_warmup(o, 7, 40, lr_end=1e-3, power=2.5),
    ),
    (
        "cosine_restarts",
        {"cycles": 3},
        lambda o: optimization.get_cosine_with_hard_restarts_schedule_with_warmup(o, 7, 40, num_cycles=3),
    ),
]


@pytest.mark.parametrize(("schedule", "options", "make"), DIFFUSERS, ids=[f"{s} {o}" for s, o, _ in DIFFUSERS])
def test_rates_of_diffusers(schedule, options, make):
    """Ours warms up one step ahead: diffusers' first step has rate 0 and changes nothing."""
    given = {"base": 0.3, "schedule": schedule, "warmup_steps": 7, "total_steps": 40, **options}
    ours = [learning_rate(step, **given) for step in range(41)]
    theirs = _rates(make)
    assert theirs[0] == 0
    np.testing.assert_allclose(ours[:6], theirs[1:7], rtol=1e-12)
    np.testing.assert_allclose(ours[7:], theirs[7:], rtol=1e-12, atol=1e-15)
    assert ours[6] == 0.3


TORCH: list[tuple[Schedule, dict, Any]] = [
    ("linear", {"end": 0.1}, lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 1 / 3, 40)),
    ("cosine", {"end": 0.1}, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 40, 0.1)),
    ("polynomial", {"power": 3.0}, lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 40, 3.0)),
]


@pytest.mark.parametrize(("schedule", "options", "make"), TORCH, ids=[s for s, _, _ in TORCH])
def test_rates_of_torch(schedule, options, make):
    given = {"base": 0.3, "schedule": schedule, "warmup_steps": 0, "total_steps": 40, **options}
    np.testing.assert_allclose([learning_rate(s, **given) for s in range(41)], _rates(make), rtol=1e-9, atol=1e-12)


def test_restarts_of_torch():
    rates = _rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 10, eta_min=0.1))
    given: dict = {"base": 0.3, "schedule": "cosine_restarts", "warmup_steps": 0, "total_steps": 40, "end": 0.1}
    np.testing.assert_allclose([learning_rate(s, cycles=4, **given) for s in range(40)], rates[:40], rtol=1e-9)


@pytest.mark.parametrize("mode", ["pynative", "graph"])
def test_averages_with_warmup(mode):
    ops.configure(mode=mode)
    ours = [ms.Parameter(ms.Tensor(value), name=f"w{i}") for i, value in enumerate(start(0))]
    theirs = [torch.nn.Parameter(torch.from_numpy(value)) for value in start(0)]
    ema, reference = EMA(ours, 0.75, warmup=True), EMAModel(theirs, decay=0.75, use_ema_warmup=True)
    for step in range(STEPS):
        for parameter, tensor, value in zip(ours, theirs, gradients(0, step), strict=True):
            parameter.set_data(ms.Tensor(value))
            tensor.data = torch.from_numpy(value)
        ema.update(step)
        reference.step(theirs)
        for a, b in zip(ema.averages, reference.shadow_params, strict=True):
            assert relative_error(a.asnumpy(), b.numpy()) <= OPERATOR


def test_the_loss_scale_is_torchs():
    ours, rng = LossScale.dynamic(256.0, window=3), np.random.default_rng(0)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=3)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    seen = []
    for overflowed in rng.random(60) < 0.25:
        assert scaler.get_scale() == ours.value
        (scaler.scale(weight.sum()) * (math.inf if overflowed else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        ours.update(bool(overflowed))
        seen.append(ours.value)
    assert min(seen) >= 2, "below 1 torch goes on and we stop: choose other overflows"
    assert len(set(seen)) > 3
