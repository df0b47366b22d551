"""The compiled attention: values and gradients against float64, and the same bits always."""

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

SCALE = np.float32(0.3)

# q, k and v: sizes around the register tiles (8 queries, 3 x 16 keys), the blocks of 64 queries and the padded heads.
CASES: dict[str, tuple] = {
    "one of each": ((1, 1, 1, 1), (1, 1, 1, 1)),
    "small": ((2, 3, 5, 8), (2, 3, 5, 8)),
    "odd heads": ((1, 2, 49, 20), (1, 2, 49, 20)),
    "blocks": ((1, 2, 131, 64), (1, 2, 131, 64)),
    "wide heads": ((1, 1, 33, 128), (1, 1, 33, 128)),
    "other keys": ((2, 1, 7, 16), (2, 1, 97, 16)),
    "few keys": ((1, 2, 70, 32), (1, 2, 3, 32)),
    "many keys": ((1, 1, 20, 16), (1, 1, 9000, 16)),  # more than one block of scores at the smallest block of queries
}


def _random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def _arrays(case):
    q, k = CASES[case]
    return _random(*q), _random(*k, seed=1), _random(*k, seed=2), _random(*q, seed=3)


def _reference(q, k, v, g, bias: Any = 0.0) -> Any:
    """Output and gradients in float64; that of a bias last."""
    q, k, v, g = (a.astype(np.float64) for a in (q, k, v, g))
    scale = float(SCALE)
    scores = scale * q @ k.swapaxes(2, 3) + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    slopes = g @ v.swapaxes(2, 3)
    slopes = weights * (slopes - (weights * slopes).sum(-1, keepdims=True))
    gradients = scale * slopes @ k, scale * slopes.swapaxes(2, 3) @ q, weights.swapaxes(2, 3) @ g
    if isinstance(bias, float):
        return weights @ v, gradients
    return weights @ v, (*gradients, slopes.sum(0, keepdims=True) if len(bias) == 1 else slopes)


def _attend(q, k, v):
    return ops.attention(q, k, v, scale=float(SCALE))


@pytest.mark.parametrize("mode", ["pynative", "graph"])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, mode):
    ops.configure()
    q, k, v, g = _arrays(case)
    run: Any = ms.jit(_attend) if mode == "graph" else _attend
    tensors = [ms.Tensor(a) for a in (q, k, v)]
    expected, gradients = _reference(q, k, v, g)
    assert relative_error(run(*tensors).asnumpy(), expected) <= OPERATOR
    found = GradOperation(get_all=True, sens_param=True)(run)(*tensors, ms.Tensor(g))
    for name, gradient, wanted in zip("qkv", found, gradients, strict=True):
        if np.abs(wanted).max() > 1e-12:  # one key: its weight is 1 whatever the query
            assert relative_error(gradient.asnumpy(), wanted) <= OPERATOR_GRADIENT, name
        else:
            assert np.abs(gradient.asnumpy()).max() <= 1e-6, name


@pytest.mark.parametrize("mode", ["pynative", "graph"])
@pytest.mark.parametrize("own", [False, True], ids=["one bias", "a bias each"])
def test_a_bias_and_its_gradient(mode, own):
    ops.configure()
    q, k, v, g = (_random(3, 2, n, 24, seed=s) for s, n in enumerate((70, 53, 53, 70)))
    bias = _random(3 if own else 1, 2, 70, 53, seed=4)
    bias[..., 50:] = -1e9  # masked

    def attend(q, k, v, bias):
        return ops.attention(q, k, v, scale=float(SCALE), bias=bias)

    run: Any = ms.jit(attend) if mode == "graph" else attend
    tensors = [ms.Tensor(a) for a in (q, k, v, bias)]
    expected, gradients = _reference(q, k, v, g, bias)
    assert relative_error(run(*tensors).asnumpy(), expected) <= OPERATOR
    found = GradOperation(get_all=True, sens_param=True)(run)(*tensors, ms.Tensor(g))
    for gradient, wanted in zip(found, gradients, strict=True):
        assert relative_error(gradient.asnumpy(), wanted) <= OPERATOR_GRADIENT


@pytest.mark.parametrize("mode", ["pynative", "graph"])
def test_two_calls_of_one_shape_in_one_function_keep_their_own_gradients(mode):
    """The bug that forbids Cells with a ``bprop`` (docs/design/002) does not reach this one."""
    ops.configure()
    q, k, v, g = _arrays("blocks")

    def twice(q, k, v):
        return _attend(_attend(q, k, v), k, v)

    run: Any = ms.jit(twice) if mode == "graph" else twice
    tensors = [ms.Tensor(a) for a in (q, k, v)]
    middle, _ = _reference(q, k, v, g)
    _, (dmiddle, dk, dv) = _reference(middle, k, v, g)
    _, (dq, dk_before, dv_before) = _reference(q, k, v, dmiddle)
    found = GradOperation(get_all=True, sens_param=True)(run)(*tensors, ms.Tensor(g))
    for gradient, wanted in zip(found, (dq, dk + dk_before, dv + dv_before), strict=True):
        assert relative_error(gradient.asnumpy(), wanted) <= OPERATOR_GRADIENT


def test_known_attention_is_handed_on_and_has_the_same_gradient():
    ops.configure()
    q, k, v, g = (ms.Tensor(a) for a in _arrays("odd heads"))
    (kept,) = ops.attention_keeping(q, k, v, scale=float(SCALE))

    def again(q, k, v):
        return ops.attention_again(q, k, v, (kept,), scale=float(SCALE))

    assert np.array_equal(again(q, k, v).asnumpy(), kept.asnumpy())
    both = [GradOperation(get_all=True, sens_param=True)(run)(q, k, v, g) for run in (_attend, again)]
    for one, other in zip(*both, strict=True):
        assert np.array_equal(one.asnumpy(), other.asnumpy())


def test_queries_without_keys_and_no_queries():
    if native.library().path is None:
        assert ops._device is ops_cpu  # no library: nothing to call
        return
    for queries, keys in ((0, 3), (3, 0), (0, 0)):
        q, k, g = (np.ones((1, 2, n, 4), np.float32) for n in (queries, keys, queries))
        y, dq, dk, dv = np.full_like(q, 7), np.full_like(q, 7), np.full_like(k, 7), np.full_like(k, 7)
        scale = np.array([SCALE], np.float32)
        assert direct("attention", [q, k, k, scale], [y]) == 0
        assert direct("attention_gradient", [q, k, k, scale, g], [dq, dk, dv]) == 0
        assert all(not a.any() for a in (y, dq, dk, dv))


@pytest.mark.parametrize("place", ["q", "k", "v"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_shows(place, value):
    ops.configure()
    arrays = dict(zip("qkv", _arrays("odd heads"), strict=False))
    arrays[place][0, 1, 7, 3] = value
    out = _attend(*(ms.Tensor(a) for a in arrays.values())).asnumpy()
    assert np.isfinite(out[0, 0]).all()
    rows = ~np.isfinite(out[0, 1]).all(-1)
    assert rows[7] if place == "q" else rows.any() if place == "k" and value == np.inf else rows.all()


def test_large_scores_do_not_overflow():
    ops.configure()
    q, k, v, _ = _arrays("small")
    out = _attend(ms.Tensor(100 * q), ms.Tensor(100 * k), ms.Tensor(v)).asnumpy()
    expected, _ = _reference(100 * q, 100 * k, v, q)
    assert relative_error(out, expected) <= 1e-4  # fp32 scores of thousands: their last digits are 1e-4 apart


def _digests(library=None):
    return {case: _digest(*_arrays(case), library=library) for case in CASES}


def _digest(q, k, v, g, library=None):
    y, dq, dk, dv = (np.empty_like(a) for a in (q, q, k, v))
    scale = np.array([SCALE], np.float32)
    assert direct("attention", [q, k, v, scale], [y], library=library) == 0
    assert direct("attention_gradient", [q, k, v, scale, g], [dq, dk, dv], library=library) == 0
    return hashlib.sha256(b"".join(a.tobytes() for a in (y, dq, dk, dv))).hexdigest()


def test_sixty_calls_and_any_number_of_threads_give_the_same_bits():
    if native.library().path is None:
        assert ops._device is ops_cpu  # no library: nothing to call
        return
    first = _digests()
    assert {_digest(*_arrays("blocks")) for _ in range(60)} == {first["blocks"]}
    assert_same_with_any_threads("test_kernels_attention", first)


def test_narrower_vectors_give_the_same_bits(tmp_path):
    """A library for AVX2 on a machine that has more."""
    narrow = narrow_library(tmp_path)
    if narrow is None:
        assert ops.chosen_kernels()  # nothing to compare on this machine
        return
    assert _digests(narrow) == _digests()


def test_a_block_of_queries_does_not_change_the_bits():
    """Queries of one call are those of two: whoever cuts a sequence gets the same rows."""
    if native.library().path is None:
        assert ops._device is ops_cpu
        return
    q, k, v, _ = _arrays("blocks")
    scale, y = np.array([SCALE], np.float32), np.empty_like(q)
    assert direct("attention", [q, k, v, scale], [y]) == 0
    for part in (slice(0, 50), slice(50, 131)):
        piece = np.ascontiguousarray(q[:, :, part])
        out = np.empty_like(piece)
        assert direct("attention", [piece, k, v, scale], [out]) == 0
        assert np.array_equal(out, y[:, :, part])
