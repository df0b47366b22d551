"""One implementation's side of ``bench.operators``: a process that times an operator whenever it is asked.

Reads lines ``case direction repeats`` and answers each with one JSON line ``{"seconds": [...], "cpu_seconds": [...]}``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

# Sizes of a small run: 832 tokens of width 512 (8 heads), five frames of a decoder level of 64 channels.
TOKENS, WIDTH, HEADS = 832, 512, 8
VOLUME, CHANNELS = (5, 32, 32), 64
LONG = 0.5  # seconds after which a case is not repeated within one request
_X = (TOKENS, WIDTH)
_HEAD = (1, HEADS, TOKENS, WIDTH // HEADS)
_MAP = (1, CHANNELS, *VOLUME)
# (clips, channels) of convolutions as the VAE has them, with the two frames of the cache and a frame's size: the small
# world's outer level, its inner one, a middle level of the published one.
_VAE = {"conv3d_8": ((4, 8), (11, 64, 64)), "conv3d_32": ((4, 32), (5, 16, 16)), "conv3d_256": ((1, 256), (4, 30, 45))}
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "linear": [_X, (4 * WIDTH, WIDTH), (4 * WIDTH,)],
    "layer_norm": [(TOKENS, 4 * WIDTH), (4 * WIDTH,), (4 * WIDTH,)],
    "rms_norm": [(TOKENS, 4 * WIDTH), (4 * WIDTH,)],
    "group_norm": [_MAP, (CHANNELS,), (CHANNELS,)],
    "gelu_tanh": [(TOKENS, 4 * WIDTH)],
    "silu": [(TOKENS, 4 * WIDTH)],
    "attention": [_HEAD, _HEAD, _HEAD],
    "adaptive_norm": [(1, *_X), (WIDTH,), (WIDTH,), (1, 1, WIDTH), (1, 1, WIDTH)],
    "repeat_nearest": [_MAP],
    "rotate": [_HEAD, _HEAD[2:], _HEAD[2:]],
    "conv3d_3x3x3": [_MAP, (CHANNELS, CHANNELS, 3, 3, 3), (CHANNELS,)],
    "conv3d_1x1x1": [_MAP, (CHANNELS, CHANNELS, 1, 1, 1), (CHANNELS,)],
    **{name: [(*a, *volume), (a[1], a[1], 3, 3, 3), (a[1],)] for name, (a, volume) in _VAE.items()},
}


def arrays(case: str) -> list[np.ndarray]:
    """The same inputs in every process."""
    rng = np.random.default_rng(len(case))
    return [(rng.standard_normal(shape) * 0.1).astype(np.float32) for shape in SHAPES[case]]


def _ours(kernels: Literal["auto", "operators"] = "auto") -> dict[str, Callable]:
    from core import ops

    ops.configure(mode="graph", kernels=kernels)

    def attention(q, k, v):
        return ops.attention(q, k, v, scale=0.125)

    def layer_norm(x, w, b):
        return ops.layer_norm(x, w, b, 1e-5)

    def adaptive_norm(x, w, b, scale, shift):
        return ops.adaptive_norm(x, w, b, scale, shift, 1e-5)

    def repeat_nearest(x):
        return ops.repeat_nearest(x, 2, 2)

    def rms_norm(x, w):
        return ops.rms_norm(x, w, 1e-6)

    def group_norm(x, w, b):
        return ops.group_norm(x, 32, w, b, 1e-6)

    def conv_wide(x, w, b):
        return ops.conv3d(x, w, b, (1, 1, 1), (0, 1, 1))

    def conv_point(x, w, b):
        return ops.conv3d(x, w, b, (1, 1, 1), (0, 0, 0))

    return _named(
        ops.linear,
        layer_norm,
        rms_norm,
        group_norm,
        ops.gelu_tanh,
        ops.silu,
        attention,
        adaptive_norm,
        repeat_nearest,
        ops.rotate,
        conv_wide,
        conv_point,
        *[conv_wide] * len(_VAE),
    )


def _naive() -> dict[str, Callable]:
    from mindspore import mint, ops
    from mindspore.mint.nn import functional

    norm: Any = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=1e-5)

    def layer_norm(x, w, b):
        return norm(x, w, b)[0]

    def adaptive_norm(x, w, b, scale, shift):
        return norm(x, w, b)[0] * (1.0 + scale) + shift

    def repeat_nearest(x):
        batch, channels, frames, height, width = x.shape
        x = x.reshape(batch * channels * frames, 1, height, 1, width, 1)
        x = ops.broadcast_to(x, (batch * channels * frames, 2, height, 2, width, 2))
        return x.reshape(batch, channels, 2 * frames, 2 * height, 2 * width)

    def rms_norm(x, w):
        return x * mint.rsqrt((x * x).mean(-1, keep_dims=True) + 1e-6) * w

    def group_norm(x, w, b):
        return ops.group_norm(x, 32, w, b, 1e-6)

    def gelu(x):
        return ops.gelu(x, approximate="tanh")

    def attention(q, k, v):
        return mint.matmul(ops.softmax(mint.matmul(q * 0.125, k.transpose(0, 1, 3, 2)), -1), v)

    def rotate(x, cos, sin):
        even, odd = mint.chunk(x.reshape(1, HEADS, TOKENS, -1, 2), 2, -1)
        return x * cos + mint.cat((-odd, even), dim=-1).reshape(x.shape) * sin

    convolve: Any = ops.conv3d

    def conv_wide(x, w, b):
        return convolve(x, w, b, pad_mode="pad", padding=(0, 1, 1))

    def conv_point(x, w, b):
        return ops.conv3d(x, w, b)

    linear = functional.linear
    return _named(
        linear,
        layer_norm,
        rms_norm,
        group_norm,
        gelu,
        functional.silu,
        attention,
        adaptive_norm,
        repeat_nearest,
        rotate,
        conv_wide,
        conv_point,
        *[conv_wide] * len(_VAE),
    )


def _torch() -> dict[str, Callable]:
    import torch
    import torch.nn.functional as F

    def rotate(x, cos, sin):
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).reshape(x.shape)
        return x * cos + turned * sin

    return _named(
        F.linear,
        lambda x, w, b: F.layer_norm(x, w.shape, w, b, 1e-5),
        lambda x, w: F.rms_norm(x, w.shape, w, 1e-6),
        lambda x, w, b: F.group_norm(x, 32, w, b, 1e-6),
        lambda x: F.gelu(x, approximate="tanh"),
        F.silu,
        F.scaled_dot_product_attention,
        lambda x, w, b, scale, shift: F.layer_norm(x, w.shape, w, b, 1e-5) * (1.0 + scale) + shift,
        lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
        rotate,
        lambda x, w, b: F.conv3d(x, w, b, padding=(0, 1, 1)),
        F.conv3d,
        *[lambda x, w, b: F.conv3d(x, w, b, padding=(0, 1, 1))] * len(_VAE),
    )


def _named(*functions: Callable) -> dict[str, Callable]:
    return dict(zip(SHAPES, functions, strict=True))


def _mindspore_call(function: Callable, case: str, backward: bool) -> Callable[[], object]:
    import mindspore as ms
    from mindspore import ops

    tensors = [ms.Tensor(a) for a in arrays(case)]
    run = ms.jit(function, jit_level="O0")
    if backward:
        sens = ops.ones_like(run(*tensors))
        run, tensors = ops.GradOperation(get_all=True, sens_param=True)(run), [*tensors, sens]

    def call():
        result = run(*tensors)
        ms.runtime.synchronize()
        return result

    return call


def _torch_call(function: Callable, case: str, backward: bool) -> Callable[[], object]:
    import torch

    tensors = [torch.tensor(a, requires_grad=backward) for a in arrays(case)]

    def call():
        out = function(*tensors)
        return torch.autograd.grad(out, tensors, torch.ones_like(out)) if backward else out

    return call


def main(implementation: str) -> None:
    """Serves requests from standard input until it closes."""
    sides = {"ours": _ours, "ours-operators": lambda: _ours("operators"), "mindspore": _naive, "torch": _torch}
    functions = sides[implementation.removesuffix("-avx2")]()
    prepare = _torch_call if implementation == "torch" else _mindspore_call
    calls: dict[tuple[str, str], Callable] = {}
    print(json.dumps({"ready": implementation}), flush=True)
    for line in sys.stdin:
        case, direction, repeats = line.split()
        if (case, direction) not in calls:
            calls[case, direction] = prepare(functions[case], case, direction == "forward+backward")
            calls[case, direction]()
        seconds, cpu = [], []
        for _ in range(int(repeats)):
            clock, processor = time.perf_counter(), time.process_time()
            calls[case, direction]()
            seconds.append(time.perf_counter() - clock)
            cpu.append(time.process_time() - processor)
            if sum(seconds) > LONG:
                break
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
