"""Training against the reference: loss and gradients of one step in both forms, and what a run exports."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
import pytest
import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel as Reference
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler

from bench.tasks import models as models_module
from core import ops, weights
from core.presets import PRESETS
from core.train.loss import draw_timesteps, noise_of
from core.train.step import Batch, TrainStep
from core.weights import make_scheduler
from tests.bench import train_world
from tests.bench.test_train_resume import run_here
from tests.tolerances import GRADIENT, MODULE, relative_error

SAMPLES = [0, 1]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return train_world.make_world(tmp_path_factory.mktemp("world"))


def _rotary(model: Any, text: int, grid: tuple[int, int, int]):
    from core.transformer import rope

    cos, sin = rope.joint_rotary_table(model.config, text, *grid)
    return torch.tensor(cos[text:]), torch.tensor(sin[text:])


class _Gradients:
    """Keeps what a step hands to its optimizer."""

    def __init__(self, parameters):
        self.parameters = list(parameters)

    def step(self, gradients, lr, factor):
        self.kept = {p.name: g.asnumpy() for p, g in zip(self.parameters, gradients, strict=True)}

    def exchanged(self):
        return []


@pytest.mark.parametrize("kind", ["velocity", "x0_weighted"])
def test_loss_and_gradients_of_one_step(world, kind):
    """The reference's loss: squared error of x0 with weight 1 / (1 - alpha_bar), as its training scripts write it."""
    ops.configure(mode="pynative")
    ours, theirs = weights.load_transformer(world / "model"), Reference.from_pretrained(world / "model")
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, 4, 16, 4, 4), np.float32)
    text = rng.standard_normal((2, train_world.TEXT_LENGTH, train_world.TEXT_DIM), np.float32)
    scheduler = make_scheduler(PRESETS["tiny-1.5"].scheduler, "dpm")
    kept = _Gradients(ours.trainable_params())
    step_fn = TrainStep(ours, scheduler, kept, max_grad_norm=None, seed=3, loss=kind)
    result = step_fn(7, [Batch(latents=latents, text=text, samples=SAMPLES, files=["a", "b"])], 0.0)

    reference: Any = CogVideoXDPMScheduler.from_config({**PRESETS["tiny-1.5"].scheduler.to_dict()})
    steps = torch.tensor(draw_timesteps(3, 7, SAMPLES, 1000))
    noise, clean = torch.tensor(noise_of(latents.shape[1:], 3, 7, SAMPLES)), torch.tensor(latents)
    noisy = reference.add_noise(clean, noise, steps)
    model: Any = theirs
    out = model(
        hidden_states=noisy, encoder_hidden_states=torch.tensor(text), timestep=steps,
        image_rotary_emb=_rotary(ours, text.shape[1], (2, 2, 2)), return_dict=False,
    )[0]  # fmt: skip
    predicted = reference.get_velocity(out, noisy, steps)
    weight = (1 / (1 - reference.alphas_cumprod[steps])).reshape(-1, 1, 1, 1, 1)
    loss = (weight * (predicted - clean) ** 2).reshape(2, -1).mean(dim=1).mean()
    loss.backward()
    assert result.loss == pytest.approx(loss.item(), rel=MODULE)
    for name, parameter in model.named_parameters():
        assert relative_error(kept.kept[name], parameter.grad.numpy()) <= GRADIENT, name


def test_what_a_run_exports_is_the_reference_s_model(world, tmp_path, monkeypatch):
    monkeypatch.setattr(models_module, "start_mindspore", lambda runtime, seed: {})
    ops.configure(mode="pynative")
    run_here(train_world.recipe(world, train={"steps": 2}, ema={"decay": 0.5}), tmp_path / "out")
    rng = np.random.default_rng(1)
    latents = rng.standard_normal((1, 4, 16, 4, 4), np.float32)
    text = rng.standard_normal((1, train_world.TEXT_LENGTH, train_world.TEXT_DIM), np.float32)
    for name in ("transformer", "transformer_ema", "checkpoint-000002/transformer", "checkpoint-000002/ema"):
        folder = tmp_path / "out" / name
        theirs, info = Reference.from_pretrained(folder, output_loading_info=True)  # type: ignore[misc]
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        ours = weights.load_transformer(folder)
        expected = theirs(
            hidden_states=torch.tensor(latents), encoder_hidden_states=torch.tensor(text),
            timestep=torch.tensor([500]), image_rotary_emb=_rotary(ours, text.shape[1], (2, 2, 2)), return_dict=False,
        )[0].detach().numpy()  # fmt: skip
        got = ours(ms.Tensor(latents), ms.Tensor(text), ms.Tensor([500])).asnumpy()
        assert relative_error(got, expected) <= MODULE, name
