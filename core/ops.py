"""The seam between CPU and Ascend: every operator whose implementation depends on the device, and the compiler.

Callers have no branch: same signature, same layout on both sides (``core.ops_cpu``, ``core.ops_ascend``; chosen once
by ``configure``). Shapes are for one call, letters:
B batch, L sequence, D features, N heads, K features per head, C channels, T time, H height, W width.
Functions here are pure and may be called inside a compiled function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import mindspore as ms
from mindspore import nn
from mindspore import ops as _ops

from core import ops_ascend, ops_cpu

Mode = Literal["pynative", "graph"]


@dataclass
class _Runtime:
    device: str = "CPU"
    mode: Mode = "pynative"
    jit_level: str = "O0"


_runtime = _Runtime()
_device = ops_cpu


def configure(*, device: str = "CPU", mode: Mode = "pynative", jit_level: str = "O0") -> None:
    """Chooses the device and how compiled functions run; called once by a program before it builds a model.

    Functions compiled before keep the device they were compiled for.
    """
    global _device  # noqa: PLW0603  (the graph compiler resolves module globals, not attributes of our objects)
    _runtime.device, _runtime.mode, _runtime.jit_level = device, mode, jit_level
    _device = ops_ascend if device == "Ascend" else ops_cpu


def compute_dtype(requested: str) -> tuple:
    """``"fp32" | "bf16" | "fp16" -> (MindSpore type to compute in, note for the record or "")``.

    Raises:
        ValueError: another name.
    """
    types = {"fp32": ms.float32, "bf16": ms.bfloat16, "fp16": ms.float16}
    if requested not in types:
        raise ValueError(f"dtype {requested!r} is unknown; need one of fp32, bf16, fp16")
    if _runtime.device == "Ascend" or requested == "fp32":
        return types[requested], ""
    return ms.float32, f"computed in fp32: MindSpore's CPU backend lacks {requested} kernels; {requested} was requested"


def runnable_dtype(stored: ms.Type) -> ms.Type:
    """Type to compute in for parameters stored as ``stored``: fp32 for bf16 on the CPU, which has no such kernels."""
    return ms.float32 if _runtime.device == "CPU" and stored == ms.bfloat16 else stored


def compiled(fn: Callable) -> Callable:
    """Wraps a pure ``fn(p, *tensors, **static)`` so that, in graph mode, it is compiled once per signature.

    ``p`` is a dict of tensors (``Model.block``); MindSpore treats a dict argument as a constant, silently losing
    its gradient, so the dict is flattened here and rebuilt inside the graph. ``static`` keyword arguments must be
    hashable Python values. Returned value: whatever ``fn`` returns (a tensor or a tuple of tensors).
    """
    return _per_signature(fn, _flat_compiled)


def recomputed(fn: Callable) -> Callable:
    """``compiled(fn)`` whose backward pass runs ``fn`` again: between the passes only its inputs are kept.

    Same call, same values, same gradients; costs one more forward pass (activation checkpointing, arXiv 1604.06174).
    """
    return _per_signature(fn, _Recomputed)


def _per_signature(fn: Callable, build: Callable) -> Callable:
    cache: dict = {}

    def call(p: dict, *tensors, **static):
        if _runtime.mode == "pynative" and build is _flat_compiled:
            return fn(p, *tensors, **static)
        absent = tuple(t is None for t in tensors)
        key = (tuple(p), absent, tuple(sorted(static.items())), _runtime.mode, _runtime.jit_level)
        if key not in cache:
            cache[key] = build(_flat(fn, tuple(p), absent, static))
        return cache[key](*[t for t in tensors if t is not None], *p.values())

    return call


def _flat(fn: Callable, names: tuple, absent: tuple, static: dict) -> Callable:
    count = len([a for a in absent if not a])

    def flat(*values):
        p = {}
        for i in range(len(names)):
            p[names[i]] = values[count + i]
        tensors = []
        j = 0
        for a in absent:
            if a:
                tensors.append(None)
            else:
                tensors.append(values[j])
                j = j + 1
        return fn(p, *tensors, **static)

    return flat


def _flat_compiled(flat: Callable) -> Callable:
    return ms.jit(flat, jit_level=_runtime.jit_level)


class _Recomputed(nn.Cell):
    """A custom ``bprop`` keeps inputs and output only; it differentiates the function anew."""

    def __init__(self, flat: Callable):
        super().__init__()
        gradient = _ops.GradOperation(get_all=True, sens_param=True)(flat)

        def backward_one(*values):
            return gradient(*values)

        def backward_pair(*values):
            # A tuple as an argument would be a constant of the graph: compiled anew, with old numbers, at each call.
            return gradient(*values[:-2], (values[-2], values[-1]))

        wrap = _flat_compiled if _runtime.mode == "graph" else lambda f: f
        self._flat, self._one, self._pair = wrap(flat), wrap(backward_one), wrap(backward_pair)

    def construct(self, *values):
        return self._flat(*values)

    def bprop(self, *values):
        """``values``: the inputs, the output, the output's gradient (of one tensor or a pair)."""
        gradient = values[-1]
        # Detached: in PyNative the inner differentiation would otherwise touch gradients the outer one has collected.
        inputs = [_ops.stop_gradient(v) for v in values[:-2]]
        if isinstance(gradient, tuple):
            return self._pair(*inputs, *gradient)
        return self._one(*inputs, gradient)


def value_and_gradients(fn: Callable, parameters: Sequence) -> Callable[..., Any]:
    """A function of ``fn``'s arguments that returns ``(fn's scalar, gradients in the parameters' order)``."""
    return ms.value_and_grad(fn, None, list(parameters))  # type: ignore[arg-type]  # its annotation forgets None


def linear(x, weight, bias=None):
    """``x [..., in] @ weight[out, in].T + bias[out] -> [..., out]``."""
    return _device.linear(x, weight, bias)


def dense(p, name, x):
    """Linear layer ``name`` of the block ``p``: ``[..., in] -> [..., out]``."""
    if name + ".bias" in p:
        return linear(x, p[name + ".weight"], p[name + ".bias"])
    return linear(x, p[name + ".weight"])


def layer_norm(x, weight, bias, eps):
    """LayerNorm over the last dimension in fp32; ``weight``/``bias [D]`` may be None. Shape unchanged."""
    return _device.layer_norm(x, weight, bias, eps)


def rms_norm(x, weight, eps):
    """T5's norm: ``x / rms(x) * weight`` over the last dimension, statistics in fp32. Shape unchanged."""
    return _device.rms_norm(x, weight, eps)


def group_norm(x, num_groups, weight, bias, eps):
    """GroupNorm of ``x [B, C, ...]`` in fp32. Shape unchanged."""
    return _device.group_norm(x, num_groups, weight, bias, eps)


def gelu_tanh(x):
    """GELU in its tanh form. Shape unchanged."""
    return _device.gelu_tanh(x)


def silu(x):
    """``x * sigmoid(x)``."""
    return _device.silu(x)


def conv2d(x, weight, bias, stride, padding=0):
    """``x [B, C, H, W]``, ``weight [O, C, kh, kw]``, zero ``padding`` on four sides -> ``[B, O, H', W']``."""
    return _device.conv(x, weight, bias, stride, padding)


def conv3d(x, weight, bias, stride, padding):
    """``x [B, C, T, H, W]``, ``weight [O, C, kt, kh, kw]``, zero ``padding (t, h, w)`` -> ``[B, O, T', H', W']``."""
    return _device.conv(x, weight, bias, stride, padding)


def pad_right_bottom(x):
    """One row and one column of zeros after the last: ``[B, C, T, H, W] -> [B, C, T, H + 1, W + 1]``."""
    return _ops.Pad(((0, 0), (0, 0), (0, 0), (0, 1), (0, 1)))(x)  # ops.pad: see core.ops_cpu_conv


def mean_of_frame_pairs(x):
    """``[B, C, 2T, H, W] -> [B, C, T, H, W]``, the mean of frames 2t and 2t + 1."""
    batch, channels, frames, height, width = x.shape
    return x.reshape(batch, channels, frames // 2, 2, height, width).mean(3)


def repeat_nearest(x, time, space):
    """Nearest-neighbour upsampling ``[B, C, T, H, W] -> [B, C, T * time, H * space, W * space]``.

    Written with ``tile`` on two dimensions at a time: on the CPU 8x faster than one 6-D ``broadcast_to``.
    """
    return _device.repeat_nearest(x, time, space)


def attention(q_BNLK, k_BNLK, v_BNLK, *, scale, bias=None):
    """Softmax attention ``[B, N, L, K] -> [B, N, L, K]``; ``bias`` broadcasts to ``[B, N, L, L]``. Softmax in fp32."""
    return _device.attention(q_BNLK, k_BNLK, v_BNLK, scale, bias)


def embedding(ids, table):
    """``ids [...]`` int32, ``table [V, D]`` -> ``[..., D]``."""
    return _ops.gather(table, ids, 0)


def rotate(x_BNSK, cos_SK, sin_SK):
    """Rotary embedding of neighbouring pairs: ``(x0, x1) -> (x0 cos - x1 sin, x1 cos + x0 sin)``, in fp32.

    ``x [B, N, S, K]``, tables ``[S, K]`` with each value twice in a row. Shape unchanged.
    """
    return _device.rotate(x_BNSK, cos_SK, sin_SK)
