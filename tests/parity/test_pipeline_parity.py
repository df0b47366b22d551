"""A small pipeline end to end against diffusers' CogVideoXPipeline, saved by either side and loaded by the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler

from core import ops, weights
from core.data.shapes import all_captions
from core.presets import PRESETS
from core.sample import Sampling, decode, encode_prompts, generate, latent_shape
from core.text.t5 import T5EncoderModel
from core.text.tokenizer import Tokenizer, train_tiny_tokenizer
from core.transformer.model import CogVideoXTransformer3DModel
from core.vae.model import AutoencoderKLCogVideoX
from tests.tolerances import MODULE, PIPELINE, relative_error

PROMPTS = ["a red circle moves to the left on a black background", "a blue square moves up on a grey background"]
STEPS, GUIDANCE, LENGTH = 4, 6.0, 24

# name -> (preset, sampler, dynamic guidance, height, width, frames)
CASES = {
    "1.5 ddim, odd latent frames": ("tiny-1.5", "ddim", False, 48, 64, 9),
    "1.5 dpm, dynamic guidance": ("tiny-1.5", "dpm", True, 32, 48, 17),
    "1.0 rotary dpm": ("tiny-1.0-5b", "dpm", False, 48, 32, 9),
    "1.0 sincos ddim, dynamic guidance": ("tiny-1.0-2b", "ddim", True, 32, 48, 1),
}


def _our_folder(folder: Path, preset_name: str) -> Path:
    """A diffusers folder written by us: tiny random weights, large enough that every part matters."""
    preset = PRESETS[preset_name]
    train_tiny_tokenizer(all_captions(), folder / "tokenizer", vocab_size=preset.text.vocab_size)
    config = replace(preset.transformer, num_layers=2, max_text_seq_length=LENGTH)
    transformer = CogVideoXTransformer3DModel(config).initialize(0)
    rng = np.random.default_rng(0)
    for name, spec in transformer.table.items():
        centre = 1.0 if name.endswith("weight") and len(spec.shape) == 1 else 0.0
        transformer.assign(name, (centre + 0.08 * rng.standard_normal(spec.shape)).astype(np.float32))
    weights.save_transformer(transformer, folder / "transformer")
    weights.save_vae(AutoencoderKLCogVideoX(preset.vae).initialize(1), folder / "vae")
    weights.save_text_encoder(T5EncoderModel(preset.text).initialize(2), folder / "text_encoder")
    weights.save_scheduler(weights.make_scheduler(preset.scheduler, "ddim"), folder / "scheduler")
    weights.save_model_index(folder)
    return folder


def _reference(folder: Path, sampler: str) -> Any:
    pipeline = CogVideoXPipeline.from_pretrained(folder)
    if sampler == "dpm":
        pipeline.scheduler = CogVideoXDPMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _noise_like_torch(scheduler, shape):
    """The draws of the reference's DPM sampler from a generator with seed 5, the last of each step."""
    generator = torch.Generator().manual_seed(5)
    count = len(scheduler.timesteps)

    def noise(index: int) -> np.ndarray:
        draws = 1 if index in (0, count - 1) else 2
        for _ in range(draws):
            drawn = torch.randn(shape, generator=generator)
        return drawn.numpy()

    return noise


@pytest.mark.parametrize("saved_by", ["cogbench", "diffusers"])
@pytest.mark.parametrize("case", CASES)
def test_four_steps(case, saved_by, tmp_path):
    preset, sampler, dynamic, height, width, frames = CASES[case]
    ops.configure(mode="graph")
    folder = _our_folder(tmp_path / "ours", preset)
    reference = _reference(folder, sampler)
    if saved_by == "diffusers":
        folder = tmp_path / "theirs"
        reference.save_pretrained(folder)
    transformer, vae = weights.load_transformer(folder), weights.load_vae(folder)
    scheduler = weights.load_scheduler(folder)
    assert type(scheduler).__name__ == type(reference.scheduler).__name__ or saved_by == "cogbench"
    scheduler = weights.load_scheduler(folder, sampler)
    encoder, tokenizer = weights.load_text_encoder(folder), Tokenizer(folder / "tokenizer")

    embeds, warnings = encode_prompts(encoder, tokenizer, PROMPTS, LENGTH)
    negative, _ = encode_prompts(encoder, tokenizer, [""], LENGTH)
    with torch.no_grad():
        expected, expected_negative = reference.encode_prompt(
            PROMPTS, "", True, max_sequence_length=LENGTH, device=torch.device("cpu")
        )
    assert relative_error(embeds, expected.numpy()) <= MODULE
    assert relative_error(negative, expected_negative[:1].numpy()) <= MODULE

    shape, padding = latent_shape(transformer.config, vae.config, height, width, frames)
    latents = np.random.default_rng(1).standard_normal((2, *shape), np.float32)
    common = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "use_dynamic_cfg": dynamic}
    scheduler.set_timesteps(STEPS)
    ours = generate(
        transformer=transformer, scheduler=scheduler, vae=vae, height=height, width=width, num_frames=frames,
        sampling=Sampling(**common), prompt_embeds=embeds, negative_prompt_embeds=negative, latents=latents,
        noise=_noise_like_torch(scheduler, (2, *shape)), output_type="latents",
    )  # fmt: skip
    with torch.no_grad():
        theirs = reference(
            prompt_embeds=expected, negative_prompt_embeds=expected_negative, height=height, width=width,
            num_frames=frames, latents=torch.from_numpy(latents), generator=torch.Generator().manual_seed(5),
            output_type="latent", return_dict=False, max_sequence_length=LENGTH, **common,
        )[0].numpy()  # fmt: skip
        video = reference.decode_latents(torch.from_numpy(theirs[:, padding:])).numpy()
    error, pixel_error = relative_error(ours, theirs[:, padding:]), relative_error(decode(vae, ours), video)
    print(f"PARITY pipeline {case} saved by {saved_by}: latents {error:.2e} video {pixel_error:.2e}")
    assert not warnings
    assert video.shape[2] == frames
    assert error <= PIPELINE
    assert pixel_error <= PIPELINE
