"""Convolution on the CPU, without oneDNN's reference kernel.

With AVX-512, oneDNN 3.10 (inside MindSpore 2.10) claims plain-layout convolutions for ``jit_uni_ncsp``, which repeats
the search with channels-last activations but the caller's plain weights; no kernel takes that pair, so the scalar
reference runs. Limited to AVX2 it skips that step and reaches its matrix-product convolution, but then matrix products
are slower too. ``unfolded`` is our own: on the *flattened* grid every tap of the kernel is one
contiguous shift, so unfolding is a row copy and the rest one matrix product (docs/design/002).

O outputs, C channels, L elements of the flattened input, P flattened output positions, Q taps.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mindspore import ops as _ops

# Larger unfolded inputs are multiplied tap group by tap group: faster in one piece, but not worth 27x memory.
CHUNK_BYTES = 64 * 2**20

_matmul = _ops.MatMul()
_tile = _ops.Tile()


def native_is_fast() -> bool:
    """Whether oneDNN's own convolution avoids its reference kernel in this process (decided before its first use)."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if limit:
        return not limit.startswith(("AVX512", "AVX10", "DEFAULT", "ALL"))
    try:
        return "avx512f" not in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


def native(x, weight, bias, stride, padding):
    if len(x.shape) == 4:
        return _ops.conv2d(x, weight, bias, stride=stride, pad_mode="pad", padding=padding)
    return _ops.conv3d(x, weight, bias, stride=stride, pad_mode="pad", padding=padding)


# Evaluated while compiling: loops over taps compile slowly.
@_ops.constexpr
def _taps_at_once(elements, limit):
    return max(1, limit // (4 * elements))


def _shifted_product(x_CL, w_OQC, offsets, count):
    """``y[o, p] = sum over taps q and channels c of w[o, q, c] x[c, p + offsets[q]]`` -> ``[O, P]``, P = ``count``."""
    outputs, taps, channels = w_OQC.shape
    group = _taps_at_once(channels * count, CHUNK_BYTES)
    y = None
    for first in range(0, taps, group):
        columns = []
        for offset in offsets[first : first + group]:
            columns.append(x_CL[:, offset : offset + count])
        unfolded_x = columns[0] if len(columns) == 1 else _ops.concat(columns, 0)
        part = _matmul(w_OQC[:, first : first + group].reshape(outputs, -1), unfolded_x)
        y = part if y is None else y + part
    return y


@_ops.constexpr
def _offsets(k_t, k_h, k_w, s_t, s_h, s_w, rows, columns, grid):
    """Where each tap of the kernel reads, relative to its output position in the flattened input."""
    offsets = []
    for t in range(k_t):
        for h in range(k_h):
            for w in range(k_w):
                phase = ((t % s_t) * s_h + h % s_h) * s_w + w % s_w
                offsets.append(phase * grid + ((t // s_t) * rows + h // s_h) * columns + w // s_w)
    return tuple(offsets)


def _by_channel(x_BCTHW, stride):
    """``[B, C, T, H, W] -> [C, phases * B * T' * H' * W']``: one dense grid per phase of the stride."""
    batch, channels, frames, height, width = x_BCTHW.shape
    s_t, s_h, s_w = stride
    if s_t * s_h * s_w > 1:
        split = x_BCTHW.reshape(batch, channels, frames // s_t, s_t, height // s_h, s_h, width // s_w, s_w)
        return split.transpose(1, 3, 5, 7, 0, 2, 4, 6).reshape(channels, -1)
    return x_BCTHW.reshape(channels, -1) if batch == 1 else x_BCTHW.transpose(1, 0, 2, 3, 4).reshape(channels, -1)


def _triple(value):
    return (value, value, value) if isinstance(value, int) else value


def _conv3d(x, weight, bias, stride, padding):
    outputs, channels, k_t, k_h, k_w = weight.shape
    s_t, s_h, s_w = stride
    p_t, p_h, p_w = padding
    batch = x.shape[0]
    full = (x.shape[2] + 2 * p_t, x.shape[3] + 2 * p_h, x.shape[4] + 2 * p_w)
    o_t, o_h, o_w = (full[0] - k_t) // s_t + 1, (full[1] - k_h) // s_h + 1, (full[2] - k_w) // s_w + 1
    g_t, g_h, g_w = -(-full[0] // s_t), -(-full[1] // s_h), -(-full[2] // s_w)
    after = (p_t + g_t * s_t - full[0], p_h + g_h * s_h - full[1], p_w + g_w * s_w - full[2])
    if p_t + p_h + p_w + after[0] + after[1] + after[2] > 0:
        # Not ops.pad: after some tens of calls its gradient is wrong or never returns (MindSpore 2.10, CPU).
        x = _ops.Pad(((0, 0), (0, 0), (p_t, after[0]), (p_h, after[1]), (p_w, after[2])))(x)
    grid = batch * g_t * g_h * g_w
    count = (((batch - 1) * g_t + o_t - 1) * g_h + o_h - 1) * g_w + o_w
    w_OQC = weight.reshape(outputs, channels, -1).transpose(0, 2, 1)
    y: Any = _shifted_product(
        _by_channel(x, stride), w_OQC, _offsets(k_t, k_h, k_w, s_t, s_h, s_w, g_h, g_w, grid), count
    )
    if count < grid:
        y = _ops.Pad(((0, 0), (0, grid - count)))(y)
    y = y.reshape(outputs, batch, g_t, g_h, g_w)
    if (o_t, o_h, o_w) != (g_t, g_h, g_w):
        y = y[:, :, :o_t, :o_h, :o_w]
    if bias is not None:
        size = batch * o_t * o_h * o_w
        y = y.reshape(outputs, size) + _tile(bias.reshape(outputs, 1), (1, size))
    if batch == 1:
        return y.reshape(1, outputs, o_t, o_h, o_w)
    return y.reshape(outputs, batch, o_t, o_h, o_w).transpose(1, 0, 2, 3, 4)


def unfolded(x, weight, bias, stride, padding):
    """Same arguments and result as ``native``, for 4-D and 5-D input; a 1x1x1 kernel is a matrix product there too."""
    if weight.shape[2:] == (1,) * (len(x.shape) - 2):
        return native(x, weight, bias, stride, padding)
    if len(x.shape) == 5:
        return _conv3d(x, weight, bias, _triple(stride), _triple(padding))
    stride = (1, stride, stride) if isinstance(stride, int) else (1, stride[0], stride[1])
    padding = (0, padding, padding) if isinstance(padding, int) else (0, padding[0], padding[1])
    y = _conv3d(x.expand_dims(2), weight.expand_dims(2), bias, stride, padding)
    return y.reshape(y.shape[0], y.shape[1], y.shape[3], y.shape[4])
