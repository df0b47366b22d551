"""Compiling pure functions once for all blocks, and recomputing them in the backward pass (docs/design/003, 009).

``core.ops.configure`` chooses the mode; callers take these functions from ``core.ops``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import mindspore as ms
from mindspore import nn
from mindspore import ops as _ops

Mode = Literal["pynative", "graph"]


@dataclass
class Runtime:
    """What ``core.ops.configure`` was told."""

    device: str = "CPU"
    mode: Mode = "pynative"
    jit_level: str = "O0"
    kernels: str = "operators: not configured"
    launch: str = "asynchronous"


runtime = Runtime()


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
    No gradient is computed for the parameters that ``p.frozen`` names (``Model.block``): a LoRA's base.
    """
    return _per_signature(fn, _Recomputed)


def recomputed_keeping(fn: Callable, again: Callable) -> Callable:
    """``recomputed`` with something kept that would be dear to compute again (attention).

    Args:
        fn: ``fn(p, *tensors, **static) -> (first, second, *kept)``; runs in the forward pass.
        again: ``again(p, *tensors, kept, **static) -> (first, second)``, the same values with the help of ``kept``;
            runs in the backward pass and is differentiated by everything but ``kept``.

    Returns:
        A function of ``fn``'s arguments that returns ``(first, second)``.
    """
    run = _per_signature(fn, _Recomputed, again)

    def call(p: dict, *tensors, **static):
        return run(p, *tensors, **static)[:2]

    return call


def _per_signature(fn: Callable, build: Callable, again: Callable | None = None) -> Callable:
    cache: dict = {}

    def call(p: dict, *tensors, **static):
        source = getattr(p, "source", None)
        if source is not None and build is _flat_compiled:
            p, source = p.whole(), None  # type: ignore[attr-defined]  # only core.model.Handed has a source
        if runtime.mode == "pynative" and build is _flat_compiled:
            return fn(p, *tensors, **static)
        absent = tuple(t is None for t in tensors)
        frozen = getattr(p, "frozen", frozenset())
        key = (tuple(p), frozen, absent, tuple(sorted(static.items())), runtime.mode, runtime.jit_level, source)
        if key not in cache:
            count = absent.count(False)
            wanted = (*range(count), *(count + i for i, name in enumerate(p) if name not in frozen))
            # The backward graph of a compiled function computes the gradients of all inputs but where it is stopped.
            stopped = tuple(build is _flat_compiled and name in frozen for name in p)
            flats = [_flat(f, tuple(p), absent, static, stopped) for f in (fn, again) if f is not None]
            places = () if source is None else tuple(count + tuple(p).index(name) for name in source.names)
            cache[key] = build(*flats, wanted=wanted, source=source, places=places)
        run = cache[key] if source is None else cache[key].of(source)
        return run(*[t for t in tensors if t is not None], *p.values())

    return call


def _flat(fn: Callable, names: tuple, absent: tuple, static: dict, stopped: tuple[bool, ...]) -> Callable:
    count = len([a for a in absent if not a])

    def flat(*values):
        p = {}
        for i in range(len(names)):
            p[names[i]] = _ops.stop_gradient(values[count + i]) if stopped[i] else values[count + i]
        tensors = []
        j = 0
        for a in absent:
            if a:
                tensors.append(None)
            else:
                tensors.append(values[j])
                j = j + 1
        if len(values) > count + len(names):
            tensors.append(values[count + len(names) :])
        return fn(p, *tensors, **static)

    return flat


def _flat_compiled(
    flat: Callable, wanted: tuple[int, ...] = (), source: Any = None, places: tuple[int, ...] = ()
) -> Callable:
    assert source is None
    return ms.jit(flat, jit_level=runtime.jit_level)


class _Recomputed(nn.Cell):
    """A custom ``bprop`` keeps inputs and output only; it differentiates the function anew.

    With ``keeping`` it differentiates that one instead, which also gets what ``flat`` returns behind its pair.
    With ``source`` the inputs at ``places`` are parts of parameters, whole only while a pass computes with them.
    """

    def __init__(
        self, flat: Callable, keeping: Callable | None = None, *, wanted: tuple[int, ...], source: Any = None,
        places: tuple[int, ...] = (), functions: tuple[Callable, Callable, Callable] | None = None,
    ):  # fmt: skip
        super().__init__()
        self._source, self._places, self._wanted = source, places, wanted
        self._functions = functions or self._made(flat, keeping, wanted)
        self._others: dict[Any, _Recomputed] = {}

    def of(self, source: Any) -> _Recomputed:
        """The same compiled functions with another block's ``source``, which knows whose parameters it gathers."""
        if source.place == self._source.place:
            return self
        if source.place not in self._others:
            others = {"wanted": self._wanted, "source": source, "places": self._places, "functions": self._functions}
            self._others[source.place] = _Recomputed(self._functions[0], **others)
        return self._others[source.place]

    @staticmethod
    def _made(flat: Callable, keeping: Callable | None, wanted: tuple[int, ...]) -> tuple[Callable, Callable, Callable]:
        again = flat if keeping is None else keeping

        # The gradient of sum(output * g) is the output's gradient g carried back, here to chosen inputs only.
        def weighted_one(*values):
            return (again(*values[:-1]) * values[-1]).sum()

        def weighted_pair(*values):
            first, second = again(*values[:-2])
            return (first * values[-2]).sum() + (second * values[-1]).sum()

        positions: Any = wanted  # the annotation of ``ms.grad`` forgets tuples of positions, its documentation has them
        gradient_one, gradient_pair = ms.grad(weighted_one, positions), ms.grad(weighted_pair, positions)

        def backward_one(*values):
            return gradient_one(*values)

        def backward_pair(*values):
            # A tuple as an argument would be a constant of the graph: compiled anew, with old numbers, at each call.
            return gradient_pair(*values)

        wrap = _flat_compiled if runtime.mode == "graph" else lambda f: f
        return wrap(flat), wrap(backward_one), wrap(backward_pair)

    def _whole(self, values):
        if self._source is None:
            return values
        full = self._source.gather([values[place] for place in self._places])
        found = dict(zip(self._places, full, strict=True))
        return [found.get(place, value) for place, value in enumerate(values)]

    def construct(self, *values):
        return self._functions[0](*self._whole(values))

    def bprop(self, *values):
        """``values``: the inputs, the output, the output's gradient (of one tensor or a pair and what is kept)."""
        gradient = values[-1]
        # Detached: in PyNative the inner differentiation would otherwise touch gradients the outer one has collected.
        inputs = self._whole([_ops.stop_gradient(v) for v in values[:-2]])
        pair = isinstance(gradient, tuple)
        kept = [_ops.stop_gradient(v) for v in values[-2][2:]] if pair else []
        _, one_output, two_outputs = self._functions
        found = two_outputs(*inputs, *kept, *gradient[:2]) if pair else one_output(*inputs, gradient)
        gradients: list = [None] * len(inputs)
        for position, value in zip(self._wanted, found, strict=True):
            gradients[position] = value
        if self._source is not None:
            parts = self._source.scatter([gradients[place] for place in self._places])
            for place, part in zip(self._places, parts, strict=True):
                gradients[place] = part
        return tuple(gradients)


def value_and_gradients(fn: Callable, parameters: Sequence, *, has_aux: bool = False) -> Callable[..., Any]:
    """A function of ``fn``'s arguments that returns ``(fn's scalar, gradients in the parameters' order)``.

    With ``has_aux``, ``fn`` returns a tuple; its first scalar is differentiated, the whole tuple handed out.
    """
    return ms.value_and_grad(fn, None, list(parameters), has_aux)  # type: ignore[arg-type]  # annotation forgets None
