"""The optimiser inside the backward pass: each hand-out's gradients are used and freed as soon as they are there.

So no more than one block's gradients exist at a time, in place of all (arXiv:2306.09782, torchtune's
``optimizer_in_bwd``). What needs all gradients before the first update can't be had: sums over micro-batches or
processes, and skipping a step whose gradients overflow. Clipping by the global norm takes a pass of its own before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mindspore as ms
from mindspore import mint

from core.model import Model
from core.optim.clip import square_sum
from core.parallel.arriving import Arriving, zeros_of
from core.parallel.zero import Zero


class InBackward:
    """Updates ``zero``'s parameters while a backward pass of ``model`` computes their gradients.

    Args:
        model: hands its parameters out through this object from now on.
        zero: of one process and stage 0: what is trained, and the masters where there are some.
        optimizer: of ``zero.parameters``.

    Attributes:
        variables: what the loss is differentiated by.
        largest: bytes of the gradients that existed at once, at most.
    """

    def __init__(self, model: Model, zero: Zero, optimizer: Any):
        assert zero.stage == 0, "gradients in shards are summed first"
        assert zero.group.size == 1, "gradients of several processes are summed first"
        self._whole, self._names, self._optimizer = zero.whole, zero.names, optimizer
        self._index = {name: index for index, name in enumerate(self._names)}
        self._arriving = Arriving(zero.whole, self._update)
        self.variables = self._arriving.variables
        self.largest = 0
        self._factor = self._squares = ms.Tensor(0.0, ms.float32)
        self._measuring = False
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
        return self._arriving.full([self._index[name] for name in names])

    # What a training step asks.

    def measure(self) -> None:
        """The forward and backward pass that follows is for the gradients' norm alone."""
        self._measuring, self._squares = True, ms.Tensor(0.0, ms.float32)
        self._arriving.begin()

    def begin(self, lr: float, factor: ms.Tensor) -> None:
        """The forward and backward pass that follows is a step's; ``factor``, a scalar, multiplies its gradients."""
        self._measuring, self._factor, self._squares = False, factor, ms.Tensor(0.0, ms.float32)
        self._optimizer.begin(lr)
        self._arriving.begin()

    def finish(self) -> Any:
        """Ends the pass; the gradients' norm, before ``factor``.

        Parameters that nothing was computed with have no gradient: theirs is taken as zero, as everywhere.
        """
        rest = self._arriving.finish()
        if not self._measuring:
            self._update(rest, zeros_of([self._whole[place] for place in rest]))
        return mint.sqrt(self._squares)

    def _update(self, places: list[int], gradients: list[Any]) -> None:
        if places:
            self.largest = max(self.largest, sum(g.size * g.itemsize for g in gradients))
            named = {self._names[place]: gradient for place, gradient in zip(places, gradients, strict=True)}
            self._squares = self._squares + square_sum(named)
            if not self._measuring:
                self._optimizer.update_some(places, gradients, self._factor)
