"""Outputs and gradients of a transformer whose tokens are shared, on as many ranks as there are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import communication

from core import ops
from core.parallel.collectives import Processes, joined
from core.parallel.ulysses import Ulysses
from core.presets import PRESETS
from core.transformer.model import CogVideoXTransformer3DModel, Recompute

PRESET_NAMES = ("tiny-1.0-2b", "tiny-1.0-5b", "tiny-1.5")
# (text tokens, latent frames, height, width): with patches of 2 x 2 (x 2) both lengths divide by 4, or neither by 2.
LENGTHS = {"even": (8, 4, 8, 8), "odd": (5, 2, 6, 10)}


def config_of(preset: str) -> Any:
    """Four heads of 16, two blocks."""
    return replace(
        PRESETS[preset].transformer, num_layers=2, text_embed_dim=12, num_attention_heads=4, attention_head_dim=16,
        time_embed_dim=16,
    )  # fmt: skip


def model_of(preset: str) -> CogVideoXTransformer3DModel:
    """Every parameter random, so that no gradient vanishes."""
    model = CogVideoXTransformer3DModel(config_of(preset))
    rng = np.random.default_rng(0)
    for name, spec in model.table.items():
        model.assign(name, (0.2 * rng.standard_normal(spec.shape)).astype(np.float32))
    return model


def inputs_of(preset: str, lengths: str) -> tuple[ms.Tensor, ms.Tensor, ms.Tensor]:
    """Latents, text, time steps of two samples."""
    rng = np.random.default_rng(1)
    text, frames, height, width = LENGTHS[lengths]
    config = config_of(preset)
    if not config.patch_size_t:
        frames = frames if lengths == "even" else 1
    return (
        ms.Tensor(rng.standard_normal((2, frames, config.in_channels, height, width), np.float32)),
        ms.Tensor(rng.standard_normal((2, text, config.text_embed_dim), np.float32)),
        ms.Tensor(np.array([700, 3])),
    )


def outputs(
    preset: str, lengths: str, processes: Processes | None, recompute: Recompute = "none"
) -> dict[str, np.ndarray]:
    """Output, loss and the gradients of every parameter, summed over the processes."""
    model = model_of(preset)
    model.recompute(recompute)
    if processes is not None:
        model.communicate(Ulysses(processes.sequence))
    parameters = model.trainable_params()

    def loss(*values):
        out = model(*values)
        return (out * out).mean(), out

    (value, out), gradients = ops.value_and_gradients(loss, parameters, has_aux=True)(*inputs_of(preset, lengths))
    if processes is not None:
        gradients = [processes.sequence.all_reduce(g, "test") for g in gradients]
    named = {f"gradient/{q.name}": g.asnumpy() for q, g in zip(parameters, gradients, strict=True)}
    return {"out": out.asnumpy(), "loss": value.asnumpy(), **named}


def _joined() -> Processes:
    return joined(communication.get_group_size())


def _summary(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [name for name in found if name.startswith("gradient/")]
    return {"out": found["out"], "loss": found["loss"], "gradients": np.concatenate([found[n].ravel() for n in names])}


def case_ulysses() -> dict[str, Any]:
    """Every architecture and both kinds of lengths."""
    found = {}
    for preset in PRESET_NAMES:
        for lengths in LENGTHS:
            result = _summary(outputs(preset, lengths, _joined()))
            found |= {f"{preset}/{lengths}/{name}": value for name, value in result.items()}
    return found


def case_recompute() -> dict[str, Any]:
    """What a block computes again is exchanged again; the counts say so."""
    found = {}
    for mode in ("none", "all", "keep_attention"):
        processes = _joined()
        result = _summary(outputs("tiny-1.5", "odd", processes, mode))
        found |= {f"{mode}/{name}": value for name, value in result.items()}
        numbers = processes.traffic.table()["sequence"]
        found[f"{mode}/all_to_all"] = [numbers["all_to_all"]["calls"], numbers["all_to_all"]["bytes"]]
    return found


def case_graph() -> dict[str, Any]:
    """Compiled blocks, with and without recomputation."""
    found = {}
    for mode in ("none", "all"):
        ops.configure(mode="graph")
        result = _summary(outputs("tiny-1.5", "odd", _joined(), mode))
        found |= {f"{mode}/{name}": value for name, value in result.items()}
    ops.configure()
    return found
