"""CAME (arXiv:2307.02047): Adafactor's factored second moment, guided by how far momentum and update agree.

Definition, order of operations and what sharding needs: docs/design/007.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mindspore as ms
import numpy as np
from mindspore import mint

from core import ops
from core.optim.base import Optimizer, State, decayed, zeros

Mean = Callable[[ms.Tensor], ms.Tensor]


def unsharded(mean: ms.Tensor) -> ms.Tensor:
    """The mean over shards of a tensor that is in one piece: itself."""
    return mean


def unsharded_pair(first: ms.Tensor, second: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
    """Two of them."""
    return first, second


def in_one_message(shards_mean: Mean) -> Callable[[ms.Tensor, ms.Tensor], tuple[ms.Tensor, ms.Tensor]]:
    """``[m], [n] -> [m], [n]``: the means over shards of two vectors, by one call of ``shards_mean``."""

    def pair(first, second):
        both = shards_mean(mint.cat((first, second), dim=0))
        return both[: first.shape[0]], both[first.shape[0] :]

    return pair


def _inverse_root(row, column, mean):
    """``1 / sqrt`` of the rank-1 estimate ``row column / mean(row)``: ``[.., r], [.., c], [.., 1] -> [.., r, c]``."""
    scaled = row / mean
    return mint.rsqrt(scaled).unsqueeze(-1) * mint.rsqrt(column).unsqueeze(-2)


def _means_of_rows(x, row, valid, rows_means, stretch):
    """Means over the whole tensor's rows, of which ``valid`` marks those that are no padding here, of ``x [.., r, c]``
    and of ``row [.., r]`` -> ``[.., c], [.., 1]``.

    No closure: the graph compiler loses track of one that holds a tensor of the function around it.
    """
    if valid is not None:
        x, row = x * valid.unsqueeze(-1), row * valid
    column, mean = rows_means(mint.mean(x, dim=-2), mint.mean(row, dim=-1, keepdim=True))
    return (column, mean) if stretch == 1.0 else (column * stretch, mean * stretch)


def _clipped(u, clip_threshold, shards_mean, stretch):
    """``u`` scaled down to a root mean square of ``clip_threshold``; it is zero in padding."""
    square = shards_mean(mint.mean(u * u))
    rms = mint.sqrt(square if stretch == 1.0 else square * stretch)
    return u / mint.clamp(rms / clip_threshold, min=1.0)


def factored(
    p, factor, lr, *, beta1, beta2, beta3, rest1, rest2, rest3, eps1, eps2, clip_threshold, weight_decay, rows_means,
    shards_mean, stretch=1.0,
):  # fmt: skip
    """One step of a tensor of two or more dimensions: ``p`` holds value, gradient, m ``[.., r, c]``, two averages of
    rows ``[.., r]`` and of columns ``[.., c]`` -> ``(value, m, v_row, v_column, residual_row, residual_column)``.

    ``rest`` are 1 - beta. ``rows_means`` (of two tensors) and ``shards_mean`` complete means over the rows, or over all
    elements, of which this process holds a part; ``stretch`` is rows with padding over rows without.
    """
    matrix = len(p["value"].shape) == 2
    valid = p["valid"] if matrix and "valid" in p else None
    rows_stretch = stretch if matrix else 1.0
    gradient = p["gradient"].astype(ms.float32) * factor
    square = gradient * gradient + eps1
    v_row = beta2 * p["v_row"] + rest2 * mint.mean(square, dim=-1)
    column, v_mean = _means_of_rows(square, v_row, valid, rows_means, rows_stretch)
    v_column = beta2 * p["v_column"] + rest2 * column
    u = _clipped(_inverse_root(v_row, v_column, v_mean) * gradient, clip_threshold, shards_mean, stretch)
    m = beta1 * p["m"] + rest1 * u
    residual = (u - m) * (u - m) + eps2
    r_row = beta3 * p["residual_row"] + rest3 * mint.mean(residual, dim=-1)
    column, r_mean = _means_of_rows(residual, r_row, valid, rows_means, rows_stretch)
    r_column = beta3 * p["residual_column"] + rest3 * column
    value = p["value"] - (lr * weight_decay) * p["value"]
    return value - lr * (_inverse_root(r_row, r_column, r_mean) * m), m, v_row, v_column, r_row, r_column


def unfactored(
    p, factor, lr, *, beta1, beta2, rest1, rest2, eps1, clip_threshold, weight_decay, shards_mean, stretch=1.0,
):  # fmt: skip
    """One step of a vector: ``p`` holds value, gradient, m, v ``[n]`` -> ``(value, m, v)``; no residual is kept."""
    gradient = p["gradient"].astype(ms.float32) * factor
    v = beta2 * p["v"] + rest2 * (gradient * gradient + eps1)
    m = beta1 * p["m"] + rest1 * _clipped(mint.rsqrt(v) * gradient, clip_threshold, shards_mean, stretch)
    value = p["value"] - (lr * weight_decay) * p["value"]
    return value - lr * m, m, v


def update(p, factor, lr, **hyper):
    """``factored`` or ``unfactored``, whichever state ``p`` holds."""
    if "v_row" in p:
        return factored(p, factor, lr, **hyper)
    return unfactored(p, factor, lr, **hyper)


def _in_place(bundle, factor, lr, *, shards_mean, rows_means=unsharded_pair, **hyper):
    """``update`` of tensors that are in one piece, by a kernel; None where there is none."""
    if shards_mean is not unsharded or rows_means is not unsharded_pair:
        return None
    return ops.came_in_place(bundle, factor, lr, **hyper)


class CAME(Optimizer):
    """CAME over named parameters, as ``came-pytorch``; its state is fp32 whatever the parameters' type.

    Args:
        parameters: trainable parameters. Tensors of two or more dimensions are factored over the last two.
        betas: decay of the update's average, of the squared gradient's, of the residual's.
        eps: added to the squared gradient, to the squared residual.
        weight_decay: decoupled: ``value * (1 - lr * weight_decay)`` before the update is subtracted.
        clip_threshold: bound of each tensor's update in root mean square.
        decay: which parameters decay (``core.optim.groups.decay_mask``); None is all.
        sharded: which parameters are equal parts, cut along dimension 0, of tensors spread over processes.
        shards_mean: mean of a tensor over those processes, same shape; may be called inside a compiled function.
        padding: for each of those parts None, or (which of its rows, of its first dimension, are no padding: ones and
            zeros; rows of all parts with padding over those without). Gradients in padding are zero.
    """

    def __init__(
        self,
        parameters: Sequence[ms.Parameter],
        *,
        betas: tuple[float, float, float],
        eps: tuple[float, float],
        weight_decay: float,
        clip_threshold: float = 1.0,
        decay: Sequence[bool] | None = None,
        sharded: Sequence[bool] | None = None,
        shards_mean: Mean = unsharded,
        padding: Sequence[tuple[np.ndarray, float] | None] | None = None,
    ):
        parts = [False] * len(parameters) if sharded is None else list(sharded)
        rows = [None] * len(parameters) if padding is None else list(padding)
        self._parts, statics, valid, pair = parts, [], [], in_one_message(shards_mean)
        rates = decayed(parameters, decay, weight_decay)
        for q, part, padded, decay_rate in zip(parameters, parts, rows, rates, strict=True):
            mean = shards_mean if part else unsharded
            static = {"clip_threshold": clip_threshold, "weight_decay": decay_rate, "shards_mean": mean, "eps1": eps[0]}
            static |= {"beta1": betas[0], "rest1": 1.0 - betas[0], "beta2": betas[1], "rest2": 1.0 - betas[1]}
            if len(q.shape) >= 2:
                # Only of a matrix is dimension 0, along which shards are cut, the dimension of rows.
                static["rows_means"] = pair if part and len(q.shape) == 2 else unsharded_pair
                static |= {"beta3": betas[2], "rest3": 1.0 - betas[2], "eps2": eps[1]}
            if padded is not None:
                static["stretch"] = padded[1]
            # Only rows of matrices take part in a mean with others.
            valid.append({"valid": ms.Tensor(padded[0])} if padded is not None and len(q.shape) == 2 else {})
            statics.append(static)
        super().__init__(parameters, [_zero_state(tuple(q.shape)) for q in parameters], update, statics, _in_place)
        self._constants = valid

    def exchanged(self) -> list[int]:
        """Elements of each mean over the processes that one step asks for, in order."""
        sizes: list[int] = []
        for index in (i for bundle in self._for_each.bundles for i in bundle):
            shape = tuple(self.parameters[index].shape)
            if self._parts[index]:
                sizes += [shape[1] + 1, 1, shape[1] + 1] if len(shape) == 2 else [1]
        return sizes


def _zero_state(shape: tuple[int, ...]) -> State:
    if len(shape) < 2:
        return {"m": zeros(shape), "v": zeros(shape)}
    row, column = shape[:-1], (*shape[:-2], shape[-1])
    return {
        "m": zeros(shape), "v_row": zeros(row), "v_column": zeros(column), "residual_row": zeros(row),
        "residual_column": zeros(column),
    }  # fmt: skip
