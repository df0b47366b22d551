"""Small T5 encoders of transformers with random weights: configs, inputs, weights and outputs as arrays."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import T5Config as ReferenceConfig
from transformers import T5EncoderModel as ReferenceEncoder

from core.configs import T5Config
from core.presets import PRESETS

_TINY = replace(PRESETS["tiny-1.5"].text, vocab_size=48, d_model=24, d_ff=40, num_heads=3)

# d_kv differs from d_model / num_heads (8) in each, as in the published XXL encoder's smaller relatives.
CONFIGS: dict[str, T5Config] = {
    "1 layer, d_kv 6": replace(_TINY, num_layers=1, d_kv=6),
    "3 layers, d_kv 10": replace(_TINY, num_layers=3, d_kv=10),
    "3 layers, relu": replace(_TINY, num_layers=3, d_kv=10, feed_forward_proj="relu"),
    "2 layers, 16 buckets": replace(
        _TINY, num_layers=2, d_kv=6, relative_attention_num_buckets=16, relative_attention_max_distance=20
    ),
}


def reference(config: T5Config, seed: int) -> ReferenceEncoder:
    """The reference's encoder; weights wide enough that attention is far from uniform and norms are not 1."""
    encoder = ReferenceEncoder(ReferenceConfig(**config.to_dict())).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            if name.endswith("layer_norm.weight"):
                parameter.copy_(1.0 + 0.2 * draw)
            elif parameter.ndim == 2 and "relative" not in name and name != "shared.weight":
                parameter.copy_(draw * parameter.shape[1] ** -0.5 * 0.7)
            else:
                parameter.copy_(draw)
    return encoder


def case(name: str, *, masked: bool = False, length: int = 40, seed: int = 0) -> dict[str, Any]:
    """One case: ``name``, ``config`` (JSON values), ``inputs``, ``weights`` (published names), ``outputs``."""
    config = CONFIGS[name]
    encoder = reference(config, seed)
    rng = np.random.default_rng(seed)
    inputs: dict[str, np.ndarray] = {"input_ids": rng.integers(0, config.vocab_size, (2, length)).astype(np.int32)}
    if masked:
        inputs["attention_mask"] = (np.arange(length)[None] < np.array([[length // 2], [length - 3]])).astype(np.uint8)
    with torch.no_grad():
        arguments = {key: torch.tensor(value.astype(np.int64)) for key, value in inputs.items()}
        hidden_states = encoder(**arguments)[0].numpy()
    weights = {key: value.numpy().copy() for key, value in encoder.state_dict().items()}
    full_name = "t5 " + name.replace(",", "") + (" mask" if masked else "")
    return {
        "name": full_name,
        "config": config.to_dict(),
        "inputs": inputs,
        "weights": weights,
        "outputs": {"last_hidden_state": hidden_states},
    }


def flat(case: dict[str, Any]) -> dict[str, np.ndarray]:
    """A case as arrays for one .npz: ``config`` (JSON text), inputs, ``weight.<name>``, ``output.<name>``."""
    outputs = {f"output.{name}": value for name, value in case["outputs"].items()}
    weights = {f"weight.{name}": value for name, value in case["weights"].items()}
    return {"config": np.array(json.dumps(case["config"])), **case["inputs"], **weights, **outputs}


def all_cases() -> list[dict[str, Any]]:
    """Every config without a mask, as CogVideoX calls it, and one with."""
    return [case(name) for name in CONFIGS] + [case("3 layers, d_kv 10", masked=True, length=13)]


def cases() -> dict[str, dict[str, np.ndarray]]:
    """Name -> arrays (see ``flat``), about 300 kB in all; ``encoder.embed_tokens.weight`` is there as published."""
    return {found["name"]: flat(found) for found in all_cases()}
