"""The optimiser inside the backward pass: each hand-out's gradients are used and freed as soon as they are there.

So no more than one block's gradients exist at a time, in place of all (arXiv:2306.09782, torchtune's
``optimizer_in_bwd``). What needs all gradients before the first update can't be had: clipping by the global norm, sums
over micro-batches or processes, and skipping a step whose gradients overflow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
from mindspore import mint, nn

from core.model import Model
from core.optim.clip import square_sum
from core.parallel.reducing import whole
from core.parallel.zero import Zero


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


class InBackward:
    """Updates ``zero``'s parameters while a backward pass of ``model`` computes their gradients.

    Args:
        model: hands its parameters out through this object from now on.
        zero: of one process and stage 0: what is trained, and the masters where there are some.
        optimizer: of ``zero.parameters``.

    Attributes:
        variables: what the loss is differentiated by: a number that it does not depend on.
        largest: bytes of the gradients that existed at once, at most.
    """

    def __init__(self, model: Model, zero: Zero, optimizer: Any):
        assert zero.stage == 0, "gradients in shards are summed first"
        assert zero.group.size == 1, "gradients of several processes are summed first"
        self._whole, self._names, self._optimizer = zero.whole, zero.names, optimizer
        self._index = {name: index for index, name in enumerate(self._names)}
        self._cells: dict[tuple[str, ...], _HandOut] = {}
        self.variables = [ms.Parameter(ms.Tensor(0.0, ms.float32), name="in_backward.trigger")]
        self.largest = 0
        self._open = False
        self._handed: Counter[int] = Counter()
        self._waiting: dict[int, Any] = {}
        self._factor = self._squares = ms.Tensor(0.0, ms.float32)
        for parameter in zero.whole:
            parameter.requires_grad = False
        model.keep_in(self)

    # What the model asks while it hands parameters out.

    def keeps(self, name: str) -> bool:
        """Whether ``name`` is trained."""
        return name in self._index

    def lazy(self) -> bool:
        """Parameters are whole all the time."""
        return False

    def full(self, names: Sequence[str]) -> list[Any]:
        """The parameters, whose gradients arrive here."""
        places = tuple(self._index[name] for name in names)
        key = tuple(names)
        if key not in self._cells:
            self._cells[key] = _HandOut(lambda gradients: self._arrived(places, gradients))
        if self._open:
            self._handed.update(places)
        result: Any = self._cells[key](*self.variables, *(self._whole[place] for place in places))
        return list(result) if isinstance(result, tuple) else [result]

    # What a training step asks.

    def begin(self, lr: float, factor: float) -> None:
        """The forward and backward pass that follows is a step's; ``factor`` multiplies its gradients."""
        self._handed, self._waiting = Counter(), {}
        self._factor, self._squares = ms.Tensor(factor, ms.float32), ms.Tensor(0.0, ms.float32)
        self._optimizer.begin(lr)
        self._open = True

    def finish(self) -> Any:
        """Ends the step; the gradients' norm, before ``factor``.

        Parameters that nothing was computed with have no gradient: theirs is taken as zero, as everywhere. Of those
        handed out more than once not every hand-out need have been used.
        """
        self._open = False
        waiting = sorted(self._waiting)
        self._update(waiting, [self._waiting.pop(place) for place in waiting])
        rest = [place for place in range(len(self._whole)) if place not in self._handed]
        whole = (self._whole[place] for place in rest)
        self._update(rest, [mint.zeros(tuple(q.shape), dtype=q.dtype) for q in whole])
        return mint.sqrt(self._squares)

    def _arrived(self, places: Sequence[int], gradients: Sequence[Any]) -> None:
        """From inside the backward pass. Of what was handed out twice the gradient comes in two pieces."""
        if not self._open:
            return
        ready = []
        for place, gradient in zip(places, gradients, strict=True):
            before = self._waiting.pop(place, None)
            total = gradient if before is None else before + gradient
            self._handed[place] -= 1
            if self._handed[place]:
                self._waiting[place] = total
            else:
                ready.append((place, total))
        self.largest = max(self.largest, sum(g.size * g.itemsize for g in gradients))
        self._update([place for place, _ in ready], [gradient for _, gradient in ready])

    def _update(self, places: list[int], gradients: list[Any]) -> None:
        if places:
            named = {self._names[place]: gradient for place, gradient in zip(places, gradients, strict=True)}
            self._squares = self._squares + square_sum(named)
            self._optimizer.update_some(places, gradients, self._factor)
