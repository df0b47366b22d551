"""Every operator against torch in fp64, forward and backward, compiled and not."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mindspore.ops import GradOperation

from core import ops, ops_cpu_conv
from tests.tolerances import OPERATOR, OPERATOR_GRADIENT, relative_error

COS, SIN = np.random.default_rng(1).standard_normal((2, 5, 8)).astype(np.float32)


def _turned(x):
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).reshape(x.shape)


CASES = {
    "linear": (lambda p, x, w, b: ops.linear(x, w, b), F.linear, [(2, 5, 6), (7, 6), (7,)]),
    "layer_norm": (
        lambda p, x, w, b: ops.layer_norm(x, w, b, 1e-5),
        lambda x, w, b: F.layer_norm(x, w.shape, w, b, 1e-5),
        [(2, 7, 64), (64,), (64,)],
    ),
    "layer_norm_plain": (
        lambda p, x: ops.layer_norm(x, None, None, 1e-5),
        lambda x: F.layer_norm(x, x.shape[-1:], None, None, 1e-5),
        [(2, 7, 64)],
    ),
    "rms_norm": (
        lambda p, x, w: ops.rms_norm(x, w, 1e-6),
        lambda x, w: F.rms_norm(x, w.shape, w, 1e-6),
        [(2, 7, 64), (64,)],
    ),
    "group_norm": (
        lambda p, x, w, b: ops.group_norm(x, 4, w, b, 1e-6),
        lambda x, w, b: F.group_norm(x, 4, w, b, 1e-6),
        [(2, 8, 3, 4, 5), (8,), (8,)],
    ),
    "gelu_tanh": (lambda p, x: ops.gelu_tanh(x), lambda x: F.gelu(x, approximate="tanh"), [(9, 33)]),
    "silu": (lambda p, x: ops.silu(x), F.silu, [(9, 33)]),
    "attention": (
        lambda p, q, k, v: ops.attention(q, k, v, scale=0.3),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3),
        [(2, 3, 20, 8), (2, 3, 24, 8), (2, 3, 24, 8)],
    ),
    "attention_bias": (
        lambda p, q, k, v, b: ops.attention(q, k, v, scale=1.0, bias=b),
        lambda q, k, v, b: F.scaled_dot_product_attention(q, k, v, attn_mask=b, scale=1.0),
        [(2, 3, 20, 8), (2, 3, 24, 8), (2, 3, 24, 8), (1, 3, 20, 24)],
    ),
    "rotate": (
        lambda p, x: ops.rotate(x, ms.Tensor(COS), ms.Tensor(SIN)),  # no gradient reaches the tables
        lambda x: x * torch.tensor(COS) + _turned(x) * torch.tensor(SIN),
        [(2, 3, 5, 8)],
    ),
    "conv3d": (
        lambda p, x, w, b: ops.conv3d(x, w, b, (1, 1, 1), (0, 1, 1)),
        lambda x, w, b: F.conv3d(x, w, b, padding=(0, 1, 1)),
        [(1, 4, 5, 6, 7), (3, 4, 3, 3, 3), (3,)],
    ),
    "conv3d_unfolded": (
        lambda p, x, w, b: ops_cpu_conv.unfolded(x, w, b, (2, 2, 2), (1, 1, 1)),
        lambda x, w, b: F.conv3d(x, w, b, stride=2, padding=1),
        [(2, 3, 5, 7, 8), (4, 3, 3, 3, 3), (4,)],
    ),
    "conv2d": (
        lambda p, x, w, b: ops.conv2d(x, w, b, 2, 0),
        lambda x, w, b: F.conv2d(x, w, b, stride=2),
        [(3, 4, 9, 9), (5, 4, 3, 3), (5,)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name, record_property):
    function, reference, shapes = CASES[name]
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    leaves = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in inputs]
    expected = reference(*leaves)
    sens = rng.standard_normal(tuple(expected.shape)).astype(np.float32)
    expected.backward(torch.tensor(sens, dtype=torch.float64))

    tensors = [ms.Tensor(a) for a in inputs]
    value = relative_error(function({}, *tensors).asnumpy(), expected.detach().numpy())
    ours = GradOperation(get_all=True, sens_param=True)(lambda *t: function({}, *t))(*tensors, ms.Tensor(sens))
    gradient = max(relative_error(g.asnumpy(), np.asarray(t.grad)) for g, t in zip(ours, leaves, strict=True))
    record_property("relative_error", value)
    print(f"PARITY operator {name} {value:.1e} backward {gradient:.1e}")
    assert value <= OPERATOR
    assert gradient <= OPERATOR_GRADIENT
