"""Sampling: sizes, streams of noise, guidance, and a loop whose result is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mindspore as ms
import numpy as np
import pytest

from core.errors import UserError
from core.presets import PRESETS
from core.sample import Sampling, generate, initial_latents, latent_shape, to_uint8
from core.weights import make_scheduler
from tests.tolerances import relative_error

PRESET = PRESETS["1.5-5b"]


@pytest.mark.parametrize(
    ("preset", "size", "shape", "padding"),
    [
        ("1.5-5b", (768, 1360, 81), (22, 16, 96, 170), 1),
        ("1.5-5b", (768, 1360, 77), (20, 16, 96, 170), 0),
        ("5b", (480, 720, 49), (13, 16, 60, 90), 0),
        ("1.5-5b-i2v", (768, 1360, 81), (22, 16, 96, 170), 1),
    ],
)
def test_latent_shapes_of_the_published_sizes(preset, size, shape, padding):
    assert latent_shape(PRESETS[preset].transformer, PRESETS[preset].vae, *size) == (shape, padding)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((760, 1360, 81), "height: got 760, need a multiple of 16, e.g. 752 or 768"),
        ((768, 5, 81), "width: got 5, need a multiple of 16, e.g. 16 or 32"),
        ((768, 1360, 48), r"frames: got 48, need 4N\+1, e.g. 45 or 49"),
        ((768, 1360, 0), r"frames: got 0, need 4N\+1, e.g. 1 or 5"),
    ],
)
def test_sizes_that_cannot_be_made(size, words):
    with pytest.raises(UserError, match=words):
        latent_shape(PRESET.transformer, PRESET.vae, *size)


def test_a_video_has_its_noise_whatever_the_batch():
    both = initial_latents((2, 3, 4, 4), 9, 2)
    assert np.array_equal(both[1], initial_latents((2, 3, 4, 4), 9, 1, first=1)[0])
    assert not np.array_equal(both[0], both[1])


class _Ideal:
    """Knows the clean sample: predicts the velocity that leads there; the text shifts it."""

    def __init__(self, scheduler, clean):
        self.config, self.scheduler, self.clean = PRESET.transformer, scheduler, clean
        self.calls = []

    def __call__(self, sample, text, timestep):
        self.calls.append((sample.shape[0], int(timestep.asnumpy()[0])))
        signal = float(np.sqrt(self.scheduler.alphas_cumprod[int(timestep.asnumpy()[0])]))
        rest = float(np.sqrt(1 - signal**2))
        clean = ms.Tensor(self.clean) + text[:, :1, :1].reshape(-1, 1, 1, 1, 1)
        return (signal * sample - clean) / rest


def _generate(sampler, guidance, *, texts=(0.0,), negative=0.0, **more):
    scheduler = make_scheduler(PRESET.scheduler, sampler)
    clean = np.random.default_rng(0).standard_normal((22, 16, 2, 4), np.float32)
    model = _Ideal(scheduler, clean)
    embeds = np.array(texts, np.float32).reshape(-1, 1, 1)
    result = generate(
        transformer=model, scheduler=scheduler, vae_config=PRESET.vae, height=16, width=32, num_frames=81,
        sampling=Sampling(num_inference_steps=5, guidance_scale=guidance, timesteps=more.pop("timesteps", None)),
        prompt_embeds=embeds, negative_prompt_embeds=np.full((1, 1, 1), negative, np.float32), output_type="latents",
        **more,
    )  # fmt: skip
    return result, clean, model


@pytest.mark.parametrize("sampler", ["ddim", "dpm"])
@pytest.mark.parametrize("timesteps", [None, "linear-quadratic", [999, 700, 650, 3]])
def test_an_ideal_model_leads_to_its_sample(sampler, timesteps):
    # 5 divides 1000: with other numbers the published step rule ends short of the clean sample (docs/design/004).
    result, clean, model = _generate(sampler, 1.0, timesteps=timesteps)
    assert result.shape == (1, 21, 16, 2, 4)  # the padding frame at the front is gone
    assert relative_error(result[0], clean[1:]) < 1e-4
    assert len(model.calls) == (4 if isinstance(timesteps, list) else 5)
    assert {count for count, _ in model.calls} == {1}  # no guidance, no second half


def test_guidance_extrapolates_from_the_negative_prompt():
    result, clean, model = _generate("ddim", 3.0, texts=(0.5, -1.0), negative=0.25)
    assert {count for count, _ in model.calls} == {4}
    for video, text in zip(result, (0.5, -1.0), strict=True):
        assert relative_error(video, clean[1:] + 0.25 + 3.0 * (text - 0.25)) < 1e-4


def test_dynamic_guidance_depends_on_the_time_step():
    plain, _, _ = _generate("ddim", 3.0, texts=(0.5,))
    scheduler = make_scheduler(PRESET.scheduler, "ddim")
    model = _Ideal(scheduler, np.zeros((22, 16, 2, 4), np.float32))
    dynamic = generate(
        transformer=model, scheduler=scheduler, vae_config=PRESET.vae, height=16, width=32, num_frames=81,
        sampling=Sampling(num_inference_steps=5, guidance_scale=3.0, use_dynamic_cfg=True),
        prompt_embeds=np.full((1, 1, 1), 0.5, np.float32), negative_prompt_embeds=np.zeros((1, 1, 1), np.float32),
        output_type="latents",
    )  # fmt: skip
    assert not np.allclose(plain, dynamic, atol=1e-2)


def test_given_latents_must_include_the_padding():
    with pytest.raises(UserError, match=r"latents: got shape \[1, 21, 16, 2, 4\], need \[1, 22, 16, 2, 4\]"):
        _generate("ddim", 1.0, latents=np.zeros((1, 21, 16, 2, 4), np.float32))


def test_what_is_missing_is_said():
    scheduler = make_scheduler(PRESET.scheduler, "ddim")
    sampling = Sampling(num_inference_steps=2, guidance_scale=2.0)
    model = SimpleNamespace(config=PRESET.transformer)
    common: dict[str, Any] = {
        "transformer": model,
        "scheduler": scheduler,
        "sampling": sampling,
    }
    size: dict[str, Any] = {"height": 16, "width": 16, "num_frames": 1}
    embeds = np.zeros((1, 1, 1), np.float32)
    with pytest.raises(UserError, match="need vae, or vae_config"):
        generate(**common, **size, prompt_embeds=embeds)
    with pytest.raises(UserError, match="need prompt with text_encoder and tokenizer, or prompt_embeds"):
        generate(**common, **size, vae_config=PRESET.vae, output_type="latents", prompt="a cat")
    with pytest.raises(UserError, match="need negative prompt embeddings"):
        generate(**common, **size, vae_config=PRESET.vae, output_type="latents", prompt_embeds=embeds)
    two = np.zeros((2, 1, 1), np.float32)
    latents: dict[str, Any] = {"vae_config": PRESET.vae, "output_type": "latents", "prompt_embeds": embeds}
    with pytest.raises(UserError, match=r"negative_prompt_embeds: got shape \[2, 1, 1\], need \[1, 1, 1\]"):
        generate(**common, **size, **latents, negative_prompt_embeds=two)


def test_pixels_are_rounded_and_clipped():
    video = np.array([-1.5, -1.0, 0.0, 0.999, 2.0], np.float32).reshape(1, 1, 1, 5).repeat(3, 0)
    assert to_uint8(video)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]
