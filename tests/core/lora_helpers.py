"""A tiny transformer with and without LoRA, shared by the LoRA tests."""

from __future__ import annotations

from dataclasses import replace

import mindspore as ms
import numpy as np
from mindspore.common import api

from core import ops
from core.configs import TransformerConfig
from core.lora import attach
from core.lora_spec import DEFAULT_TARGETS, LoRAConfig
from core.presets import PRESETS
from core.transformer.model import CogVideoXTransformer3DModel

CONFIG = replace(
    PRESETS["tiny-1.5"].transformer, num_layers=2, text_embed_dim=8, num_attention_heads=2, attention_head_dim=16
)
LORA = LoRAConfig(rank=3, alpha=2.0, targets=(*DEFAULT_TARGETS, "*.ff.net.*", "patch_embed.proj"))


def plain_model(dtype: ms.Type = ms.float32, config: TransformerConfig = CONFIG):
    """The tiny model, every parameter random."""
    model = CogVideoXTransformer3DModel(config, dtype)
    rng = np.random.default_rng(0)
    for name, spec in model.table.items():
        model.assign(name, (0.1 * rng.standard_normal(spec.shape)).astype(np.float32))
    return model


def adapted_model(config: LoRAConfig = LORA, sizes: TransformerConfig = CONFIG):
    """A model with a LoRA whose B is not zero."""
    model = plain_model(config=sizes)
    lora = attach(model, config, seed=1)
    rng = np.random.default_rng(2)
    lora.assign({n: (0.2 * rng.standard_normal(v.shape)).astype(np.float32) for n, v in lora.arrays().items()})
    return model, lora


def example():
    """Latents, text, time steps."""
    rng = np.random.default_rng(1)
    shapes = ((2, 2, CONFIG.in_channels, 4, 6), (2, 3, CONFIG.text_embed_dim))
    return (*(ms.Tensor(rng.standard_normal(s, np.float32)) for s in shapes), ms.Tensor(np.array([700, 3])))


def output_of(model):
    """The model's output for ``example``."""
    return model(*example()).asnumpy()


def gradients_of(model, lora, values=None, target=0.0):
    """Gradients of the mean square by name."""

    def loss(*tensors):
        error = model(*tensors) - target
        return (error * error).mean()

    found = ops.value_and_gradients(loss, lora.parameters)(*(values or example()))[1]
    return {q.name: g.asnumpy() for q, g in zip(lora.parameters, found, strict=True)}


def graphs_compiled_by(action):
    """How many graphs MindSpore compiles during ``action``."""
    before = len(api.ms_compile_cache)
    action()
    return len(api.ms_compile_cache) - before
