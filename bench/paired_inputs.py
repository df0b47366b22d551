"""What both sides of a pair start from: sizes, and inputs drawn from the recipe's seed. No MindSpore, no torch."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np

from core import draws
from core.configs import T5Config, TransformerConfig, VAEConfig
from core.presets import PRESETS, ModelPreset

PROMPT = "a red circle moving to the right"
TRAIN_TIMESTEPS = 1000


def sizes(recipe: Any) -> ModelPreset:
    """The preset with the recipe's replacements; the text encoder's width is the transformer's text width."""
    model, preset = recipe.model, PRESETS[recipe.model.preset]
    given = {key: getattr(model, key) for key in ("num_layers", "num_attention_heads", "attention_head_dim")}
    text: T5Config = replace(preset.text, num_layers=model.text_layers or preset.text.num_layers)
    if model.text_heads:
        width = 64 * model.text_heads
        # The published encoder's proportions: keys of 64, a feed-forward width of 2.5 times the model's.
        text = replace(text, num_heads=model.text_heads, d_kv=64, d_model=width, d_ff=5 * width // 2)
    transformer: TransformerConfig = replace(
        preset.transformer, text_embed_dim=text.d_model, **{key: value for key, value in given.items() if value}
    )
    vae: VAEConfig = preset.vae
    if model.vae_channels:
        vae = replace(vae, block_out_channels=model.vae_channels)
    return replace(preset, transformer=transformer, vae=vae, text=text)


def latent_shape(recipe: Any) -> tuple[int, int, int, int]:
    """``(F, C, H, W)``: latent frames with the padding that ``patch_size_t`` needs."""
    preset, video = sizes(recipe), recipe.video
    frames = (video.frames - 1) // 4 + 1
    frames += -frames % (preset.transformer.patch_size_t or 1)
    return frames, preset.transformer.out_channels, video.height // 8, video.width // 8


def inputs(recipe: Any) -> dict[str, np.ndarray]:
    """The arrays of the recipe's case, by name, the same in every process."""
    preset, count, length = sizes(recipe), recipe.batch_size, recipe.text_length
    frames, channels, height, width = latent_shape(recipe)

    def normal(name: str, *shape: int) -> np.ndarray:
        return draws.normal((count, *shape), recipe.seed, f"paired {name}")

    latents = (frames, channels, height, width)
    if recipe.case in ("transformer", "train"):
        found = {"latents": normal("latents", *latents), "text": normal("text", length, preset.text.d_model)}
        return found | ({"timestep": timesteps(recipe, 0)} if recipe.case == "transformer" else {})
    if recipe.case == "vae-encode":
        video = recipe.video
        return {"video": np.tanh(normal("video", 3, video.frames, video.height, video.width))}
    if recipe.case == "vae-decode":
        # Pixels come from the frames that are kept, so there is no padding frame here.
        return {"latents": normal("latents", channels, (recipe.video.frames - 1) // 4 + 1, height, width)}
    if recipe.case == "text-encode":
        rng = draws.generator(recipe.seed, "paired tokens")
        return {"input_ids": rng.integers(0, preset.text.vocab_size, (count, length)).astype(np.int64)}
    return {"latents": normal("latents", *latents)}


def timesteps(recipe: Any, step: int) -> np.ndarray:
    """Time steps ``[B]`` of an optimizer step: the numbers of ``core.train.loss.draw_timesteps``, without MindSpore."""
    drawn = [draws.generator(recipe.seed, "timestep", step, s).integers(TRAIN_TIMESTEPS) for s in _samples(recipe)]
    return np.array(drawn, np.int64)


def noise(recipe: Any, step: int) -> np.ndarray:
    """Noise ``[B, F, C, H, W]`` of an optimizer step: the numbers of ``core.train.loss.noise_of``."""
    return np.stack([draws.normal(latent_shape(recipe), recipe.seed, "noise", step, s) for s in _samples(recipe)])


def _samples(recipe: Any) -> range:
    return range(recipe.batch_size)


def digest_of(arrays: dict[str, np.ndarray]) -> str:
    """sha256 over names, types, shapes and bytes."""
    total = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        total.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
