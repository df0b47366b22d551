"""Exponential moving average of parameters, in fp32, and a way to look at a model with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import mindspore as ms
import numpy as np

from core import ops
from core.optim.base import State, restored
from core.optim.foreach import ForEach


def ema_decay(step: int, decay: float, *, warmup: bool) -> float:
    """Decay at optimiser step ``step`` (from 0): ``decay``, with ``warmup`` at most ``1 - (1 + step)^(-2/3)``.

    The warm-up (diffusers' ``use_ema_warmup``, Katherine Crowson's formula) forgets the start: the first update copies.
    """
    return min(decay, 1.0 - (1.0 + step) ** (-2.0 / 3.0)) if warmup else decay


def update(p, rest):
    """``average + rest (value - average)``: a value that stands still does not move its average by rounding."""
    average = p["average"]
    return (average + rest * (p["value"].astype(ms.float32) - average),)


class EMA:
    """fp32 averages of parameters, started at their values.

    Args:
        parameters: parameters with distinct names, weights loaded.
        decay: share of the average that stays at each update (the original's: 0.9999).
        warmup: begin with a smaller decay (``ema_decay``).
    """

    def __init__(self, parameters: Sequence[ms.Parameter], decay: float, *, warmup: bool):
        self.parameters = list(parameters)
        self.names = [f"ema.{q.name}" for q in self.parameters]
        assert len(set(self.names)) == len(self.names), "two parameters have one name"
        self.decay, self.warmup = decay, warmup
        self.averages = [q.astype(ms.float32).copy() for q in self.parameters]
        self._swapped = False
        shapes = [tuple(q.shape) for q in self.parameters]
        types = [str(q.dtype) for q in self.parameters]
        self._for_each = ForEach(update, shapes, types, [{}] * len(shapes), in_place=ops.averaged_in_place)

    def update(self, step: int, values: Sequence[ms.Tensor] | None = None) -> None:
        """Moves the averages towards the parameters after optimiser step ``step`` (from 0).

        Args:
            step: the decay is a function of it.
            values: what to average instead of the parameters: the optimiser's ``values()``, where these are masters of
                half-precision parameters.
        """
        assert not self._swapped, "the parameters hold the averages"
        given = self.parameters if values is None else values
        assert len(given) == len(self.parameters), (len(given), len(self.parameters))
        rest = ms.Tensor(1.0 - ema_decay(step, self.decay, warmup=self.warmup), ms.float32)

        def read(index: int) -> State:
            return {"average": self.averages[index], "value": given[index]}

        def write(index: int, results: tuple) -> None:
            self.averages[index] = results[0]

        self._for_each(read, write, rest)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the parameters hold the averages (rounded to their type); after it, exactly their own bits again.

        The bits wait in host memory, so the device needs none; they come back after an exception, too.
        """
        assert not self._swapped, "the parameters hold the averages already"
        # A copy: asnumpy may share memory, and updates write there.
        own = [parameter.asnumpy().copy() for parameter in self.parameters]
        self._swapped = True
        try:
            for parameter, average in zip(self.parameters, self.averages, strict=True):
                # A copy: whatever happens to the parameter inside must not reach the average.
                parameter.set_data(average.astype(parameter.dtype).copy())
            yield
        finally:
            for parameter, bits in zip(self.parameters, own, strict=True):
                parameter.set_data(ms.Tensor(bits, parameter.dtype))
            self._swapped = False

    def state(self) -> dict[str, np.ndarray]:
        """Copies of the averages: ``ema.<parameter>``, fp32."""
        return {name: t.asnumpy().copy() for name, t in zip(self.names, self.averages, strict=True)}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Takes over what ``state()`` returned.

        Raises:
            WeightsError: a name is missing or unknown, or a shape or type differs; nothing was taken over.
        """
        shapes = {name: tuple(q.shape) for name, q in zip(self.names, self.parameters, strict=True)}
        tensors = restored("state of EMA", shapes, state)
        self.averages = [tensors[name] for name in self.names]

    def state_bytes(self) -> dict[str, int]:
        """Bytes held: ``{"ema": ..}``."""
        return {"ema": sum(t.size * t.itemsize for t in self.averages)}
