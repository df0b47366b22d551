"""The VAE against diffusers' AutoencoderKLCogVideoX: random weights loaded by name, fp32."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mindspore as ms
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX as Reference

from core import ops
from core.presets import PRESETS
from core.vae.model import AutoencoderKLCogVideoX
from core.vae.parameters import parameter_table
from core.vae.tiling import TilingConfig
from tests.parity import cases_vae as reference_side

TOLERANCE = 1e-5  # relative Frobenius error, fp32; MindSpore's CPU exp alone is off by up to 4e-6
SMALL = {
    "block_out_channels": (8, 16, 16, 32),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "sample_height": 96,
    "sample_width": 80,
}
TILING = TilingConfig(tile_height=48, tile_width=40)  # 6x5 latents, overlaps of one
WIDE = TilingConfig(tile_height=32, tile_width=64, overlap_height=0.5, overlap_width=0.25)


def pair(seed: int, **sizes) -> tuple[Reference, AutoencoderKLCogVideoX]:
    reference, weights = reference_side.reference_and_weights(seed, **sizes)
    ours = AutoencoderKLCogVideoX(reference_side.our_config(reference))
    assert set(weights) == set(ours.table)
    for name, value in weights.items():
        ours.assign(name, value)
    return reference, ours


@pytest.fixture(scope="module")
def small() -> tuple[Reference, AutoencoderKLCogVideoX]:
    return pair(0, **SMALL)


@pytest.fixture(autouse=True)
def pynative():
    before = (ops._runtime.device, ops._runtime.mode, ops._runtime.jit_level)
    ops.configure(mode="pynative")
    yield
    ops.configure(device=before[0], mode=before[1], jit_level=before[2])


def error(ours: ms.Tensor, expected: np.ndarray) -> float:
    assert tuple(ours.shape) == expected.shape
    return float(np.linalg.norm(ours.asnumpy() - expected) / np.linalg.norm(expected))


def check_encode(models, shape, tiling, record_property) -> None:
    reference, ours = models
    reference_side.use_tiling(reference, tiling)
    video = reference_side.noise(1, *shape)
    expected = reference_side.reference_encode(reference, video)
    errors = [error(a, b) for a, b in zip(ours.encode(ms.Tensor(video), tiling), expected, strict=True)]
    print(f"PARITY encode {shape} tiles={tiling is not None} mean {errors[0]:.1e} std {errors[1]:.1e}")
    record_property("error", max(errors))
    assert max(errors) <= TOLERANCE


def check_decode(models, shape, tiling, record_property) -> None:
    reference, ours = models
    reference_side.use_tiling(reference, tiling)
    latents = reference_side.noise(2, *shape)
    expected = reference_side.reference_decode(reference, latents)
    found = error(ours.decode(ms.Tensor(latents), tiling), expected)
    print(f"PARITY decode {shape} tiles={tiling is not None} {found:.1e}")
    record_property("error", found)
    assert found <= TOLERANCE


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 32, 48), (1, 4, 16, 24), (1, 5, 16, 24), (1, 8, 16, 16), (2, 9, 32, 24), (1, 13, 16, 24), (1, 17, 24, 40),
     (1, 25, 16, 24)],
)  # fmt: skip
def test_encode(small, shape, record_property):
    check_encode(small, (shape[0], 3, *shape[1:]), None, record_property)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 6, 7])
def test_decode(small, frames, record_property):
    check_decode(small, (2 if frames == 3 else 1, 16, frames, 3, 5), None, record_property)


@pytest.mark.parametrize(
    ("shape", "tiling"),
    [
        ((1, 1, 96, 80), TILING),
        ((2, 9, 56, 72), TILING),  # a last row of one latent, and a row before it that is cut off as well
        ((1, 17, 32, 72), WIDE),
        ((1, 25, 48, 40), TILING),
        ((1, 5, 80, 64), WIDE),
        ((1, 1, 48, 40), TILING),
    ],
)
def test_tiled_encode(small, shape, tiling, record_property):
    check_encode(small, (shape[0], 3, *shape[1:]), tiling, record_property)


@pytest.mark.parametrize(
    ("shape", "tiling"),
    [
        ((1, 1, 12, 10), TILING),
        ((2, 3, 7, 9), TILING),
        ((1, 4, 4, 9), WIDE),
        ((1, 1, 10, 8), WIDE),
        ((1, 5, 6, 5), TILING),
        ((1, 7, 6, 5), TILING),
    ],
)
def test_tiled_decode(small, shape, tiling, record_property):
    check_decode(small, (shape[0], 16, *shape[1:]), tiling, record_property)


def test_tiled_and_stacked(small, record_property):
    check_decode(small, (1, 16, 3, 8, 9), replace(TILING, vectorised=True, max_batch=4), record_property)


def test_separable_corners_are_not_the_reference(small):
    """The comparison can fail: the other corner rule is found out."""
    reference, ours = small
    reference_side.use_tiling(reference, WIDE)
    latents = reference_side.noise(2, 1, 16, 1, 10, 12)
    expected = reference_side.reference_decode(reference, latents)
    assert error(ours.decode(ms.Tensor(latents), replace(WIDE, corners="separable")), expected) > 10 * TOLERANCE


def test_graph_mode(small, record_property):
    ops.configure(mode="graph")
    check_encode(small, (1, 3, 17, 16, 24), None, record_property)
    check_decode(small, (1, 16, 5, 2, 3), None, record_property)


def test_quant_convolutions(record_property):
    models = pair(1, **SMALL, latent_channels=4, out_channels=4, use_quant_conv=True, use_post_quant_conv=True)
    check_encode(models, (1, 3, 9, 16, 16), None, record_property)
    check_decode(models, (1, 4, 3, 2, 2), None, record_property)


def test_published_channels(record_property):
    models = pair(2)
    check_encode(models, (1, 3, 9, 16, 16), None, record_property)
    check_decode(models, (1, 16, 3, 2, 2), None, record_property)


def test_published_names_and_shapes():
    with torch.device("meta"):
        state = Reference().state_dict()
    table = parameter_table(PRESETS["5b"].vae)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {n: s.shape for n, s in table.items()}


def test_gradients(small, record_property):
    """d sum(decode(z) * g) / dz and d/d(one convolution of each kind), through both chunks and the cache."""
    reference, ours = small
    reference_side.use_tiling(reference, None)
    z, g = reference_side.noise(3, 1, 16, 4, 1, 2), reference_side.noise(4, 1, 3, 16, 8, 16)
    names = ["decoder.conv_in.conv.weight", "decoder.up_blocks.1.resnets.0.norm1.conv_y.conv.weight"]
    weights = dict(reference.named_parameters())
    latents = torch.from_numpy(z).requires_grad_()
    for name in names:
        weights[name].requires_grad_()
    (reference._decode(latents).sample * torch.from_numpy(g)).sum().backward()
    expected = [latents.grad, *(weights[name].grad for name in names)]

    def loss(x):
        return (ours.decode(x) * ms.Tensor(g)).sum()

    grad: Any = ms.grad(loss, grad_position=0, weights=[ours._params[name] for name in names])
    found_input, found_weights = grad(ms.Tensor(z))
    errors = [error(a, b.numpy()) for a, b in zip([found_input, *found_weights], expected, strict=True)]
    print("PARITY gradients", " ".join(f"{e:.1e}" for e in errors))
    record_property("error", max(errors))
    for name in names:
        weights[name].grad = None
        weights[name].requires_grad_(False)
    assert max(errors) <= 2 * TOLERANCE  # a backward pass doubles the operations


def test_stored_cases_are_complete():
    stored = reference_side.cases()
    assert all({"config", "input"} <= set(case) for case in stored.values())
    assert all("output" in case or {"output.mean", "output.std"} <= set(case) for case in stored.values())
    one = next(iter(stored.values()))
    assert sum(value.nbytes for name, value in one.items() if name.startswith("weight.")) < 200_000
