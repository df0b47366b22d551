"""The global norm and what it does to gradients."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
import pytest

from core import ops
from core.optim.clip import clip_factor, global_norm, square_sum


@pytest.fixture(params=["pynative", "graph"], autouse=True)
def _mode(request):
    ops.configure(mode=request.param)


def test_global_norm_and_clipping_by_hand():
    norm = global_norm({"a": ms.Tensor([3.0, 0.0]), "b": ms.Tensor([[4.0]])})
    assert float(norm) == 5.0
    assert float(clip_factor(norm, 1.0)) == pytest.approx(1 / 5.000001)
    assert float(clip_factor(norm, 10.0)) == 1.0
    assert float(clip_factor(norm, None)) == 1.0


def test_the_norm_is_of_all_gradients_together():
    rng = np.random.default_rng(0)
    drawn = {f"g{i}": rng.standard_normal((7, i + 1)).astype(np.float32) for i in range(9)}
    expected = np.linalg.norm(np.concatenate([g.ravel() for g in drawn.values()]).astype(np.float64))
    assert float(global_norm({n: ms.Tensor(g) for n, g in drawn.items()})) == pytest.approx(expected, rel=1e-6)
    alone = [float(global_norm({n: ms.Tensor(g)})) for n, g in drawn.items()]
    assert max(alone) < 0.9 * expected


def test_half_precision_is_summed_in_fp32():
    """300 squared is beyond fp16, and 4096 ones added one by one stop at 2048 there."""
    assert float(global_norm({"a": ms.Tensor(np.full(4, 300, np.float16))})) == 600.0
    assert float(square_sum({"a": ms.Tensor(np.ones(4096, np.float16))})) == 4096.0


def test_no_gradient_at_all():
    zero = global_norm({"a": ms.Tensor(np.zeros((3, 2), np.float32))})
    assert float(zero) == 0.0
    assert float(clip_factor(zero, 1.0)) == 1.0
    assert float(global_norm({})) == 0.0


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 1e30])
def test_one_element_that_is_not_finite_or_overflows_is_seen(bad):
    norm = global_norm({"a": ms.Tensor(np.ones((3, 2), np.float32)), "b": ms.Tensor(np.array([1, bad], np.float32))})
    assert not math.isfinite(float(norm))
