"""The optimiser's kernels: the bits of the composed operators for AdamW, and a sum of squares that is exact enough."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from core import native, ops
from core.optim.adamw import AdamW
from core.optim.came import CAME
from core.optim.clip import square_sum
from core.optim.ema import EMA
from tests.core.test_kernels import _random
from tests.tolerances import relative_error

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ((700, 101), (7,), (1, 1), (40_000,))


def square_sum_of(x: ms.Tensor) -> ms.Tensor:
    return square_sum({"x": x})


def _trained(kernels: ops.Kernels, mode: ops.Mode, dtype=ms.float32) -> list[np.ndarray]:
    """Values and averages after five steps with a factor that clips."""
    ops.configure(kernels=kernels, mode=mode)
    parameters = [ms.Parameter(ms.Tensor(_random(*s, seed=i), dtype), name=f"p{i}") for i, s in enumerate(SHAPES)]
    decay = [len(s) > 1 for s in SHAPES]
    optimizer = AdamW(parameters, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, decay=decay)
    for step in range(5):
        gradients = [ms.Tensor(_random(*s, seed=10 * step + i, scale=3.0)) for i, s in enumerate(SHAPES)]
        optimizer.step(gradients, 1e-2 / (step + 1), 0.37)
    return [p.astype(ms.float32).asnumpy() for p in parameters] + list(optimizer.state().values())


@pytest.mark.parametrize("mode", ["pynative", "graph"])
@pytest.mark.parametrize("dtype", [ms.float32, ms.float16])
def test_adamw_has_the_bits_of_the_operators(mode, dtype):
    expected = _trained("operators", mode, dtype)
    for ours, reference in zip(_trained("auto", mode, dtype), expected, strict=True):
        assert np.array_equal(ours, reference)


def test_adamw_by_hand():
    ops.configure()
    p, g, m, v = (ms.Tensor([value], ms.float32) for value in (10.0, 2.0, 2.0, 4.0))
    scalars = [ms.Tensor(value, ms.float32) for value in (0.5, 0.1, 0.5, 0.5)]
    static = {"beta1": 0.9, "beta2": 0.75, "rest1": 0.1, "rest2": 0.25, "eps": 0.0, "weight_decay": 0.2}
    found = ops.adamw_in_place([{"value": p, "gradient": g, "m": m, "v": v}], *scalars, **static)
    if native.library().path is None:
        assert found is None
        assert ops.chosen_kernels().startswith("operators")
        return
    assert found is not None
    # factor 0.5 makes the gradient 1; m = 0.9 * 2 + 0.1, v = 0.75 * 4 + 0.25; both corrections 0.5, decay 0.1 * 0.2
    assert found[0][0] is p, "in place"
    assert (float(m), float(v), float(g)) == pytest.approx((1.9, 3.25, 2.0), rel=1e-6)
    assert float(p) == pytest.approx(10.0 * 0.98 - 0.1 * 3.8 / np.sqrt(6.5), rel=1e-6)


CAME_SHAPES = ((300, 700), (2, 3, 5, 4), (1, 1), (9,), (3, 40_000))


def _came_trained(kernels: ops.Kernels) -> list[np.ndarray]:
    """Values and averages after three steps of CAME whose updates are clipped."""
    ops.configure(kernels=kernels)
    held = [ms.Parameter(ms.Tensor(_random(*s, seed=i)), name=f"p{i}") for i, s in enumerate(CAME_SHAPES)]
    decay = [len(s) > 1 for s in CAME_SHAPES]
    optimizer = CAME(held, betas=(0.9, 0.95, 0.99), eps=(1e-8, 1e-8), weight_decay=0.1, clip_threshold=0.3, decay=decay)
    for step in range(3):
        gradients = [ms.Tensor(_random(*s, seed=10 * step + i, scale=3.0)) for i, s in enumerate(CAME_SHAPES)]
        optimizer.step(gradients, 1e-2, 0.37)
    return [p.asnumpy() for p in held] + [array for array in optimizer.state().values() if array.dtype == np.float32]


def came_digest() -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in _came_trained("auto"))).hexdigest()


def test_came_is_the_operators_but_for_the_order_of_sums():
    for ours, reference in zip(_came_trained("auto"), _came_trained("operators"), strict=True):
        assert relative_error(ours, reference) <= 1e-6


def test_came_in_place_leaves_parts_of_tensors_alone():
    ops.configure()
    p = ms.Parameter(ms.Tensor(_random(4, 6)), name="p")
    told: list[ms.Tensor] = []

    def mean(x):
        told.append(x)
        return x

    optimizer = CAME([p], betas=(0.9, 0.95, 0.99), eps=(1e-8, 1e-8), weight_decay=0.0, sharded=[True], shards_mean=mean)
    optimizer.step([ms.Tensor(_random(4, 6, seed=1))], 1e-2)
    assert len(told) == 3, "means over the parts were asked for"


def test_in_place_is_only_for_fp32_and_work_that_is_done(monkeypatch):
    ops.configure()
    half = [{"average": ms.Tensor([1.0], ms.float32), "value": ms.Tensor([2.0], ms.float16)}]
    rest = ms.Tensor(0.5, ms.float32)
    assert ops.averaged_in_place(half, rest) is None
    assert float(half[0]["average"]) == 1.0
    whole = [{"average": ms.Tensor([1.0], ms.float32), "value": ms.Tensor([2.0], ms.float32)}]
    monkeypatch.setattr(ops._runtime, "launch", "blocking")
    assert ops.averaged_in_place(whole, rest) is None
    monkeypatch.undo()
    if native.library().path is not None:
        assert [float(one) for (one,) in ops.averaged_in_place(whole, rest) or ()] == [1.5]


def test_averages_have_the_bits_of_the_operators():
    def averages(kernels):
        ops.configure(kernels=kernels)
        held = [ms.Parameter(ms.Tensor(_random(*s, seed=i)), name=f"p{i}") for i, s in enumerate(SHAPES)]
        ema = EMA(held, 0.9, warmup=True)
        for step in range(3):
            for i, q in enumerate(held):
                q.set_data(ms.Tensor(_random(*SHAPES[i], seed=10 * step + i)))
            ema.update(step)
        return list(ema.state().values())

    for ours, reference in zip(averages("auto"), averages("operators"), strict=True):
        assert np.array_equal(ours, reference)


@pytest.mark.parametrize("size", [1, 15, 16, 32_768, 32_769, 100_003])
@pytest.mark.parametrize("kernels", ["auto", "operators"])
def test_square_sum(size, kernels):
    ops.configure(kernels=kernels)
    x = _random(size)
    found = float(square_sum_of(ms.Tensor(x)))
    assert found == pytest.approx(float((x.astype(np.float64) ** 2).sum()), rel=2e-6)


def test_what_is_not_finite_reaches_the_sum():
    ops.configure()
    for value, expected in ((np.nan, np.nan), (np.inf, np.inf), (1e20, np.inf)):
        x = _random(70_000)
        x[40_000] = value
        assert np.array_equal(float(square_sum_of(ms.Tensor(x))), expected, equal_nan=True)


def test_one_thread_gives_the_same_bits():
    program = (
        f"import os, sys; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); sys.path.insert(0, {str(ROOT)!r})\n"
        "import mindspore as ms; from tests.core.test_kernels_optim import _random, came_digest, ops, square_sum_of\n"
        "ops.configure(); print('SUM', float(square_sum_of(ms.Tensor(_random(1_000_003)))).hex())\n"
        "print('CAME', came_digest())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    ops.configure()
    assert f"CAME {came_digest()}" in done.stdout
    assert f"SUM {float(square_sum_of(ms.Tensor(_random(1_000_003)))).hex()}" in done.stdout
