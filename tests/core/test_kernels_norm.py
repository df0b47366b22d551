"""The compiled group norm with SiLU and modulation: values, every gradient, the same bits always."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore.ops import GradOperation

from core import native, ops, ops_cpu
from tests.core.test_kernels import _direct as direct
from tests.tolerances import OPERATOR, OPERATOR_GRADIENT, relative_error

ROOT = Path(__file__).resolve().parents[2]
EPS = 1e-6

# x, cells of the modulation (None: none), groups
CASES: dict[str, tuple] = {
    "plain": ((2, 6, 3, 5, 7), None, 3),
    "one group": ((1, 4, 1, 4, 4), None, 1),
    "same grid": ((1, 4, 3, 3, 5), (3, 3, 5), 2),
    "space": ((2, 4, 3, 6, 10), (3, 3, 5), 2),
    "first frame alone": ((2, 4, 5, 8, 40), (3, 4, 20), 2),
    "first frame alone, by four": ((1, 4, 9, 8, 8), (3, 2, 2), 1),
    "even frames": ((1, 6, 8, 4, 36), (2, 2, 18), 3),
    "one latent frame": ((1, 4, 1, 4, 4), (1, 2, 2), 2),
}


def _random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def _arrays(case):
    x, cells, _ = CASES[case]
    arrays = [_random(*x) * 2 + 1, _random(x[1], seed=1), _random(x[1], seed=2)]
    return arrays if cells is None else [*arrays, *(_random(*x[:2], *cells, seed=s) for s in (3, 4))]


def _up(cells, shape):
    """Nearest neighbour in NumPy; with an odd number of frames the first cell is the first frame."""
    frames = shape[2]
    out = cells.repeat(shape[3] // cells.shape[3], 3).repeat(shape[4] // cells.shape[4], 4)
    if cells.shape[2] in (frames, 1):
        return out if cells.shape[2] == frames else out.repeat(frames, 2)
    if frames % 2 == 0:
        return out.repeat(frames // cells.shape[2], 2)
    return np.concatenate([out[:, :, :1], out[:, :, 1:].repeat((frames - 1) // (cells.shape[2] - 1), 2)], 2)


def _value64(groups, x, weight, bias, scale=None, shift=None):
    x, weight, bias = (a.astype(np.float64) for a in (x, weight, bias))
    grouped = x.reshape(x.shape[0], groups, -1)
    normed = (grouped - grouped.mean(-1, keepdims=True)) / np.sqrt(grouped.var(-1, keepdims=True) + EPS)
    u = normed.reshape(x.shape) * weight.reshape(1, -1, 1, 1, 1) + bias.reshape(1, -1, 1, 1, 1)
    if scale is not None and shift is not None:
        u = u * _up(scale.astype(np.float64), x.shape) + _up(shift.astype(np.float64), x.shape)
    return u / (1 + np.exp(-u))


def _function(case) -> Any:
    groups = CASES[case][2]

    def plain(x, weight, bias):
        return ops.group_norm_silu(x, groups, weight, bias, EPS)

    def modulated(x, weight, bias, scale, shift):
        return ops.group_norm_silu(x, groups, weight, bias, EPS, scale, shift)

    return plain if CASES[case][1] is None else modulated


@pytest.mark.parametrize(("kernels", "mode"), [("auto", "pynative"), ("auto", "graph"), ("operators", "pynative")])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, kernels, mode):
    """Gradients by central differences in float64, along random directions of each argument."""
    ops.configure(kernels=kernels)
    groups, arrays = CASES[case][2], _arrays(case)
    run: Any = ms.jit(_function(case)) if mode == "graph" else _function(case)
    tensors = [ms.Tensor(a) for a in arrays]
    assert relative_error(run(*tensors).asnumpy(), _value64(groups, *arrays)) <= OPERATOR
    sens = _random(*CASES[case][0], seed=9)
    found = GradOperation(get_all=True, sens_param=True)(run)(*tensors, ms.Tensor(sens))
    for index, tensor in enumerate(found):
        gradient = tensor.asnumpy().astype(np.float64)
        for seed in range(4):
            direction = _random(*gradient.shape, seed=20 + seed).astype(np.float64)
            slope = _slope(groups, [a.astype(np.float64) for a in arrays], index, direction, sens)
            size = np.linalg.norm(gradient) * np.linalg.norm(direction)
            assert abs((gradient * direction).sum() - slope) <= OPERATOR_GRADIENT * size, index


def _slope(groups, arrays, index, direction, sens, step=1e-5):
    """How fast ``sum(y sens)`` changes as argument ``index`` moves along ``direction``."""
    kept, sides = arrays[index], []
    for sign in (1, -1):
        arrays[index] = kept + sign * step * direction
        sides.append((_value64(groups, *arrays) * sens).sum())
    return (sides[0] - sides[1]) / (2 * step)


def _digest(x):
    weight, bias, cells = _random(4, seed=1), _random(4, seed=2), (2, 4, 3, 16, 20)
    scale, shift = _random(*cells, seed=3), _random(*cells, seed=4)
    inputs = [x, weight, bias, scale, shift, np.array([2, EPS], np.float32)]
    y, outputs = np.empty_like(x), [np.empty_like(a) for a in (x, weight, bias, scale, shift)]
    assert direct("norm_silu", inputs, [y]) == 0
    assert direct("norm_silu_gradient", [*inputs, _random(*x.shape, seed=5)], outputs) == 0
    return hashlib.sha256(b"".join(a.tobytes() for a in (y, *outputs))).hexdigest()


def _large():
    return _random(2, 4, 5, 32, 40)


def test_sixty_calls_and_one_thread_give_the_same_bits():
    if native.library().path is None:
        assert ops._device is ops_cpu  # no library: nothing to call
        return
    first = _digest(_large())
    assert {_digest(_large()) for _ in range(60)} == {first}
    program = (
        f"import os, sys; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.core import test_kernels_norm as t; print('DIGEST', t._digest(t._large()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert f"DIGEST {first}" in done.stdout


def test_nan_reaches_its_group_and_no_other():
    x = _random(1, 4, 1, 4, 4)
    x[0, 2, 0, 1, 1] = np.nan
    weight, bias = (ms.Tensor(_random(4, seed=s)) for s in (1, 2))
    y = ops.group_norm_silu(ms.Tensor(x), 2, weight, bias, EPS).asnumpy()
    assert np.isfinite(y[:, :2]).all()
    assert np.isnan(y[:, 2:]).all()


def test_groups_and_cells_that_do_not_divide_are_refused():
    if native.library().path is None:
        assert ops._device is ops_cpu
        return
    x, weight = _random(1, 4, 1, 4, 4), _random(4)
    for groups, cells in ((3, (1, 4, 1, 1, 1)), (2, (1, 4, 1, 3, 4)), (2, (1, 4, 2, 4, 4))):
        scale = _random(*cells)
        inputs = [x, weight, weight, scale, scale, np.array([groups, EPS], np.float32)]
        assert direct("norm_silu", inputs, [x.copy()]) == 1
