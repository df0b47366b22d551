"""The feed-forward in pieces of tokens, forward and backward: its hidden layer never exists whole (docs/design/019).

Letters: R tokens of all samples, D width, F hidden width (4 D), r LoRA rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
from mindspore import mint, nn
from mindspore import ops as _ops

from core import ops
from core.transformer import layers
from core.transformer.kept import pieces

NAMES = ("ff.net.0.proj", "ff.net.2")
_PARTS = ("weight", "bias", "lora_A.weight", "lora_B.weight")

# Primitives, and functions of which construct and bprop each have their own: see core.ops_cpu on the graph compiler.
_product: Any = _ops.MatMul()
_product_of_rows: Any = _ops.MatMul(transpose_b=True)
_product_of_columns: Any = _ops.MatMul(transpose_a=True)


def _dense(x, weight, bias, a, b, lora):
    """``core.ops.dense`` with the LoRA ``a, b``, if it has one."""
    out = ops.linear(x, weight, bias)
    return out + ops.linear(ops.linear(x, a), b) if lora else out


def _dense_again(x, weight, bias, a, b, lora):
    out = _ops.bias_add(_product_of_rows(x, weight.astype(x.dtype)), bias.astype(x.dtype))
    return out + _product_of_rows(_narrow(x, a), b.astype(x.dtype)) if lora else out


def _narrow(x, a):
    return _product_of_rows(x, a.astype(x.dtype))


def _dense_gradient(x, grad, weight, a, b, lora, trained, sums):
    """Of ``_dense``: ``x``'s gradient, and ``sums`` (fp32) with those of weight, bias, a and b that are trained added.

    One product is there beside its sum at a time: a weight of the 5B is 151 MB in fp32.
    """
    dx = _product(grad, weight.astype(x.dtype))
    sweight = _added(sums[0], _product_of_columns(grad, x)) if trained[0] else None
    sbias = _added(sums[1], grad.astype(ms.float32).sum(0)) if trained[1] else None
    if not lora:
        return dx, sweight, sbias, None, None
    dnarrow = _product(grad, b.astype(x.dtype))
    sa = _added(sums[2], _product_of_columns(dnarrow, x)) if trained[2] else None
    sb = _added(sums[3], _product_of_columns(grad, _narrow(x, a))) if trained[3] else None
    return dx + _product(dnarrow, a.astype(x.dtype)), sweight, sbias, sa, sb


def _added(total, found):
    return found.astype(ms.float32) if total is None else total + found.astype(ms.float32)


def _gradient(total, tensor):
    return _ops.zeros_like(tensor) if total is None else total.astype(tensor.dtype)


class _Pieces(nn.Cell):
    """``x [R, D]``, weight, bias and LoRA of each layer ``-> [R, D]``; keeps its arguments for the gradient.

    A transformer block calls it once: where a compiled function calls a Cell with a ``bprop`` twice, MindSpore 2.10
    mixes them up (docs/design/002).
    """

    def __init__(self, chunk: int, lora: tuple[bool, bool], trained: tuple[bool, ...]):
        super().__init__()
        self._chunk, self._lora, self._trained = chunk, lora, trained

    def construct(self, x, weight1, bias1, a1, b1, weight2, bias2, a2, b2):
        rows = x.shape[0]
        count = pieces(rows, self._chunk)
        outs = []
        for i in range(count):
            hidden = _dense(x[i * rows // count : (i + 1) * rows // count], weight1, bias1, a1, b1, self._lora[0])
            outs.append(_dense(ops.gelu_tanh(hidden), weight2, bias2, a2, b2, self._lora[1]))
        return mint.cat(outs, 0)

    def _piece(self, x, grad, weight1, bias1, a1, b1, weight2, a2, b2, sums):
        """``x``'s gradient and ``sums`` with those of one piece, whose hidden layer is made again and goes with it."""
        hidden = _dense_again(x, weight1, bias1, a1, b1, self._lora[0])
        dhidden, *second = _dense_gradient(
            ops.gelu_tanh_again(hidden), grad, weight2, a2, b2, self._lora[1], self._trained[4:], sums[4:]
        )
        dhidden = ops.gelu_tanh_gradient(hidden, dhidden)
        dx, *first = _dense_gradient(x, dhidden, weight1, a1, b1, self._lora[0], self._trained[:4], sums[:4])
        return dx, *first, *second

    def bprop(self, x, weight1, bias1, a1, b1, weight2, bias2, a2, b2, out, grad):
        rows = x.shape[0]
        count = pieces(rows, self._chunk)
        dxs = []
        sums = [None] * 8
        for i in range(count):
            start, stop = i * rows // count, (i + 1) * rows // count
            dx, *sums = self._piece(x[start:stop], grad[start:stop], weight1, bias1, a1, b1, weight2, a2, b2, sums)
            dxs.append(dx)
        given = (weight1, bias1, a1, b1, weight2, bias2, a2, b2)
        gradients = [_gradient(sums[k], given[k]) for k in range(8)]
        return (mint.cat(dxs, 0), *gradients)


class ChunkedFeedForward:
    """``layers.feed_forward`` for whoever hands a block's parameters out.

    Args:
        chunk: tokens of a piece, at most.
    """

    def __init__(self, chunk: int):
        self._chunk = chunk
        self._functions: dict[tuple, Callable] = {}

    def of(self, handed: Any) -> Callable:
        """The function ``(p, x [B, S, D]) -> [B, S, D]`` for a block like ``handed``: with its LoRA, if it has one,
        and without gradients for what is frozen. The same object for like blocks, which share a compiled function."""
        lora = tuple(f"{name}.lora_A.weight" in handed for name in NAMES)
        names = tuple(f"{name}.{part}" for name in NAMES for part in _PARTS)
        trained = tuple(name in handed and name not in handed.frozen for name in names)
        if (lora, trained) not in self._functions:
            self._functions[lora, trained] = _function(self._chunk, names, (lora[0], lora[1]), trained)
        return self._functions[lora, trained]


def _function(chunk: int, names: tuple[str, ...], lora: tuple[bool, bool], trained: tuple[bool, ...]) -> Callable:
    cell: Any = _Pieces(chunk, lora, trained)
    absent = ms.Tensor(0.0, ms.float32)

    def feed_forward(p, x_BSD):
        batch, length, width = x_BSD.shape
        if batch * length <= chunk:
            return layers.feed_forward(p, x_BSD)
        tensors = []
        for name in names:
            tensors.append(p.get(name, absent))
        return cell(x_BSD.reshape(batch * length, width), *tensors).reshape(batch, length, width)

    return feed_forward
