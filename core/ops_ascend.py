"""The Ascend side of ``core.ops``. Written from MindSpore's documentation; not measured: no card was at hand.

Matrix products, convolution and attention run in the activations' type (bf16 or fp16), normalisation statistics and
softmax in fp32 islands, which the fused kernels keep internally. Letters as in ``core.ops``.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import mint, nn
from mindspore import ops as _ops
from mindspore.mint.nn import functional
from mindspore.ops.auto_generate import GeluGradExt
from mindspore.ops.operations._grad_ops import FlashAttentionScoreGrad
from mindspore.ops.operations.nn_ops import FlashAttentionScore

from core import ops_update
from core.ops_modulation import modulated

_HALF = (ms.float16, ms.bfloat16)
adamw, square_sum = ops_update.adamw, ops_update.square_sum


def _as(tensor, dtype):
    return None if tensor is None else tensor.astype(dtype)


def linear(x, weight, bias):
    return functional.linear(x, weight.astype(x.dtype), _as(bias, x.dtype))


def layer_norm(x, weight, bias, eps):
    h = x.astype(ms.float32)
    weight, bias = _as(weight, ms.float32), _as(bias, ms.float32)
    return functional.layer_norm(h, (x.shape[-1],), weight, bias, eps).astype(x.dtype)


def adaptive_norm(x_BLD, weight, bias, scale_B1D, shift_B1D, eps):
    return layer_norm(x_BLD, weight, bias, eps) * (1.0 + scale_B1D) + shift_B1D


def rms_norm(x, weight, eps):
    h = _ops.rms_norm(x.astype(ms.float32), weight.astype(ms.float32), eps)[0]
    return h.astype(x.dtype)


def group_norm(x, num_groups, weight, bias, eps):
    h = x.astype(ms.float32)
    weight, bias = weight.astype(ms.float32), bias.astype(ms.float32)
    return functional.group_norm(h, num_groups, weight, bias, eps).astype(x.dtype)


def gelu_tanh(x):
    return functional.gelu(x, approximate="tanh")


gelu_tanh_again = gelu_tanh


def gelu_tanh_gradient(x, grad):
    return GeluGradExt()(grad, x, "tanh")


def silu(x):
    return functional.silu(x)


def conv(x, weight, bias, stride, padding):
    function = functional.conv2d if len(x.shape) == 4 else functional.conv3d
    return function(x, weight.astype(x.dtype), _as(bias, x.dtype), stride=stride, padding=padding)


def attention(q_BNLK, k_BNLK, v_BNLK, scale, bias):
    if bias is not None:
        scores = mint.matmul(q_BNLK * scale, k_BNLK.transpose(0, 1, 3, 2)).astype(ms.float32) + bias
        weights: Any = functional.softmax(scores, -1)
        return mint.matmul(weights.astype(v_BNLK.dtype), v_BNLK)
    # The fused kernel takes half precision only; fp32 activations pass through it as bf16.
    dtype = q_BNLK.dtype if q_BNLK.dtype in _HALF else ms.bfloat16
    q, k, v = q_BNLK.astype(dtype), k_BNLK.astype(dtype), v_BNLK.astype(dtype)
    out = _ops.flash_attention_score(q, k, v, q.shape[1], input_layout="BNSD", scalar_value=scale)
    return out.astype(q_BNLK.dtype)


def _flash(kind, heads, scale):
    return kind(heads, scale_value=scale, input_layout="BNSD")


def attention_keeping(q_BNLK, k_BNLK, v_BNLK, scale):
    dtype = q_BNLK.dtype if q_BNLK.dtype in _HALF else ms.bfloat16
    q, k, v = q_BNLK.astype(dtype), k_BNLK.astype(dtype), v_BNLK.astype(dtype)
    row_max, row_sum, softmax, out = _flash(FlashAttentionScore, q.shape[1], scale)(q, k, v)
    return out, row_max, row_sum, softmax


class _KnownAttention(nn.Cell):
    """The fused kernel's backward half, given what its forward half returned."""

    def construct(self, q, k, v, out, row_max, row_sum, softmax, scale):
        return out * 1.0

    def bprop(self, q, k, v, out, row_max, row_sum, softmax, scale, result, grad):
        backward = _flash(FlashAttentionScoreGrad, q.shape[1], scale)
        state = (row_max, row_sum, softmax, out)
        dq, dk, dv, _ = backward(q, k, v, grad, None, None, None, None, *state)
        zeros = [_ops.zeros_like(t) for t in (out, row_max, row_sum, softmax)]
        return dq, dk, dv, *zeros, 0.0


_known_attention: Any = _KnownAttention()


def attention_again(q_BNLK, k_BNLK, v_BNLK, kept, scale):
    dtype = kept[0].dtype
    q, k, v = q_BNLK.astype(dtype), k_BNLK.astype(dtype), v_BNLK.astype(dtype)
    return _known_attention(q, k, v, *kept, scale).astype(q_BNLK.dtype)


def rotate(x_BNSK, cos_SK, sin_SK):
    batch, heads, length, size = x_BNSK.shape
    x = x_BNSK.astype(ms.float32)
    even, odd = mint.chunk(x.reshape(batch, heads, length, size // 2, 2), 2, -1)
    turned = mint.cat((-odd, even), dim=-1).reshape(batch, heads, length, size)
    return (x * cos_SK + turned * sin_SK).astype(x_BNSK.dtype)


def repeat_nearest(x, time, space):
    batch, channels, frames, height, width = x.shape
    count = batch * channels * frames
    x = mint.broadcast_to(x.reshape(count, 1, height, 1, width, 1), (count, time, height, space, width, space))
    return x.reshape(batch, channels, frames * time, height * space, width * space)


def group_norm_silu(x, num_groups, weight, bias, eps, scale, shift):
    h = group_norm(x, num_groups, weight, bias, eps)
    return silu(h if scale is None else modulated(h, scale, shift, repeat_nearest))
