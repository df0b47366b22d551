"""Convolutions that make fewer tensors: the bits of the operators one after the other, and their gradients."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import mint
from mindspore.ops import GradOperation

from core import native, ops
from core.model import Handed
from core.ops_modulation import downsample, pad_right_bottom, upsample
from core.vae import blocks
from core.vae.conv import causal_conv3d
from tests.tolerances import OPERATOR_GRADIENT, relative_error

pytestmark = pytest.mark.skipif(native.library().path is None, reason="the kernels need a C++ compiler")


def _random(*shape: int, seed: int = 0) -> ms.Tensor:
    return ms.Tensor(np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32))


def _arguments(frames: int, *, cached: bool, added: bool, latents: int | None, batch: int = 1) -> list[Any]:
    """x, norm's weight and bias, scale, shift, cache, kernel, bias, added; 6 channels in 3 groups -> 5."""
    x = _random(batch, 6, frames, 8, 12)
    cells = (batch, 6, latents, 2, 3) if latents else (batch, 6, 1, 1, 1)
    scale, shift = (_random(*cells, seed=s) for s in (1, 2)) if latents else (None, None)
    cache = _random(batch, 6, 2, 8, 12, seed=3) if cached else None
    more = _random(batch, 5, frames, 8, 12, seed=4) if added else None
    return [
        x, _random(6, seed=5), _random(6, seed=6), scale, shift, cache, _random(5, 6, 3, 3, 3), _random(5, seed=7), more
    ]  # fmt: skip


def _fused(x, weight, bias, scale, shift, cache, kernel, kernel_bias, added):
    return ops.norm_conv3d(x, 3, weight, bias, 1e-6, scale, shift, cache, kernel, kernel_bias, added)


def _apart(x, weight, bias, scale, shift, cache, kernel, kernel_bias, added):
    y, cache = causal_conv3d(ops.group_norm_silu(x, 3, weight, bias, 1e-6, scale, shift), kernel, kernel_bias, cache)
    return (y if added is None else y + added), cache


# Frames, a cache, something added, latents of the modulation, samples.
CASES = [
    (1, False, False, None, 1), (1, True, True, 1, 1), (2, True, False, None, 2), (3, False, True, 2, 1),
    (8, True, True, 2, 1), (9, False, False, 3, 2),
]  # fmt: skip


def _given(frames: int, cached: bool, added: bool, latents: int | None, batch: int) -> list[Any]:
    return _arguments(frames, cached=cached, added=added, latents=latents, batch=batch)


@pytest.mark.parametrize("case", CASES)
def test_norm_conv_has_the_bits_of_its_parts(case):
    given = _given(*case)
    for ours, expected in zip(_fused(*given), _apart(*given), strict=True):
        np.testing.assert_array_equal(ours.asnumpy(), expected.asnumpy())


@pytest.mark.parametrize("case", CASES)
def test_norm_conv_has_the_gradients_of_its_parts(case):
    given = _given(*case)
    places = [index for index, value in enumerate(given) if value is not None]

    def of(function: Any) -> Any:
        def run(*values):
            whole = list(given)
            for index, value in zip(places, values, strict=True):
                whole[index] = value
            return function(*whole)

        outputs = run(*(given[index] for index in places))
        sens = tuple(_random(*o.shape, seed=9) for o in outputs)
        return GradOperation(get_all=True, sens_param=True)(run)(*(given[index] for index in places), sens)

    for place, ours, expected in zip(places, of(_fused), of(_apart), strict=True):
        assert relative_error(ours.asnumpy(), expected.asnumpy()) <= OPERATOR_GRADIENT, place


@pytest.mark.parametrize(("frames", "cached"), [(1, False), (1, True), (2, True), (3, False)])
def test_causal_conv_has_the_bits_and_gradients_of_its_parts(frames, cached):
    given = [_random(2, 4, frames, 5, 7), _random(9, 4, 3, 3, 3), _random(9, seed=1)]
    given += [_random(2, 4, 2, 5, 7, seed=3)] * cached

    def fused(x, weight, bias, cache=None):
        return ops.causal_conv3d(x, cache, weight, bias)

    def apart(x, weight, bias, cache=None):
        return causal_conv3d(x, weight, bias, cache)

    outputs = fused(*given)
    for ours, expected in zip(outputs, apart(*given), strict=True):
        np.testing.assert_array_equal(ours.asnumpy(), expected.asnumpy())
    sens = tuple(_random(*o.shape, seed=9) for o in outputs)
    gradients = [GradOperation(get_all=True, sens_param=True)(f)(*given, sens) for f in (fused, apart)]
    for ours, expected in zip(*gradients, strict=True):
        assert relative_error(ours.asnumpy(), expected.asnumpy()) <= OPERATOR_GRADIENT


@pytest.mark.parametrize(("frames", "time"), [(1, 2), (2, 2), (3, 2), (3, 1)])
def test_upsampled_conv_is_the_convolution_of_the_upsampled(frames, time):
    x, weight, bias = _random(2, 4, frames, 5, 7), _random(9, 4, 1, 3, 3), _random(9, seed=1)

    def fused(x, weight, bias):
        return ops.upsampled_conv3d(x, time, weight, bias)

    def apart(x, weight, bias):
        return ops.conv3d(upsample(x, time, 2, ops.repeat_nearest), weight, bias, 1, (0, 1, 1))

    y = fused(x, weight, bias)
    np.testing.assert_array_equal(y.asnumpy(), apart(x, weight, bias).asnumpy())
    sens = _random(*y.shape, seed=2)
    gradients = [GradOperation(get_all=True, sens_param=True)(f)(x, weight, bias, sens) for f in (fused, apart)]
    for ours, expected in zip(*gradients, strict=True):
        assert relative_error(ours.asnumpy(), expected.asnumpy()) <= OPERATOR_GRADIENT


@pytest.mark.parametrize(("frames", "time"), [(1, 2), (2, 2), (3, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_downsampled_conv_is_the_convolution_of_the_downsampled(frames, time, size):
    x, weight, bias = _random(2, 4, frames, *size), _random(9, 4, 1, 3, 3), _random(9, seed=1)

    def fused(x, weight, bias):
        return ops.downsampled_conv3d(x, time, weight, bias)

    def apart(x, weight, bias):
        return ops.conv3d(pad_right_bottom(downsample(x, time)), weight, bias, (1, 2, 2), (0, 0, 0))

    y = fused(x, weight, bias)
    assert y.shape == (2, 9, frames if time == 1 else (frames + 1) // 2, size[0] // 2, size[1] // 2)
    np.testing.assert_array_equal(y.asnumpy(), apart(x, weight, bias).asnumpy())
    sens = _random(*y.shape, seed=2)
    gradients = [GradOperation(get_all=True, sens_param=True)(f)(x, weight, bias, sens) for f in (fused, apart)]
    for ours, expected in zip(*gradients, strict=True):
        assert relative_error(ours.asnumpy(), expected.asnumpy()) <= OPERATOR_GRADIENT


def test_added_conv_is_a_convolution_and_a_sum():
    x, weight, bias, added = _random(2, 4, 3, 5, 7), _random(3, 4, 1, 1, 1), _random(3), _random(2, 3, 3, 5, 7)

    def fused(x, weight, bias, added):
        return ops.conv3d_added(x, weight, bias, 1, (0, 0, 0), added)

    def apart(x, weight, bias, added):
        return ops.conv3d(x, weight, bias, 1, (0, 0, 0)) + added

    values = (x, weight, bias, added)
    y = fused(*values)
    np.testing.assert_array_equal(y.asnumpy(), apart(*values).asnumpy())
    sens = _random(*y.shape, seed=2)
    gradients = [GradOperation(get_all=True, sens_param=True)(f)(*values, sens) for f in (fused, apart)]
    for ours, expected in zip(*gradients, strict=True):
        assert relative_error(ours.asnumpy(), expected.asnumpy()) <= OPERATOR_GRADIENT


@pytest.mark.parametrize("shortcut", [False, True])
def test_a_resnet_has_the_bits_of_one_from_operators(monkeypatch, shortcut):
    channels = 8 if shortcut else 6
    p = {}
    for norm, conv, width in (("norm1", "conv1", 6), ("norm2", "conv2", channels)):
        p |= {f"{norm}.weight": _random(width, seed=1), f"{norm}.bias": _random(width, seed=2)}
        p |= {f"{conv}.conv.weight": _random(channels, width, 3, 3, 3), f"{conv}.conv.bias": _random(channels, seed=3)}
    if shortcut:
        p |= {"conv_shortcut.weight": _random(8, 6, 1, 1, 1), "conv_shortcut.bias": _random(8, seed=4)}
    x, caches = _random(1, 6, 3, 5, 7), (_random(1, 6, 2, 5, 7, seed=8), _random(1, channels, 2, 5, 7, seed=9))
    ours = blocks.resnet(Handed(p, frozenset()), x, None, *caches, groups=2, eps=1e-6)
    monkeypatch.setattr(blocks, "fuses", lambda x: False)
    expected = blocks.resnet(p, x, None, *caches, groups=2, eps=1e-6)
    for one, other in zip(ours, expected, strict=True):
        assert one is not None
        assert other is not None
        np.testing.assert_array_equal(one.asnumpy(), other.asnumpy())


def test_shapes_that_do_not_fit_are_an_error():
    given = _arguments(2, cached=False, added=False, latents=None)
    with pytest.raises(RuntimeError):
        ops.norm_conv3d(given[0], 4, given[1], given[2], 1e-6, None, None, None, given[6], given[7])[0].asnumpy()
    assert mint.isfinite(_fused(*given)[0]).all()
