"""The CPU side of ``core.ops``: fp32, arranged around what MindSpore's CPU kernels are good at.

Measured (docs/design/002): a broadcast product costs 3x (graph) to 9x (PyNative) a plain one, so the small operand
is widened first, by a product with ones: its gradient is a matrix product too, where that of ``tile`` is a slow sum.
Letters as in ``core.ops``; R rows, M elements of a row.

Attention here is for machines without a C++ compiler; ``core.ops_cpu_compiled`` has a kernel.
A custom ``bprop`` would be faster and leaner still, and is wrong: when one Cell is called twice with equal shapes in
a compiled function, MindSpore 2.10 hands the gradient the other call's output (tests/core/test_ops.py guards it).
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import mint, nn
from mindspore import ops as _ops

from core import ops_cpu_conv, ops_update
from core.ops_modulation import modulated

# Largest temporary of an attention chunk or of a convolution's unfolded input. Larger was not faster.
CHUNK_BYTES = 64 * 2**20
APART_BYTES = 2**20  # of a tensor that is worth pages of its own
_M_MMAP_THRESHOLD, _MMAP_BYTES = -3, 2**20  # malloc.h; what is worth a mapping of its own

_matmul = _ops.MatMul()
_matmul_nt = _ops.MatMul(transpose_b=True)
_batch = _ops.BatchMatMul()
_batch_nt = _ops.BatchMatMul(transpose_b=True)
_batch_tn = _ops.BatchMatMul(transpose_a=True)
# Primitives: ``ops.tile``, a function, crashes the graph compiler inside a Cell with a ``bprop``.
_tile = _ops.Tile()
_row_mean = _ops.ReduceMean(keep_dims=True)
_row_sum = _ops.ReduceSum(keep_dims=True)


def _deviation(x_RM):
    return x_RM - _matmul(_row_mean(x_RM, -1), _ones(1, x_RM.shape[1]))


def _inverse_rms(x_RM, eps):
    size = x_RM.shape[1]
    return mint.rsqrt(_matmul(x_RM * x_RM, _ones(size, 1)) * (1.0 / size) + eps)


def linear(x, weight, bias):
    y = _matmul_nt(x.reshape(-1, x.shape[-1]), weight)
    if bias is not None:
        y = _ops.bias_add(y, bias)
    return y.reshape((*x.shape[:-1], weight.shape[0]))


conv = ops_cpu_conv.native if ops_cpu_conv.native_is_fast() else ops_cpu_conv.unfolded


@_ops.constexpr
def _ones(rows, columns):
    return ms.Tensor(np.ones((rows, columns), np.float32))


@_ops.constexpr
def _ones_column(batch, length):
    return ms.Tensor(np.ones((batch, length, 1), np.float32))


def layer_norm(x, weight, bias, eps):
    h = _deviation(x.astype(ms.float32).reshape(-1, x.shape[-1]))
    weight = _ones(1, x.shape[-1]) if weight is None else weight.astype(ms.float32).reshape(1, -1)
    h = h * _matmul(_inverse_rms(h, eps), weight)
    if bias is not None:
        h = _ops.bias_add(h, bias.astype(ms.float32))
    return h.reshape(x.shape).astype(x.dtype)


def folded(weight, bias, scale_B1D, shift_B1D):
    """``norm * weight + bias``, then ``* (1 + scale) + shift``, as one weight and bias a sample: ``[B, D]`` each."""
    batch, size = scale_B1D.shape[0], scale_B1D.shape[2]
    scale = scale_B1D.astype(ms.float32).reshape(batch, size) + 1.0
    shift = shift_B1D.astype(ms.float32).reshape(batch, size)
    if bias is not None:
        shift = shift + bias.astype(ms.float32) * scale
    if weight is not None:
        scale = weight.astype(ms.float32) * scale
    return scale, shift


def adaptive_norm(x_BLD, weight, bias, scale_B1D, shift_B1D, eps):
    batch, length, size = x_BLD.shape
    weight_BD, bias_BD = folded(weight, bias, scale_B1D, shift_B1D)
    h = _deviation(x_BLD.astype(ms.float32).reshape(-1, size))
    inverse = _inverse_rms(h, eps).reshape(batch, length, 1)
    h = h.reshape(x_BLD.shape) * _batch(inverse, weight_BD.reshape(batch, 1, size))
    h = h + _batch(_ones_column(batch, length), bias_BD.reshape(batch, 1, size))
    return h.astype(x_BLD.dtype)


def rms_norm(x, weight, eps):
    h = x.astype(ms.float32).reshape(-1, x.shape[-1])
    h = h * _matmul(_inverse_rms(h, eps), weight.astype(ms.float32).reshape(1, -1))
    return h.reshape(x.shape).astype(x.dtype)


def group_norm(x, num_groups, weight, bias, eps):
    batch, channels = x.shape[0], x.shape[1]
    h = _deviation(x.astype(ms.float32).reshape(batch * num_groups, -1))
    scale = _matmul(_inverse_rms(h, eps), _ones(1, channels // num_groups)).reshape(batch, channels) * weight
    h = h.reshape(batch * channels, -1)
    ones = _ones(1, h.shape[1])
    shift = _tile(bias.reshape(1, -1), (batch, 1)).reshape(-1, 1)
    h = h * _matmul(scale.reshape(-1, 1), ones) + _matmul(shift, ones)
    return h.reshape(x.shape).astype(x.dtype)


def gelu_tanh(x):
    """``x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3))``, which is the tanh form exactly."""
    return x * mint.sigmoid(x * (x * x * 0.07135481282553303 + 1.5957691216057308))


gelu_tanh_again = gelu_tanh


def gelu_tanh_gradient(x, grad):
    h = x.astype(ms.float32)
    square = h * h
    share = mint.sigmoid(h * (square * 0.07135481282553303 + 1.5957691216057308))
    slope = share * (h * (1.0 - share) * (square * 0.21406443847659909 + 1.5957691216057308) + 1.0)
    return (slope * grad.astype(ms.float32)).astype(x.dtype)


silu = _ops.silu
adamw, square_sum = ops_update.adamw, ops_update.square_sum


def _attention_gradient(q, k, v, scale, chunk, out, grad):
    dqs = []
    dk = None
    dv = None
    for start in range(0, q.shape[1], chunk):
        q_c = q[:, start : start + chunk] * scale
        g_c = grad[:, start : start + chunk]
        inner = _row_sum(g_c * out[:, start : start + chunk], -1)
        weights = mint.softmax(_batch_nt(q_c, k), -1)
        dscores = weights * (_batch_nt(g_c, v) - _tile(inner, (1, 1, k.shape[1])))
        dqs.append(_batch(dscores, k) * scale)
        dk_c, dv_c = _batch_tn(dscores, q_c), _batch_tn(weights, g_c)
        dk = dk_c if dk is None else dk + dk_c
        dv = dv_c if dv is None else dv + dv_c
    return dqs[0] if len(dqs) == 1 else _ops.concat(dqs, 1), dk, dv


class _Attention(nn.Cell):
    """``q [G, L, K]``, ``k``/``v [G, S, K]``, G = B * N; queries in chunks, so that no L x S matrix is ever held.

    Because of the bug above a compiled function may call it once per shape; a transformer block does.
    """

    def construct(self, q, k, v, scale, chunk):
        outs = []
        for start in range(0, q.shape[1], chunk):
            weights = mint.softmax(_batch_nt(q[:, start : start + chunk] * scale, k), -1)
            outs.append(_batch(weights, v))
        return outs[0] if len(outs) == 1 else _ops.concat(outs, 1)

    def bprop(self, q, k, v, scale, chunk, out, grad):
        dq, dk, dv = _attention_gradient(q, k, v, scale, chunk, out, grad)
        return dq, dk, dv, 0.0, 0


class _KnownAttention(nn.Cell):
    """``_Attention`` whose output ``known [G, L, K]`` has been computed before."""

    def construct(self, q, k, v, known, scale, chunk):
        return known * 1.0

    def bprop(self, q, k, v, known, scale, chunk, out, grad):
        dq, dk, dv = _attention_gradient(q, k, v, scale, chunk, known, grad)
        return dq, dk, dv, _ops.zeros_like(known), 0.0, 0


_attention: Any = _Attention()
_known_attention: Any = _KnownAttention()


def _chunk(batch, heads, others):
    return max(16, CHUNK_BYTES // (4 * batch * heads * others))


def attention(q_BNLK, k_BNLK, v_BNLK, scale, bias):
    batch, heads, length, size = q_BNLK.shape
    others = k_BNLK.shape[2]
    q = q_BNLK.reshape(batch * heads, length, size)
    k = k_BNLK.reshape(batch * heads, others, size)
    v = v_BNLK.reshape(batch * heads, others, size)
    if bias is not None:
        scores = _batch_nt(q * scale, k).reshape(batch, heads, length, others) + bias
        weights: Any = mint.softmax(scores, -1)
        weights = weights.astype(v.dtype).reshape(batch * heads, length, others)
        return _batch(weights, v).reshape(batch, heads, length, size)
    chunk = _chunk(batch, heads, others)
    out: Any = (
        _batch(mint.softmax(_batch_nt(q * scale, k), -1), v) if chunk >= length else _attention(q, k, v, scale, chunk)
    )
    return out.reshape(batch, heads, length, size)


def attention_keeping(q_BNLK, k_BNLK, v_BNLK, scale):
    return (attention(q_BNLK, k_BNLK, v_BNLK, scale, None),)


def attention_again(q_BNLK, k_BNLK, v_BNLK, kept, scale):
    batch, heads, length, size = q_BNLK.shape
    others = k_BNLK.shape[2]
    q = q_BNLK.reshape(batch * heads, length, size)
    k = k_BNLK.reshape(batch * heads, others, size)
    v = v_BNLK.reshape(batch * heads, others, size)
    known = kept[0].reshape(batch * heads, length, size)
    return _known_attention(q, k, v, known, scale, _chunk(batch, heads, others)).reshape(q_BNLK.shape)


@_ops.constexpr
def _pair_rotation(size):
    """Matrix ``[K, K]`` of (x0, x1) -> (-x1, x0): a product with it is exact, and faster than strided slices."""
    matrix = np.zeros((size, size), np.float32)
    even = np.arange(0, size, 2)
    matrix[even + 1, even], matrix[even, even + 1] = -1.0, 1.0
    return ms.Tensor(matrix)


def rotate(x_BNSK, cos_SK, sin_SK):
    batch, heads, length, size = x_BNSK.shape
    x = x_BNSK.astype(ms.float32).reshape(-1, size)
    turned = _matmul(x, _pair_rotation(size)).reshape(batch * heads, length * size)
    cos = _tile(cos_SK.reshape(1, -1), (batch * heads, 1))
    sin = _tile(sin_SK.reshape(1, -1), (batch * heads, 1))
    out = x.reshape(batch * heads, length * size) * cos + turned * sin
    return out.reshape(x_BNSK.shape).astype(x_BNSK.dtype)


def repeat_nearest(x, time, space):
    batch, channels, frames, height, width = x.shape
    if space > 1:
        x = _tile(x.reshape(-1, 1), (1, space))
        x = _tile(x.reshape(-1, 1, width * space), (1, space, 1))
    if time > 1:
        x = _tile(x.reshape(-1, 1, height * width * space * space), (1, time, 1))
    return x.reshape(batch, channels, frames * time, height * space, width * space)


def group_norm_silu(x, num_groups, weight, bias, eps, scale, shift):
    h = group_norm(x, num_groups, weight, bias, eps)
    return silu(h if scale is None else modulated(h, scale, shift, repeat_nearest))


def apart(x):
    if x.nbytes < APART_BYTES:
        return x
    array = x.asnumpy()
    pages = np.frombuffer(mmap.mmap(-1, array.nbytes), array.dtype).reshape(array.shape)
    np.copyto(pages, array)
    return ms.Tensor.from_numpy(pages)


def return_large_memory():
    """glibc raises its own limit to the largest piece that was freed, and keeps in the heap what is below it."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
