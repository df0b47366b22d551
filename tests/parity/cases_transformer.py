"""Random-weight transformer cases computed by diffusers; the stored arrays and the live tests share them."""

from __future__ import annotations

import json
import types
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel as Reference
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline

from core.configs import TransformerConfig
from core.presets import PRESETS

TEXT_LENGTH = 16
_SMALL = {"num_layers": 2, "max_text_seq_length": TEXT_LENGTH, "attention_head_dim": 16, "text_embed_dim": 24}

# name -> (preset, changed fields, latents [B, F, H, W])
CASES: dict[str, tuple[str, dict, tuple[int, int, int, int]]] = {
    "1.0-sincos": ("tiny-1.0-2b", {}, (2, 5, 8, 12)),
    "1.0-sincos-other-size": ("tiny-1.0-2b", {}, (1, 3, 6, 16)),
    "1.0-rotary": ("tiny-1.0-5b", {}, (2, 5, 8, 12)),
    "1.0-rotary-tall": ("tiny-1.0-5b", {}, (1, 2, 14, 6)),
    "1.0-i2v-learned": ("tiny-1.0-5b", {"in_channels": 32, "use_learned_positional_embeddings": True}, (1, 5, 8, 12)),
    "1.0-i2v-other-frames": (
        "tiny-1.0-5b", {"in_channels": 32, "use_learned_positional_embeddings": True}, (1, 3, 8, 12)
    ),
    "1.5": ("tiny-1.5", {}, (2, 4, 8, 12)),
    "1.5-odd-heads": ("tiny-1.5", {"num_attention_heads": 3}, (1, 6, 12, 8)),
    "1.5-i2v": ("tiny-1.5", {"in_channels": 32, "ofs_embed_dim": 64}, (1, 4, 8, 6)),
}  # fmt: skip


def config_of(case: str) -> TransformerConfig:
    """The case's config."""
    preset, changed, _ = CASES[case]
    return replace(PRESETS[preset].transformer, **{**_SMALL, **changed})


def reference_model(config: TransformerConfig, seed: int = 0) -> Reference:
    """diffusers' model with random weights large enough that every part of it matters."""
    torch.manual_seed(seed)
    model = Reference(**config.to_dict()).eval()
    for name, parameter in model.named_parameters():
        scale = 0.12 if parameter.ndim > 1 else 0.1
        centre = 1.0 if "norm" in name and name.endswith("weight") and parameter.ndim == 1 else 0.0
        parameter.data = centre + scale * torch.randn_like(parameter)
    for name, buffer in model.named_buffers():
        if name.endswith("pos_embedding") and config.use_learned_positional_embeddings:
            buffer.copy_(0.1 * torch.randn_like(buffer))
    return model


def inputs(case: str) -> dict[str, np.ndarray]:
    """``hidden_states``, ``encoder_hidden_states``, ``timestep`` of the case."""
    config = config_of(case)
    batch, frames, height, width = CASES[case][2]
    rng = np.random.default_rng(len(case))
    return {
        "hidden_states": rng.standard_normal((batch, frames, config.in_channels, height, width), np.float32),
        "encoder_hidden_states": rng.standard_normal((batch, TEXT_LENGTH, config.text_embed_dim), np.float32),
        "timestep": np.array([999, 37][:batch], np.int64),
    }


def reference_output(model: Reference, values: dict[str, np.ndarray]) -> torch.Tensor:
    """Calls diffusers' model the way its pipeline does, rotary tables included."""
    config: Any = model.config
    _, frames, _, height, width = values["hidden_states"].shape
    extra: dict[str, Any] = {}
    if config.use_rotary_positional_embeddings:
        pipeline: Any = types.SimpleNamespace(vae_scale_factor_spatial=8, transformer=model)
        extra["image_rotary_emb"] = CogVideoXPipeline._prepare_rotary_positional_embeddings(
            pipeline, height * 8, width * 8, frames, torch.device("cpu")
        )
    if config.ofs_embed_dim:
        extra["ofs"] = torch.tensor([2.0])
    tensors = {name: torch.from_numpy(value) for name, value in values.items()}
    return model(**tensors, return_dict=False, **extra)[0]


STORED = ("1.0-sincos", "1.0-rotary", "1.5-odd-heads", "1.5-i2v")


def cases() -> dict[str, dict[str, np.ndarray]]:
    """Arrays for the stored test: ``config`` (JSON), inputs, ``weight.<name>`` and the reference's ``output``."""
    stored = {}
    for case in STORED:
        config = config_of(case)
        config = replace(config, num_layers=1, time_embed_dim=16, ofs_embed_dim=config.ofs_embed_dim and 16)
        config = replace(config, num_attention_heads=min(3, config.num_attention_heads))
        model, values = reference_model(config), {**inputs(case)}
        with torch.no_grad():
            output = reference_output(model, values).numpy()
        weights = {f"weight.{name}": value.numpy() for name, value in model.state_dict().items()}
        stored[case] = {"config": np.array(json.dumps(config.to_dict())), **values, **weights, "output": output}
    return stored
