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


def _over_shards(parts, shards_mean):
    """The means over shards of several tensors, by one call of ``shards_mean``: one message."""
    flat, found = (), ()
    for x in parts:
        flat = (*flat, x.reshape(-1))
    whole, start = shards_mean(mint.cat(flat, dim=0)), 0
    for x in parts:
        found = (*found, whole[start : start + x.size].reshape(x.shape))
        start = start + x.size
    return found


def _inverse_root(row, column, mean):
    """``1 / sqrt`` of the rank-1 estimate ``row column / mean(row)``: ``[.., r], [.., c], [.., 1] -> [.., r, c]``."""
    scaled = row / mean
    return mint.rsqrt(scaled).unsqueeze(-1) * mint.rsqrt(column).unsqueeze(-2)


def _means_of_rows(p, x, row):
    """Means over the rows of ``x [.., r, c]`` and of ``row [.., r]`` -> ``[.., c], [.., 1]``; of a matrix over those
    rows that ``valid`` says are no padding."""
    if len(x.shape) == 2 and "valid" in p:
        x, row = x * p["valid"].unsqueeze(-1), row * p["valid"]
    return mint.mean(x, dim=-2), mint.mean(row, dim=-1, keepdim=True)


def _stretched(x, stretch):
    """Means over rows with padding as means over those without."""
    return x if stretch == 1.0 else x * stretch


def _clipped(u, square, clip_threshold):
    """``u`` scaled down to a root mean square of ``clip_threshold``; ``square`` is its mean square over all shards."""
    return u / mint.clamp(mint.sqrt(square) / clip_threshold, min=1.0)


def factored(
    ones, factor, lr, *, beta1, beta2, beta3, rest1, rest2, rest3, eps1, eps2, clip_threshold, weight_decay, sharded,
    rows, shards_mean, stretch=1.0,
):  # fmt: skip
    """One step of tensors of two or more dimensions. Each of ``ones`` holds value, gradient, m ``[.., r, c]``, two
    averages of rows ``[.., r]`` and of columns ``[.., c]`` -> ``(value, m, v_row, v_column, residual_row,
    residual_column)`` of the first, then of the next.

    ``rest`` are 1 - beta. Where tensors are ``sharded``, ``shards_mean`` completes what needs all shards, for all
    tensors in one message: where a shard holds only some ``rows`` column means and normalisers, twice, and mean
    squares. ``stretch`` is rows with padding over rows without.
    """
    gradients, v_rows, means = (), (), ()
    for p in ones:
        gradient = p["gradient"].astype(ms.float32) * factor
        square = gradient * gradient + eps1
        v_row = beta2 * p["v_row"] + rest2 * mint.mean(square, dim=-1)
        gradients = (*gradients, gradient)
        v_rows = (*v_rows, v_row)
        means = means + _means_of_rows(p, square, v_row)
    if rows:
        means = _over_shards(means, shards_mean)
    updates, v_columns, squares = (), (), ()
    for i in range(len(ones)):
        row_stretch = stretch if len(gradients[i].shape) == 2 else 1.0
        v_column = beta2 * ones[i]["v_column"] + rest2 * _stretched(means[2 * i], row_stretch)
        v_mean = _stretched(means[2 * i + 1], row_stretch)
        u = _inverse_root(v_rows[i], v_column, v_mean) * gradients[i]
        updates = (*updates, u)
        v_columns = (*v_columns, v_column)
        squares = (*squares, mint.mean(u * u))
    if sharded:
        squares = _over_shards(squares, shards_mean)
    moments, r_rows, means = (), (), ()
    for i in range(len(ones)):
        u = _clipped(updates[i], _stretched(squares[i], stretch), clip_threshold)
        m = beta1 * ones[i]["m"] + rest1 * u
        residual = (u - m) * (u - m) + eps2
        r_row = beta3 * ones[i]["residual_row"] + rest3 * mint.mean(residual, dim=-1)
        moments = (*moments, m)
        r_rows = (*r_rows, r_row)
        means = means + _means_of_rows(ones[i], residual, r_row)
    if rows:
        means = _over_shards(means, shards_mean)
    results = ()
    for i in range(len(ones)):
        row_stretch = stretch if len(gradients[i].shape) == 2 else 1.0
        r_column = beta3 * ones[i]["residual_column"] + rest3 * _stretched(means[2 * i], row_stretch)
        r_mean = _stretched(means[2 * i + 1], row_stretch)
        value = ones[i]["value"] - (lr * weight_decay) * ones[i]["value"]
        value = value - lr * (_inverse_root(r_rows[i], r_column, r_mean) * moments[i])
        results = (*results, value, moments[i], v_rows[i], v_columns[i], r_rows[i], r_column)
    return results


def unfactored(
    ones, factor, lr, *, beta1, beta2, rest1, rest2, eps1, clip_threshold, weight_decay, sharded, shards_mean,
    stretch=1.0,
):  # fmt: skip
    """One step of vectors: each of ``ones`` holds value, gradient, m, v ``[n]`` -> ``(value, m, v)`` of the first, then
    of the next; no residual is kept."""
    updates, vs, squares = (), (), ()
    for p in ones:
        gradient = p["gradient"].astype(ms.float32) * factor
        v = beta2 * p["v"] + rest2 * (gradient * gradient + eps1)
        u = mint.rsqrt(v) * gradient
        updates = (*updates, u)
        vs = (*vs, v)
        squares = (*squares, mint.mean(u * u))
    if sharded:
        squares = _over_shards(squares, shards_mean)
    results = ()
    for i in range(len(ones)):
        u = _clipped(updates[i], _stretched(squares[i], stretch), clip_threshold)
        m = beta1 * ones[i]["m"] + rest1 * u
        value = ones[i]["value"] - (lr * weight_decay) * ones[i]["value"]
        results = (*results, value - lr * m, m, vs[i])
    return results


def _step(ones, factor, lr, **hyper):
    if "v_row" in ones[0]:
        return factored(ones, factor, lr, **hyper)
    return unfactored(ones, factor, lr, **hyper)


def update(ones, factor, lr, *, sharded, **hyper):
    """``factored`` or ``unfactored``, whichever state the tensors ``ones`` of a bundle hold.

    Side by side where they exchange something; else one after the other, which needs less memory.
    """
    if sharded:
        return _step(ones, factor, lr, sharded=True, **hyper)
    results = ()
    for p in ones:
        results = results + _step((p,), factor, lr, sharded=False, **hyper)
    return results


def _in_place(bundle, factor, lr, *, sharded, shards_mean, rows=False, **hyper):
    """``update`` of tensors that are in one piece, by a kernel; None where there is none."""
    del shards_mean, rows  # of parts only
    return None if sharded else ops.came_in_place(bundle, factor, lr, **hyper)


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
        self._parts, statics, valid = parts, [], []
        rates = decayed(parameters, decay, weight_decay)
        for q, part, padded, decay_rate in zip(parameters, parts, rows, rates, strict=True):
            mean = shards_mean if part else unsharded
            static = {"clip_threshold": clip_threshold, "weight_decay": decay_rate, "shards_mean": mean, "eps1": eps[0]}
            static["sharded"] = part
            static |= {"beta1": betas[0], "rest1": 1.0 - betas[0], "beta2": betas[1], "rest2": 1.0 - betas[1]}
            if len(q.shape) >= 2:
                # Only of a matrix is dimension 0, along which shards are cut, the dimension of rows.
                static["rows"] = part and len(q.shape) == 2
                static |= {"beta3": betas[2], "rest3": 1.0 - betas[2], "eps2": eps[1]}
            if padded is not None:
                static["stretch"] = padded[1]
            # Only rows of matrices take part in a mean with others.
            valid.append({"valid": ms.Tensor(padded[0])} if padded is not None and len(q.shape) == 2 else {})
            statics.append(static)
        states = [_zero_state(tuple(q.shape)) for q in parameters]
        super().__init__(parameters, states, update, statics, _in_place, bundled=True)
        self._constants = valid

    def exchanged(self) -> list[int]:
        """Elements of each mean over the processes that one step asks for, in order."""
        sizes: list[int] = []
        for bundle in self._for_each.bundles:
            if not self._parts[bundle[0]]:
                continue
            shapes = [tuple(self.parameters[index].shape) for index in bundle]
            # Tensors of a bundle have equal settings, so they all are matrices or none is.
            columns = [sum(shape[1] + 1 for shape in shapes)] if len(shapes[0]) == 2 else []
            sizes += [*columns, len(shapes), *columns]
        return sizes


def _zero_state(shape: tuple[int, ...]) -> State:
    if len(shape) < 2:
        return {"m": zeros(shape), "v": zeros(shape)}
    row, column = shape[:-1], (*shape[:-2], shape[-1])
    return {
        "m": zeros(shape), "v_row": zeros(row), "v_column": zeros(column), "residual_row": zeros(row),
        "residual_column": zeros(column),
    }  # fmt: skip
