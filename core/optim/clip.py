"""The global norm of gradients, and the factor that bounds it."""

from __future__ import annotations

import mindspore as ms
from mindspore import mint

from core import ops


def _square_sum(p):
    total = 0.0
    for name in p:
        total = total + ops.square_sum(p[name])
    return total


_compiled_square_sum = ops.compiled(_square_sum)


def square_sum(gradients: dict[str, ms.Tensor]) -> ms.Tensor:
    """Sum of the squares of all elements: a scalar, fp32.

    Gradients in shards: sum this over the processes for those in shards, add that of the whole ones once, take the
    root. Beyond about 1e19 an element's square is infinite, which counts as an overflow.
    """
    if not gradients:
        return ms.Tensor(0.0, ms.float32)
    total = ops.square_sum_of_all(list(gradients.values()))
    return _compiled_square_sum(gradients) if total is None else total


def global_norm(gradients: dict[str, ms.Tensor]) -> ms.Tensor:
    """Euclidean norm over all gradients together: a scalar, fp32; not finite if any element is not."""
    return mint.sqrt(square_sum(gradients))


def clip_factor(norm: ms.Tensor, max_norm: float | None) -> ms.Tensor:
    """What to multiply gradients by so that their norm is at most ``max_norm`` (torch's rule, with its 1e-6).

    Says nothing about a norm that is not finite (MindSpore's ``clamp`` turns NaN into 1): look at the norm first.
    """
    if max_norm is None:
        return ms.Tensor(1.0, ms.float32)
    return mint.clamp(max_norm / (norm + 1e-6), max=1.0)
