"""The seam between CPU and Ascend: every operator whose implementation depends on the device.

The compiler of pure functions (``compiled``, ``recomputed``) is in ``core.compiling`` and handed on from here.

Callers have no branch: same signature, same layout on both sides (``core.ops_cpu``, ``core.ops_ascend``; chosen once
by ``configure``). Shapes are for one call, letters:
B batch, L sequence, D features, N heads, K features per head, C channels, T time, H height, W width.
Functions here are pure and may be called inside a compiled function.
"""

from __future__ import annotations

import importlib
from typing import Literal

import mindspore as ms
from mindspore import ops as _ops

from core import native, ops_ascend, ops_cpu, ops_cpu_compiled, ops_cpu_updates
from core.compiling import Mode, compiled, recomputed, recomputed_keeping, value_and_gradients
from core.compiling import runtime as _runtime

__all__ = [
    "Mode", "adamw", "adamw_in_place", "adaptive_norm", "apart", "attention", "attention_again",
    "attention_keeping", "averaged_in_place", "came_in_place", "causal_conv3d", "chosen_kernels", "chosen_launch",
    "compiled", "compute_dtype", "configure", "conv2d", "conv3d", "conv3d_added", "dense", "downsampled_conv3d",
    "embedding", "gelu_tanh", "gelu_tanh_again", "gelu_tanh_gradient", "group_norm", "group_norm_silu",
    "layer_norm", "linear", "norm_conv3d", "norms_are_kernels", "recomputed", "recomputed_keeping",
    "repeat_nearest", "return_large_memory", "rms_norm", "rotate", "runnable_dtype", "silu", "square_sum",
    "square_sum_of_all", "upsampled_conv3d", "value_and_gradients",
]  # fmt: skip

Kernels = Literal["auto", "operators"]


_device = ops_cpu


def configure(
    *, device: str = "CPU", mode: Mode = "pynative", jit_level: str = "O0", kernels: Kernels = "auto"
) -> None:
    """Chooses the device and how compiled functions run; called once by a program before it builds a model.

    ``kernels`` is for the CPU: ``auto`` compiles ``kernels.cpp`` at first use where a C++ compiler is found,
    ``operators`` composes everything from MindSpore's operators (other rounding: ``chosen_kernels`` is for the record).
    Functions compiled before keep the device and the kernels they were compiled for.
    On the CPU work is done by the thread that asks for it from then on, for the whole process (``_done_when_asked``).
    """
    global _device  # noqa: PLW0603  (the graph compiler resolves module globals, not attributes of our objects)
    _runtime.device, _runtime.mode, _runtime.jit_level = device, mode, jit_level
    if device == "Ascend":
        _device, _runtime.kernels, _runtime.launch = ops_ascend, "ascend", "asynchronous"
        return
    _done_when_asked()
    library = native.library() if kernels == "auto" else native.Library(path=None, about="operators: as configured")
    _runtime.kernels = library.about
    _device = ops_cpu if library.path is None else ops_cpu_compiled
    if library.path is not None:
        ops_cpu_compiled.use(library.path)
        ops_cpu_updates.use(library.path)


def _done_when_asked() -> None:
    """No queues between the caller and the CPU's operators.

    MindSpore 2.10's queues are not safe on the CPU: 18 of 3600 steps of a training began with wrong values and, done
    again, did not (docs/log.md). They are slow as well: the caller spins while another thread of the same core works.
    ``launch_blocking`` empties a queue after each call; without pipeline there is none.
    """
    ms.runtime.launch_blocking()
    _runtime.launch = "blocking"
    without_pipeline = getattr(importlib.import_module("mindspore._c_expression"), "disable_multi_thread", None)
    if without_pipeline is not None:
        without_pipeline()
        _runtime.launch = "blocking, no pipeline"


def chosen_launch() -> str:
    """How work reaches the device, for the record: ``asynchronous``, ``blocking`` or ``blocking, no pipeline``."""
    return _runtime.launch


def chosen_kernels() -> str:
    """Which kernels compute norms, convolutions and so on, in a line for the record: results differ in their bits."""
    return _runtime.kernels


def norms_are_kernels() -> bool:
    """Whether ``group_norm_silu`` of fp32 is one kernel of our own, which compiling would not speed up."""
    return _device is ops_cpu_compiled


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


def linear(x, weight, bias=None):
    """``x [..., in] @ weight[out, in].T + bias[out] -> [..., out]``."""
    return _device.linear(x, weight, bias)


def dense(p, name, x):
    """Linear layer ``name`` of the block ``p`` with its LoRA, if it has one: ``[..., in] -> [..., out]``."""
    out = linear(x, p[name + ".weight"], p.get(name + ".bias", None))
    if name + ".lora_A.weight" in p:
        # alpha / rank is in lora_B as it is handed out (core.lora).
        out = out + linear(linear(x, p[name + ".lora_A.weight"]), p[name + ".lora_B.weight"])
    return out


def layer_norm(x, weight, bias, eps):
    """LayerNorm over the last dimension in fp32; ``weight``/``bias [D]`` may be None. Shape unchanged."""
    return _device.layer_norm(x, weight, bias, eps)


def adaptive_norm(x_BLD, weight, bias, scale_B1D, shift_B1D, eps):
    """``layer_norm(x) * (1 + scale) + shift`` with a scale and shift for each sample. Shape unchanged."""
    return _device.adaptive_norm(x_BLD, weight, bias, scale_B1D, shift_B1D, eps)


def rms_norm(x, weight, eps):
    """T5's norm: ``x / rms(x) * weight`` over the last dimension, statistics in fp32. Shape unchanged."""
    return _device.rms_norm(x, weight, eps)


def group_norm(x, num_groups, weight, bias, eps):
    """GroupNorm of ``x [B, C, ...]`` in fp32. Shape unchanged."""
    return _device.group_norm(x, num_groups, weight, bias, eps)


def group_norm_silu(x, num_groups, weight, bias, eps, scale=None, shift=None):
    """SiLU of ``group_norm(x [B, C, T, H, W])``, which ``scale`` and ``shift [B, C, t, h, w]`` modulate unless None.

    ``silu(norm * up(scale) + up(shift))`` with nearest-neighbour ``up``; t, h, w divide T, H, W, and when T is odd the
    first of the t belongs to the first frame alone. Shape unchanged.
    """
    return _device.group_norm_silu(x, num_groups, weight, bias, eps, scale, shift)


def gelu_tanh(x):
    """GELU in its tanh form. Shape unchanged."""
    return _device.gelu_tanh(x)


def gelu_tanh_again(x):
    """``gelu_tanh`` in the ``bprop`` of a Cell whose ``construct`` calls that: MindSpore 2.10's graph compiler fails
    where both call a function with a branch. Shape unchanged."""
    return _device.gelu_tanh_again(x)


def gelu_tanh_gradient(x, grad):
    """The gradient of ``gelu_tanh`` at ``x`` times ``grad`` of its shape and type: for gradients written by hand."""
    return _device.gelu_tanh_gradient(x, grad)


def silu(x):
    """``x * sigmoid(x)``."""
    return _device.silu(x)


def conv2d(x, weight, bias, stride, padding=0):
    """``x [B, C, H, W]``, ``weight [O, C, kh, kw]``, zero ``padding`` on four sides -> ``[B, O, H', W']``."""
    return _device.conv(x, weight, bias, stride, padding)


def conv3d(x, weight, bias, stride, padding):
    """``x [B, C, T, H, W]``, ``weight [O, C, kt, kh, kw]``, zero ``padding (t, h, w)`` -> ``[B, O, T', H', W']``."""
    return _device.conv(x, weight, bias, stride, padding)


# Five convolutions that read or write what would otherwise be a tensor of its own, for where memory counts and
# ``norms_are_kernels``: same bits as the operators one after the other.


def conv3d_added(x, weight, bias, stride, padding, added):
    """``conv3d(x, ...) + added`` without a third tensor of that shape."""
    return ops_cpu_compiled.conv_added(x, weight, bias, stride, padding, added)


def downsampled_conv3d(x, time, weight, bias):
    """A convolution of each frame with stride 2 of what ``ops_modulation.downsample`` (by ``time``) and then
    ``pad_right_bottom`` make of ``x [B, C, T, H, W]``, ``weight [O, C, 1, kh, kw]`` -> ``[B, O, T', H/2, W/2]``."""
    return ops_cpu_compiled.downsampled_conv(x, time, weight, bias)


def upsampled_conv3d(x, time, weight, bias):
    """A convolution of each frame of ``x`` as ``ops_modulation.upsample`` widens it (by ``time`` and 2): padded, stride
    1, ``[B, C, T, H, W]``, ``weight [O, C, 1, kh, kw]`` -> ``[B, O, T', 2H, 2W]``."""
    return ops_cpu_compiled.upsampled_conv(x, time, weight, bias)


def causal_conv3d(x, cache, weight, bias):
    """A convolution, causal in time, of ``x [B, C, T, H, W]`` after the frames ``cache``; see ``norm_conv3d``."""
    return ops_cpu_compiled.causal_conv(x, cache, weight, bias)


def norm_conv3d(x, num_groups, norm_weight, norm_bias, eps, scale, shift, cache, weight, bias, added=None):
    """A convolution, causal in time, of ``group_norm_silu(x [B, C, T, H, W], ...)`` after the frames ``cache``.

    ``weight [O, C, kt, kh, kw]``; ``cache [B, C, kt - 1, H, W]``, None repeats the first frame; ``added`` of the
    result's shape or None -> ``([B, O, T, H, W] + added, cache for what follows)``.
    """
    return ops_cpu_compiled.norm_conv(
        x, num_groups, norm_weight, norm_bias, eps, scale, shift, cache, weight, bias, added
    )  # fmt: skip


def repeat_nearest(x, time, space):
    """Nearest-neighbour upsampling ``[B, C, T, H, W] -> [B, C, T * time, H * space, W * space]``.

    The CPU writes it with ``tile`` on two dimensions at a time; ``python -m bench.operators`` has it beside one 6-D
    ``broadcast_to``.
    """
    return _device.repeat_nearest(x, time, space)


def attention(q_BNLK, k_BNLK, v_BNLK, *, scale, bias=None):
    """Softmax attention ``[B, N, L, K] -> [B, N, L, K]``; ``bias`` broadcasts to ``[B, N, L, L]``. Softmax in fp32."""
    return _device.attention(q_BNLK, k_BNLK, v_BNLK, scale, bias)


def attention_keeping(q_BNLK, k_BNLK, v_BNLK, *, scale):
    """``attention`` and what its gradient needs besides q, k, v: ``(output [B, N, L, K], *state)``."""
    return _device.attention_keeping(q_BNLK, k_BNLK, v_BNLK, scale)


def attention_again(q_BNLK, k_BNLK, v_BNLK, kept, *, scale):
    """The output in ``kept`` (what ``attention_keeping`` returned), with attention's gradient: not computed again."""
    return _device.attention_again(q_BNLK, k_BNLK, v_BNLK, kept, scale)


def embedding(ids, table):
    """``ids [...]`` int32, ``table [V, D]`` -> ``[..., D]``."""
    return _ops.gather(table, ids, 0)


def rotate(x_BNSK, cos_SK, sin_SK):
    """Rotary embedding of neighbouring pairs: ``(x0, x1) -> (x0 cos - x1 sin, x1 cos + x0 sin)``, in fp32.

    ``x [B, N, S, K]``, tables ``[S, K]`` with each value twice in a row, to which no gradient flows. Shape unchanged.
    """
    return _device.rotate(x_BNSK, _ops.stop_gradient(cos_SK), _ops.stop_gradient(sin_SK))


def adamw(p, factor, lr, correction1, correction2, beta1, beta2, rest1, rest2, eps, weight_decay):
    """One update of AdamW: ``p`` holds value, gradient, m, v of one shape -> ``(value, m, v)``, the same shape, fp32.

    ``factor`` scales the gradient; it and ``lr``, ``correction`` (1 - beta^t) are scalars, the others Python's numbers.
    """
    return _device.adamw(p, factor, lr, correction1, correction2, beta1, beta2, rest1, rest2, eps, weight_decay)


# Of many tensors at once, outside compiled functions, whose graphs keep a buffer for every tensor. Each returns None,
# and changes nothing, where no kernel does it: for another type than fp32, another device, or while work may wait in a
# queue.


def adamw_in_place(bundle, *scalars, **static):
    """``adamw`` of each of ``bundle``, in place: ``[(value, m, v), ...]``, the tensors given."""
    return ops_cpu_updates.adamw(bundle, *scalars, **static) if _updates_in_place() else None


def came_in_place(bundle, factor, lr, **hyper):
    """One update of CAME of each whole tensor of ``bundle`` (fields and ``hyper`` as ``core.optim.came.update``'s), in
    place: ``[(value, *state), ...]``.
    """
    return ops_cpu_updates.came(bundle, factor, lr, **hyper) if _updates_in_place() else None


def averaged_in_place(bundle, rest):
    """``average + rest (value - average)`` of each ``{"average", "value"}``, in place: ``[(average,), ...]``."""
    return ops_cpu_updates.averaged(bundle, rest) if _updates_in_place() else None


def square_sum_of_all(tensors):
    """The sum of ``square_sum`` of each tensor, in their order: a scalar, fp32."""
    return ops_cpu_updates.square_sum(tensors) if _updates_in_place() else None


def _updates_in_place() -> bool:
    return norms_are_kernels() and _runtime.launch == "blocking, no pipeline"


def square_sum(x):
    """Sum of the squares of all elements, in fp32: a scalar, infinite where an element's square is."""
    return _device.square_sum(x)


def apart(x):
    """The same numbers in memory that is the system's again when the tensor goes; outside compiled functions.

    MindSpore's pool on the CPU gives nothing back, and what stays long between what comes and goes leaves holes that no
    large tensor fits into. No gradient passes.
    """
    return ops_cpu.apart(x) if _device is not ops_ascend else x


def return_large_memory():
    """From now on what the process allocates outside MindSpore's pool (arrays, packed kernels) goes back to the system
    when it is freed, if it is large: for whoever reads large arrays again and again. Where libc can be told so."""
    if _device is not ops_ascend:
        ops_cpu.return_large_memory()
