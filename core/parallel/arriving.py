"""Whole parameters whose gradients leave the backward pass as soon as they are there, so that none waits for the rest.

The optimiser in the backward pass (``core.train.in_backward``) uses them up at once; ZeRO stages 0 and 1 add them to
the sum of a step and send them in buckets (``core.parallel.reducing``). Automatic differentiation keeps nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
from mindspore import mint, nn, ops

Take = Callable[[list[int], list[Any]], None]  # places of parameters and their gradients


def whole(parameter: ms.Parameter) -> ms.Tensor:
    """The parameter as a tensor, for a Cell with a ``bprop`` to hand out: not as a view, which products would copy."""
    alias: Any = ops.stop_gradient(parameter)
    return alias


class _HandOut(nn.Cell):
    """Parameters as they are; their gradients end here. ``trigger``, the only variable, is why anybody comes by."""

    def __init__(self, arrived: Callable[[Sequence[Any]], None]):
        super().__init__()
        self._arrived = arrived

    def construct(self, trigger, *parameters):
        return tuple(whole(q) for q in parameters)

    def bprop(self, trigger, *values):
        gradients = values[-1] if isinstance(values[-1], tuple) else (values[-1],)
        self._arrived(gradients)
        return (trigger * 0.0, *(None for _ in gradients))


class Arriving:
    """Hands ``parameters`` out and gives each pass's gradients to ``take``, each parameter's once.

    Attributes:
        variables: what the loss is differentiated by: a number that it does not depend on.
    """

    def __init__(self, parameters: Sequence[ms.Parameter], take: Take):
        self._whole, self._take = list(parameters), take
        self._cells: dict[tuple[int, ...], _HandOut] = {}
        self.variables = [ms.Parameter(ms.Tensor(0.0, ms.float32), name="arriving.trigger")]
        self._open = False
        self._left: Counter[int] = Counter()
        self._waiting: dict[int, Any] = {}
        self._taken: set[int] = set()
        for parameter in parameters:
            parameter.requires_grad = False

    def full(self, places: Sequence[int]) -> list[Any]:
        """The parameters with these numbers, whose gradients arrive."""
        key = tuple(places)
        if key not in self._cells:
            self._cells[key] = _HandOut(lambda gradients: self._arrived(key, gradients))
        if self._open:
            self._left.update(key)
        result: Any = self._cells[key](*self.variables, *(self._whole[place] for place in key))
        return list(result) if isinstance(result, tuple) else [result]

    def begin(self) -> None:
        """A forward and backward pass begins."""
        self._left, self._waiting, self._taken, self._open = Counter(), {}, set(), True

    def finish(self) -> list[int]:
        """The pass is over: the rest is taken; the numbers of the parameters that nothing was computed with.

        Of those handed out more than once not every hand-out need have been used.
        """
        self._open = False
        self._give({place: self._waiting.pop(place) for place in sorted(self._waiting)})
        return [place for place in range(len(self._whole)) if place not in self._taken]

    def _arrived(self, places: Sequence[int], gradients: Sequence[Any]) -> None:
        """From inside the backward pass. Of what was handed out twice the gradient comes in two pieces."""
        if not self._open:
            return
        ready: dict[int, Any] = {}
        for place, gradient in zip(places, gradients, strict=True):
            before = self._waiting.pop(place, None)
            total = gradient if before is None else before + gradient
            self._left[place] -= 1
            kept = self._waiting if self._left[place] else ready
            kept[place] = total
        self._give(ready)

    def _give(self, ready: dict[int, Any]) -> None:
        self._taken.update(ready)
        places, gradients = list(ready), list(ready.values())
        ready.clear()
        self._take(places, gradients)


def zeros_of(parameters: Sequence[ms.Parameter]) -> list[Any]:
    """Gradients of what nothing was computed with."""
    return [mint.zeros(tuple(q.shape), dtype=q.dtype) for q in parameters]
