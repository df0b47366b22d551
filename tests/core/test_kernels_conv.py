"""The compiled convolution: values and gradients for every geometry, and the same bits always."""

from __future__ import annotations

import hashlib
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore.ops import GradOperation

from core import native, ops, ops_cpu
from tests.core.kernel_bits import assert_same_with_any_threads, narrow_library
from tests.core.test_kernels import _direct as direct
from tests.tolerances import OPERATOR, OPERATOR_GRADIENT, relative_error

# x, weight, stride, padding; sizes around the register tiles (8 outputs, 3 x 16 places) and the packed pieces.
CASES: dict[str, tuple] = {
    "causal": ((2, 5, 4, 6, 7), (9, 5, 3, 3, 3), (1, 1, 1), (0, 1, 1)),
    "one output": ((1, 3, 3, 5, 5), (1, 3, 3, 3, 3), (1, 1, 1), (0, 1, 1)),
    "rgb": ((1, 8, 3, 9, 20), (3, 8, 3, 3, 3), (1, 1, 1), (0, 1, 1)),
    "padded time": ((1, 2, 3, 4, 5), (4, 2, 3, 3, 3), (1, 1, 1), (1, 1, 1)),
    "point": ((2, 20, 3, 5, 7), (17, 20, 1, 1, 1), (1, 1, 1), (0, 0, 0)),
    "strides": ((1, 3, 5, 8, 9), (4, 3, 3, 3, 3), (2, 2, 2), (1, 1, 1)),
    "stride 3": ((1, 2, 4, 11, 10), (3, 2, 2, 3, 2), (1, 3, 3), (0, 2, 0)),
    "stride without padding": ((1, 2, 3, 9, 17), (5, 2, 1, 2, 2), (1, 2, 2), (0, 0, 0)),
    "stride beyond the kernel": ((1, 2, 3, 9, 9), (2, 2, 1, 1, 1), (2, 3, 2), (0, 0, 0)),
    "frame": ((3, 4, 6, 9), (8, 4, 3, 3), 1, 1),
    "downsampling": ((2, 4, 9, 13), (6, 4, 3, 3), 2, 0),
    "wide kernel": ((1, 2, 7, 9), (3, 2, 5, 4), 1, 2),
    "one place": ((1, 3, 3, 3), (2, 3, 3, 3), 1, 0),
    "long rows": ((1, 2, 2, 3, 1100), (2, 2, 2, 3, 3), (1, 1, 1), (0, 1, 1)),
    "rows of whole vectors": ((1, 3, 3, 5, 32), (9, 3, 3, 3, 3), (1, 1, 1), (0, 1, 1)),
    "small planes": ((2, 20, 5, 3, 5), (17, 20, 3, 3, 3), (1, 1, 1), (0, 1, 1)),
    "small planes, padded time": ((2, 20, 5, 6, 5), (9, 20, 3, 3, 3), (1, 1, 1), (1, 1, 1)),
    "small planes, wide kernel": ((1, 3, 4, 4, 3), (5, 3, 3, 7, 7), (1, 1, 1), (0, 3, 3)),
    "small points": ((1, 20, 3, 3, 5), (17, 20, 1, 1, 1), (1, 1, 1), (0, 0, 0)),
    "several rounds": ((1, 64, 6, 41, 150), (3, 64, 3, 3, 3), (1, 1, 1), (0, 1, 1)),
    "many samples": ((70, 8, 3, 20, 60), (3, 8, 3, 3, 3), (1, 1, 1), (0, 1, 1)),
    "many channels": ((1, 40, 3, 40, 40), (24, 40, 3, 3, 3), (1, 1, 1), (0, 1, 1)),
}


def _random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def _arrays(case, bias=True):
    x, weight, *_ = CASES[case]
    return _random(*x), _random(*weight, seed=1), _random(weight[0], seed=2) if bias else None


def _full(value, rank):
    value = (value,) * rank if isinstance(value, int) else value
    return (1, *value) if rank == 2 else value


def _reference(x, weight, bias, stride, padding, gradient=None) -> Any:
    """float64: the output, or the gradients of x, weight and bias."""
    rank = x.ndim - 2
    if rank == 2:
        x, weight = x[:, :, None], weight[:, :, None]
        gradient = None if gradient is None else gradient[:, :, None]
    strides, pads = _full(stride, rank), _full(padding, rank)
    pads = (0, *pads[1:]) if rank == 2 else pads
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), *((p, p) for p in pads)))
    sizes = [(n - k) // s + 1 for n, k, s in zip(padded.shape[2:], weight.shape[2:], strides, strict=True)]
    y = np.zeros((x.shape[0], weight.shape[0], *sizes))
    dx, dw = np.zeros_like(padded), np.zeros(weight.shape)
    for tap in np.ndindex(*weight.shape[2:]):
        at = (..., *(slice(k, k + (n - 1) * s + 1, s) for k, n, s in zip(tap, sizes, strides, strict=True)))
        if gradient is None:
            y += np.einsum("oc,bcthw->bothw", weight[(..., *tap)], padded[at])
        else:
            dx[at] += np.einsum("oc,bothw->bcthw", weight[(..., *tap)], gradient)
            dw[(..., *tap)] = np.einsum("bothw,bcthw->oc", gradient, padded[at])
    if gradient is None:
        y += 0 if bias is None else bias.reshape(1, -1, 1, 1, 1)
        return y[:, :, 0] if rank == 2 else y
    inner = tuple(slice(p, p + n) for p, n in zip(pads, x.shape[2:], strict=True))
    dx = dx[(..., *inner)]
    return (dx[:, :, 0], dw[:, :, 0]) if rank == 2 else (dx, dw), gradient.sum((0, 2, 3, 4))


def _function(case) -> Any:
    stride, padding = CASES[case][2:]
    convolve: Any = ops.conv2d if len(CASES[case][0]) == 4 else ops.conv3d

    def run(x, weight, bias):
        return convolve(x, weight, bias, stride, padding)

    return run


@pytest.mark.parametrize("mode", ["pynative", "graph"])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, mode):
    x, weight, bias = _arrays(case)
    stride, padding = CASES[case][2:]
    run: Any = ms.jit(_function(case)) if mode == "graph" else _function(case)
    tensors = [ms.Tensor(a) for a in (x, weight, bias)]
    y = run(*tensors).asnumpy()
    assert relative_error(y, _reference(x, weight, bias, stride, padding)) <= OPERATOR
    gradient = _random(*y.shape, seed=3)
    ours = GradOperation(get_all=True, sens_param=True)(run)(*tensors, ms.Tensor(gradient))
    (dx, dw), db = _reference(x, weight, bias, stride, padding, gradient)
    for value, reference in zip(ours, (dx, dw, db), strict=True):
        assert relative_error(value.asnumpy(), reference) <= OPERATOR_GRADIENT


def test_by_hand():
    x = ms.Tensor(np.arange(6, dtype=np.float32).reshape(1, 1, 1, 2, 3))
    weight = np.zeros((1, 1, 1, 3, 3), np.float32)
    weight[0, 0, 0, 1, 1], weight[0, 0, 0, 1, 2] = 10, 1  # ten times itself and its right neighbour
    y = ops.conv3d(x, ms.Tensor(weight), ms.Tensor([0.5], ms.float32), 1, (0, 1, 1)).asnumpy()
    assert y.ravel().tolist() == [1.5, 12.5, 20.5, 34.5, 45.5, 50.5]
    assert ops.conv3d(x, ms.Tensor(weight), None, 1, (0, 1, 1)).asnumpy().ravel().tolist() == [1, 12, 20, 34, 45, 50]


def test_nothing_in_nothing_out():
    y = ops.conv2d(ms.Tensor(np.zeros((0, 3, 4, 4), np.float32)), ms.Tensor(_random(2, 3, 3, 3)), None, 1, 1)
    assert y.shape == (0, 2, 4, 4)


def test_nan_and_infinity_spread_as_far_as_the_kernel_reaches():
    x, weight = np.ones((1, 1, 9, 40), np.float32), np.ones((2, 1, 3, 3), np.float32)
    x[0, 0, 2, 5], x[0, 0, 6, 30] = np.nan, np.inf
    y = ops.conv2d(ms.Tensor(x), ms.Tensor(weight), None, 1, 1).asnumpy()
    place = np.argwhere(np.isnan(y[0, 1]))
    assert (place.min(0).tolist(), place.max(0).tolist(), len(place)) == ([1, 4], [3, 6], 9)
    place = np.argwhere(np.isinf(y[0, 1]))
    assert (place.min(0).tolist(), place.max(0).tolist(), len(place)) == ([5, 29], [7, 31], 9)


def _twice(p, x):
    """Equal shapes twice: a wrong pairing of backward and forward calls would show."""
    for _ in range(2):
        x = ops.conv3d(x, p["w"], p["b"], 1, (0, 1, 1)) * p["w"][0, 0, 0, 0, 0] + x
    return x


@pytest.mark.parametrize("mode", ["pynative", "graph"])
@pytest.mark.parametrize("wrapper", [ops.compiled, ops.recomputed])
def test_an_operator_used_twice_has_its_own_gradients(wrapper, mode):
    def gradients(kernels):
        ops.configure(mode=mode, kernels=kernels)
        run = wrapper(_twice)
        weight = ms.Parameter(ms.Tensor(_random(4, 4, 1, 3, 3)), name="w")
        bias = ms.Parameter(ms.Tensor(_random(4)), name="b")

        def loss(x):
            p = {"w": weight.view(weight.shape), "b": bias.view(bias.shape)}
            return (run(p, run(p, x)) ** 2).sum()

        call: Any = ops.value_and_gradients(loss, [weight, bias])
        value, found = call(ms.Tensor(_random(1, 4, 2, 5, 6)))
        return [value.asnumpy(), *(g.asnumpy() for g in found)]

    for ours, reference in zip(gradients("auto"), gradients("operators"), strict=True):
        assert relative_error(ours, reference) <= OPERATOR_GRADIENT


def test_half_precision_takes_the_operators():
    x, weight = ms.Tensor(_random(1, 2, 4, 4)).astype(ms.float16), ms.Tensor(_random(2, 2, 1, 1)).astype(ms.float16)
    assert ops.conv2d(x, weight, None, 1).dtype == ms.float16


def _digests():
    """One digest of values and gradients a case, straight from the library."""
    found = {}
    for case in CASES:
        x, weight, bias = _arrays(case)
        gradient = _random(*_reference(x, weight, bias, *CASES[case][2:]).shape, seed=3)
        # Down to the smallest numbers that fp32 holds: threads that flush those to zero would show.
        found[case] = _digest(x * np.float32(1e-38), weight, bias, gradient, *CASES[case][2:])
    return found


def _digest(x, weight, bias, gradient, stride, padding, library=None):
    rank = x.ndim - 2
    pads = (0, *_full(padding, rank)[1:]) if rank == 2 else padding
    geometry = np.zeros((*_full(stride, rank), *(p + 1 for p in pads)), np.float32)
    y, dx, dw, db = (np.empty_like(a) for a in (gradient, x, weight, bias))
    calls = [
        ("convolution", [x, weight, bias, geometry], [y]),
        ("convolution_image_gradient", [gradient, weight, geometry, x], [dx]),
        ("convolution_weight_gradient", [x, gradient, geometry, weight], [dw, db]),
    ]
    for name, inputs, outputs in calls:
        assert direct(name, inputs, outputs, library=library) == 0
    return hashlib.sha256(b"".join(a.tobytes() for a in (y, dx, dw, db))).hexdigest()


def test_sixty_calls_and_any_number_of_threads_give_the_same_bits():
    if native.library().path is None:
        assert ops._device is ops_cpu  # no library: nothing to call
        return
    first = _digests()
    case = "many channels"
    x, weight, bias = _arrays(case)
    gradient = _random(1, 24, 1, 40, 40, seed=3)
    again = {_digest(x * np.float32(1e-38), weight, bias, gradient, *CASES[case][2:]) for _ in range(60)}
    assert again == {first[case]}
    assert_same_with_any_threads("test_kernels_conv", first)


def test_narrower_vectors_give_the_same_bits(tmp_path):
    """A library for AVX2 on a machine that has more."""
    narrow = narrow_library(tmp_path)
    if narrow is None:
        assert ops.chosen_kernels()  # nothing to compare on this machine
        return
    for case in ("causal", "rgb", "strides", "downsampling"):
        x, weight, bias = _arrays(case)
        stride, padding = CASES[case][2:]
        gradient = _random(*_reference(x, weight, bias, stride, padding).shape, seed=3)
        both = [_digest(x, weight, bias, gradient, stride, padding, library) for library in (None, narrow)]
        assert both[0] == both[1], case
