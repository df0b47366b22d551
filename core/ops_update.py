"""Operators of the optimisers composed from MindSpore's: what Ascend runs, and the CPU where there are no kernels."""

from __future__ import annotations

import mindspore as ms
from mindspore import mint


def adamw(p, factor, lr, correction1, correction2, beta1, beta2, rest1, rest2, eps, weight_decay):
    gradient = p["gradient"].astype(ms.float32) * factor
    m = beta1 * p["m"] + rest1 * gradient
    v = beta2 * p["v"] + rest2 * (gradient * gradient)
    value = p["value"] * (1.0 - lr * weight_decay)
    return value - lr * (m / correction1) / (mint.sqrt(v / correction2) + eps), m, v


def square_sum(x):
    x = x.astype(ms.float32)
    return (x * x).sum()
