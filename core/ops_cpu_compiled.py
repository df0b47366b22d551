"""The CPU side of ``core.ops`` with our own kernels (``kernels*.cpp``) where they beat MindSpore's operators.

Everything else is ``core.ops_cpu``, and so is every call whose type is not fp32. The kernels are ``Custom`` primitives;
their ``bprop`` belongs to the primitive and uses inputs only, so the bug that forbids Cells with a ``bprop``
(docs/design/002) does not reach it; the same tests guard it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops as _ops

from core import ops_cpu, ops_modulation
from core.ops_cpu import (
    adamw,
    group_norm,
    linear,
    repeat_nearest,
    rms_norm,
    silu,
    square_sum,
)

__all__ = [
    "adamw", "adaptive_norm", "attention", "attention_again", "attention_keeping", "causal_conv", "conv",
    "conv_added", "downsampled_conv", "gelu_tanh", "gelu_tanh_again", "gelu_tanh_gradient", "group_norm",
    "group_norm_silu", "layer_norm", "linear", "norm_conv", "repeat_nearest", "rms_norm", "rotate", "silu",
    "square_sum", "upsampled_conv", "use",
]  # fmt: skip

# Primitives of the library given to ``use``: the graph compiler resolves module globals.
_library: Path | None = None
_attention: Any = None
_attention_biased: Any = None
_attention_gradient: Any = None
_attention_biased_gradient: Any = None
_known_attention: Any = None
_causal_convolution: Any = None
_convolution: Any = None
_convolution_added: Any = None
_convolution_downsampled: Any = None
_convolution_upsampled: Any = None
_norm_convolution: Any = None
_image_gradient: Any = None
_weight_gradient: Any = None
_norm_silu: Any = None
_norm_silu_gradient: Any = None
_gelu: Any = None
_gelu_gradient: Any = None
_norm: Any = None
_norm_gradient: Any = None
_rotate: Any = None
_rotate_gradient: Any = None


def use(library: Path) -> None:
    """Makes the primitives of a built library, unless they are; called by ``ops.configure``."""
    global _library, _gelu, _gelu_gradient, _norm, _norm_gradient, _rotate, _rotate_gradient  # noqa: PLW0603  see above
    global _convolution, _image_gradient, _weight_gradient, _norm_silu, _norm_silu_gradient  # noqa: PLW0603  see above
    global _convolution_added, _convolution_downsampled, _convolution_upsampled  # noqa: PLW0603  see above
    global _causal_convolution, _norm_convolution  # noqa: PLW0603  see above
    global _attention, _attention_biased, _attention_gradient, _attention_biased_gradient  # noqa: PLW0603  see above
    global _known_attention  # noqa: PLW0603  see above
    if library == _library:
        return
    _library = library

    def first(x, *_):
        return x

    def first_twice(x, *_):
        return x, x

    def first_and_affine(x, weight, *_):
        return x, weight, weight

    def first_three(*values):
        return values[:3]

    def first_three_and_fifth(*values):
        return *values[:3], values[4]

    def first_five(*values):
        return values[:5]

    def last(*values):
        return values[-1]

    def last_and_bias(*types):
        return types[-1], types[-1]

    def last_and_outputs(*shapes):
        return shapes[-1], (shapes[-1][0],)

    def custom(name, infer, bprop=None, shape=None):
        shape = infer if shape is None else shape
        return _ops.Custom(f"{library}:{name}", out_shape=shape, out_dtype=infer, func_type="aot", bprop=bprop)

    _attention_gradient = custom("attention_gradient", first_three)
    _attention_biased_gradient = custom("attention_gradient", first_three_and_fifth)
    _attention = custom("attention", first, _attention_bprop)
    _attention_biased = custom("attention", first, _attention_biased_bprop)
    _known_attention = custom("attention_known", first, _known_attention_bprop)
    _gelu_gradient = custom("gelu_gradient", first)
    _gelu = custom("gelu", first, _gelu_bprop)
    _norm_gradient = custom("layer_norm_gradient", first_and_affine)
    _norm = custom("layer_norm", first, _norm_bprop)
    _rotate_gradient = custom("rotate_gradient", first)
    _rotate = custom("rotate", first, _rotate_bprop)
    _norm_silu_gradient = custom("norm_silu_gradient", first_five)
    _norm_silu = custom("norm_silu", first, _norm_silu_bprop)
    _image_gradient = custom("convolution_image_gradient", last)
    _weight_gradient = custom("convolution_weight_gradient", last_and_bias, shape=last_and_outputs)
    _convolution = custom("convolution", first, _convolution_bprop, shape=_convolved)
    _convolution_added = custom("convolution_added", first, _added_bprop, shape=_convolved)
    _convolution_downsampled = custom(
        "convolution_downsampled", first, _downsampled_bprop, shape=_convolved_downsampled
    )
    _convolution_upsampled = custom("convolution_upsampled", first, _upsampled_bprop, shape=_convolved_upsampled)
    _causal_convolution = custom("causal_convolution", first_twice, _causal_convolution_bprop, shape=_causal_convolved)
    _norm_convolution = custom("norm_convolution", first_twice, _norm_convolution_bprop, shape=_norm_convolved)


def _attention_bprop(q, k, v, scale, out, grad):
    return (*_attention_gradient(q, k, v, scale, grad), _ops.zeros_like(scale))


def _attention_biased_bprop(q, k, v, scale, bias, out, grad):
    dq, dk, dv, dbias = _attention_biased_gradient(q, k, v, scale, bias, grad)
    return dq, dk, dv, _ops.zeros_like(scale), dbias


def _known_attention_bprop(q, k, v, scale, known, out, grad):
    return (*_attention_gradient(q, k, v, scale, grad), _ops.zeros_like(scale), _ops.zeros_like(known))


def attention(q_BNLK, k_BNLK, v_BNLK, scale, bias):
    if q_BNLK.dtype != ms.float32:
        return ops_cpu.attention(q_BNLK, k_BNLK, v_BNLK, scale, bias)
    if bias is None:
        return _attention(q_BNLK, k_BNLK, v_BNLK, _constant(scale, 1))
    return _attention_biased(q_BNLK, k_BNLK, v_BNLK, _constant(scale, 1), bias)


def attention_keeping(q_BNLK, k_BNLK, v_BNLK, scale):
    return (attention(q_BNLK, k_BNLK, v_BNLK, scale, None),)


def attention_again(q_BNLK, k_BNLK, v_BNLK, kept, scale):
    if q_BNLK.dtype != ms.float32:
        return ops_cpu.attention_again(q_BNLK, k_BNLK, v_BNLK, kept, scale)
    return _known_attention(q_BNLK, k_BNLK, v_BNLK, _constant(scale, 1), kept[0])


def _gelu_bprop(x, out, grad):
    return (_gelu_gradient(x, grad),)


def _norm_bprop(x, weight, bias, eps, out, grad):
    dx, dweight, dbias = _norm_gradient(x, weight, eps, grad)
    return dx, dweight, dbias, _ops.zeros_like(eps)


def _rotate_bprop(x, cos, sin, out, grad):
    return _rotate_gradient(grad, cos, sin), _ops.zeros_like(cos), _ops.zeros_like(sin)


def _norm_silu_bprop(x, weight, bias, scale, shift, settings, out, grad):
    dx, dweight, dbias, dscale, dshift = _norm_silu_gradient(x, weight, bias, scale, shift, settings, grad)
    return dx, dweight, dbias, dscale, dshift, _ops.zeros_like(settings)


@_ops.constexpr
def _settings(groups, eps):
    return ms.Tensor(np.array([groups, eps], np.float32))


def group_norm_silu(x, num_groups, weight, bias, eps, scale, shift):
    if x.dtype != ms.float32 or weight.dtype != ms.float32:
        return ops_cpu.group_norm_silu(x, num_groups, weight, bias, eps, scale, shift)
    cells = (x.shape[0], x.shape[1], 1, 1, 1)
    scale = _constant(1.0, *cells) if scale is None else scale
    shift = _constant(0.0, *cells) if shift is None else shift
    return _norm_silu(x, weight, bias, scale, shift, _settings(num_groups, eps))


def _convolved(x, weight, bias, geometry, *_):
    """The output's shape; the shape of ``geometry`` is stride and padding + 1 on three axes (``kernels_conv.cpp``)."""
    space = len(x) - 2
    sizes = zip(x[2:], weight[2:], geometry[3 - space : 3], geometry[6 - space :], strict=True)
    return [x[0], weight[0], *((n + 2 * (pad - 1) - kernel) // stride + 1 for n, kernel, stride, pad in sizes)]


def _convolution_bprop(x, weight, bias, geometry, out, grad):
    dweight, dbias = _weight_gradient(x, grad, geometry, weight)
    return _image_gradient(grad, weight, geometry, x), dweight, dbias, _ops.zeros_like(geometry)


@_ops.constexpr
def _geometry(space, stride, padding):
    """A tensor of the shape that ``_convolved`` reads; a plane has one frame, stride 1 and no padding in time."""
    stride = (stride,) * space if isinstance(stride, int) else stride
    padding = (padding,) * space if isinstance(padding, int) else padding
    shape = (*(1,) * (3 - space), *stride, *(1,) * (3 - space), *(p + 1 for p in padding))
    return ms.Tensor(np.zeros(shape, np.float32))


def _added_bprop(x, weight, bias, geometry, added, out, grad):
    return (*_convolution_bprop(x, weight, bias, geometry, out, grad), grad)


def _grown(frames, time):
    return frames * time if frames % 2 == 0 else 1 + (frames - 1) * time


def _convolved_upsampled(x, weight, bias, geometry, time):
    return _convolved([x[0], x[1], _grown(x[2], time[0]), 2 * x[3], 2 * x[4]], weight, bias, geometry)


def _upsampled_bprop(x, weight, bias, geometry, time, out, grad):
    large = ops_modulation.upsample(x, time.shape[0], 2, repeat_nearest)
    dlarge, dweight, dbias, dgeometry = _convolution_bprop(large, weight, bias, geometry, out, grad)
    batch, channels, frames, height, width = x.shape
    dx = dlarge.reshape(batch, channels, dlarge.shape[2], height, 2, width, 2).sum((4, 6))
    if frames % 2 == 0:
        dx = dx.reshape(batch, channels, frames, time.shape[0], height, width).sum(3)
    elif frames > 1:
        later = dx[:, :, 1:].reshape(batch, channels, frames - 1, time.shape[0], height, width).sum(3)
        dx = _ops.concat((dx[:, :, :1], later), 2)
    return dx, dweight, dbias, dgeometry, _ops.zeros_like(time)


def _convolved_downsampled(x, weight, bias, geometry, time):
    frames = x[2] if time[0] == 1 else (x[2] + 1) // 2
    return _convolved([x[0], x[1], frames, x[3] + 1, x[4] + 1], weight, bias, geometry)


def _downsampled_bprop(x, weight, bias, geometry, time, out, grad):
    """Made of the gradients of the parts; what the convolution read is computed again."""
    _, _, frames, height, width = x.shape
    small = ops_modulation.pad_right_bottom(ops_modulation.downsample(x, time.shape[0]))
    dsmall, dweight, dbias, dgeometry = _convolution_bprop(small, weight, bias, geometry, out, grad)
    dx = dsmall[:, :, :, :height, :width]
    if time.shape[0] == 2 and frames > 1:
        later = repeat_nearest(dx[:, :, frames % 2 :], 2, 1) * 0.5
        dx = later if frames % 2 == 0 else _ops.concat((dx[:, :, :1], later), 2)
    return dx, dweight, dbias, dgeometry, _ops.zeros_like(time)


def _causal_convolved(x, kernel, kernel_bias, geometry, cache):
    memory = kernel[2] - 1
    joined = [x[0], x[1], x[2] + memory, x[3], x[4]]
    return _convolved(joined, kernel, kernel_bias, geometry), [x[0], x[1], memory, x[3], x[4]]


def _causal_convolution_bprop(x, kernel, kernel_bias, geometry, cache, out, grad):
    """Made of the gradient of the convolution; what it read is joined again."""
    memory, frames = kernel.shape[2] - 1, x.shape[2]
    before = (x[:, :, :1],) * memory if len(cache.shape) == 1 else (cache,)
    joined = _ops.concat((*before, x), 2)
    djoined, dkernel, dkernel_bias, dgeometry = _convolution_bprop(joined, kernel, kernel_bias, geometry, out, grad[0])
    djoined = _ops.concat((djoined[:, :, :frames], djoined[:, :, frames:] + grad[1]), 2)
    dx = djoined[:, :, memory:]
    if len(cache.shape) == 1:
        dcache = _ops.zeros_like(cache)
        dfirst = djoined[:, :, : memory + 1].sum(2, keepdims=True)
        dx = dfirst if frames == 1 else _ops.concat((dfirst, dx[:, :, 1:]), 2)
    else:
        dcache = djoined[:, :, :memory]
    return dx, dkernel, dkernel_bias, dgeometry, dcache


def _norm_convolved(x, weight, bias, scale, shift, settings, cache, kernel, kernel_bias, geometry, added):
    return _causal_convolved(x, kernel, kernel_bias, geometry, cache)


def _norm_convolution_bprop(
    x, weight, bias, scale, shift, settings, cache, kernel, kernel_bias, geometry, added, out, grad
):  # fmt: skip
    """Made of the gradients of the parts; what the convolution read is computed again."""
    made = _norm_silu(x, weight, bias, scale, shift, settings)
    dmade, *of_kernel, dcache = _causal_convolution_bprop(made, kernel, kernel_bias, geometry, cache, out, grad)
    dadded = _ops.zeros_like(added) if len(added.shape) == 1 else grad[0]
    dnorm = _norm_silu_gradient(x, weight, bias, scale, shift, settings, dmade)
    return (*dnorm, _ops.zeros_like(settings), dcache, *of_kernel, dadded)


def conv_added(x, weight, bias, stride, padding, added):
    return _convolution_added(x, weight, bias, _geometry(len(x.shape) - 2, stride, padding), added)


def downsampled_conv(x, time, weight, bias):
    return _convolution_downsampled(x, weight, bias, _geometry(3, (1, 2, 2), 0), _constant(0.0, time))


def upsampled_conv(x, time, weight, bias):
    padding = (0, weight.shape[3] // 2, weight.shape[4] // 2)
    return _convolution_upsampled(x, weight, bias, _geometry(3, 1, padding), _constant(0.0, time))


def causal_conv(x, cache, weight, bias):
    geometry = _geometry(3, 1, (0, weight.shape[3] // 2, weight.shape[4] // 2))
    return _causal_convolution(x, weight, bias, geometry, _constant(0.0, 1) if cache is None else cache)


def norm_conv(x, num_groups, norm_weight, norm_bias, eps, scale, shift, cache, weight, bias, added):
    cells = (x.shape[0], x.shape[1], 1, 1, 1)
    scale = _constant(1.0, *cells) if scale is None else scale
    shift = _constant(0.0, *cells) if shift is None else shift
    nothing = _constant(0.0, 1)
    cache, added = nothing if cache is None else cache, nothing if added is None else added
    geometry = _geometry(3, 1, (0, weight.shape[3] // 2, weight.shape[4] // 2))
    settings = _settings(num_groups, eps)
    return _norm_convolution(x, norm_weight, norm_bias, scale, shift, settings, cache, weight, bias, geometry, added)


def conv(x, weight, bias, stride, padding):
    if x.dtype != ms.float32 or weight.dtype != ms.float32:
        return ops_cpu.conv(x, weight, bias, stride, padding)
    bias = _constant(0.0, weight.shape[0]) if bias is None else bias
    return _convolution(x, weight, bias, _geometry(len(x.shape) - 2, stride, padding))


def gelu_tanh(x):
    return _gelu(x) if x.dtype == ms.float32 else ops_cpu.gelu_tanh(x)


def gelu_tanh_again(x):
    return _gelu(x) if x.dtype == ms.float32 else ops_cpu.gelu_tanh(x)


def gelu_tanh_gradient(x, grad):
    return _gelu_gradient(x, grad) if x.dtype == ms.float32 else ops_cpu.gelu_tanh_gradient(x, grad)


@_ops.constexpr
def _constant(value, *shape):
    return ms.Tensor(np.full(shape, value, np.float32))


def _normalised(x, weight_GD, bias_GD, eps):
    return _norm(x.astype(ms.float32), weight_GD, bias_GD, _constant(eps, 1)).astype(x.dtype)


def layer_norm(x, weight, bias, eps):
    size = x.shape[-1]
    weight = _constant(1.0, 1, size) if weight is None else weight.astype(ms.float32).reshape(1, size)
    bias = _constant(0.0, 1, size) if bias is None else bias.astype(ms.float32).reshape(1, size)
    return _normalised(x, weight, bias, eps)


def adaptive_norm(x_BLD, weight, bias, scale_B1D, shift_B1D, eps):
    weight_BD, bias_BD = ops_cpu.folded(weight, bias, scale_B1D, shift_B1D)
    return _normalised(x_BLD, weight_BD, bias_BD, eps)


def rotate(x_BNSK, cos_SK, sin_SK):
    if x_BNSK.dtype != ms.float32:
        return ops_cpu.rotate(x_BNSK, cos_SK, sin_SK)
    return _rotate(x_BNSK, cos_SK, sin_SK)
