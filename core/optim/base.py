"""What every optimiser has: parameters, fp32 state by name, a step over all of them, exact saving and loading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import mint

from core.errors import WeightsError
from core.optim.foreach import ForEach

State = dict[str, ms.Tensor]


def zeros(shape: tuple[int, ...]) -> ms.Tensor:
    """fp32 zeros."""
    return mint.zeros(tuple(shape), dtype=ms.float32)


def restored(source: str, shapes: dict[str, tuple[int, ...]], arrays: dict[str, np.ndarray]) -> State:
    """fp32 tensors of exactly the names and shapes of ``shapes``, copied from ``arrays``.

    Raises:
        WeightsError: names are missing or too many, or a shape or type differs; the text lists them.
    """
    problems = [f"{name} is missing" for name in shapes if name not in arrays]
    problems += [f"{name} is unknown" for name in arrays if name not in shapes]
    for name, shape in shapes.items():
        array = arrays.get(name)
        if array is not None and (tuple(array.shape) != tuple(shape) or array.dtype != np.float32):
            problems.append(f"{name}: got {array.dtype} {list(array.shape)}, need float32 {list(shape)}")
    if problems:
        raise WeightsError(source, problems)
    return {name: ms.Tensor(np.array(arrays[name])) for name in shapes}


class Optimizer:
    """State of named parameters and one update of all of them.

    State is fp32 whatever the parameters' type. A bf16 or fp16 parameter has an fp32 master copy, taken when the
    optimiser is built (so load weights first): the step changes the master and stores its rounding in the parameter.

    Args:
        parameters: trainable parameters with distinct names.
        states: zero state of each, field -> tensor.
        update: ``update(one, *scalars, **static) -> (value, *fields of the state, in order)``; ``one`` holds ``value``
            and the state in fp32, and ``gradient`` in its own type.
        statics: compiled-in keyword arguments of ``update`` for each parameter.
        in_place, bundled: see ``core.optim.foreach.ForEach``.
    """

    def __init__(
        self,
        parameters: Sequence[ms.Parameter],
        states: Sequence[State],
        update: Callable,
        statics: Sequence[dict[str, Any]],
        in_place: Callable | None = None,
        *,
        bundled: bool = False,
    ):
        self.parameters = list(parameters)
        self.names = [str(q.name) for q in self.parameters]
        assert len(set(self.names)) == len(self.names), "two parameters have one name"
        self.step_count = 0
        self.states = [dict(state) for state in states]
        self._constants: list[State] = [{} for _ in self.parameters]  # more that ``update`` reads and nothing changes
        self.masters = {index: q.astype(ms.float32) for index, q in enumerate(self.parameters) if q.dtype != ms.float32}
        self._now: tuple[ms.Tensor, ...] = ()  # what ``scalars`` gave for this step
        self._some: dict[tuple[int, ...], ForEach] = {}
        shapes = [tuple(q.shape) for q in self.parameters]
        self._for_each = ForEach(
            update, shapes, [str(q.dtype) for q in self.parameters], statics, in_place, bundled=bundled
        )

    def scalars(self, lr: float) -> tuple[ms.Tensor, ...]:
        """What ``update`` receives before the gradients' factor; ``step_count`` is already that of this step."""
        return (ms.Tensor(lr, ms.float32),)

    def step(self, gradients: Sequence[ms.Tensor], lr: float, factor: ms.Tensor | float = 1.0) -> None:
        """Updates every parameter in place.

        Args:
            gradients: in the parameters' order.
            lr: learning rate.
            factor: scalar that every gradient is multiplied by in fp32 (clipping, accumulation, 1 / loss scale).
        """
        self.begin(lr)
        everything = range(len(self.parameters))
        self._run(self._for_each, everything, gradients, factor)

    def begin(self, lr: float) -> None:
        """A step begins whose gradients come bit by bit: ``update_some`` follows, once for each parameter."""
        self.step_count += 1
        self._now = self.scalars(lr)

    def update_some(self, places: Sequence[int], gradients: Sequence[ms.Tensor], factor: ms.Tensor | float) -> None:
        """``step`` for the parameters of these numbers."""
        key = tuple(places)
        if key not in self._some:
            self._some[key] = self._for_each.of(key)
        self._run(self._some[key], places, gradients, factor)

    def _run(
        self, for_each: ForEach, places: Sequence[int], gradients: Sequence[ms.Tensor], factor: ms.Tensor | float
    ) -> None:
        given = [tuple(g.shape) for g in gradients]
        assert given == [tuple(self.parameters[place].shape) for place in places], (given, self.names)
        if not isinstance(factor, ms.Tensor):
            factor = ms.Tensor(factor, ms.float32)

        def read(number: int) -> State:
            place = places[number]
            return {
                "value": self._value(place), "gradient": gradients[number], **self.states[place],
                **self._constants[place],
            }  # fmt: skip

        for_each(read, lambda number, results: self._write(places[number], results), factor, *self._now)

    def exchanged(self) -> list[int]:
        """Elements of each mean over the processes that one step asks for: none where an update is elementwise."""
        return []

    def values(self) -> list[ms.Tensor]:
        """fp32 values in the parameters' order: masters where there are some (for an average of them)."""
        return [self._value(index) for index in range(len(self.parameters))]

    def _value(self, index: int) -> ms.Tensor:
        return self.masters[index] if index in self.masters else self.parameters[index]

    def _write(self, index: int, results: tuple) -> None:
        parameter, value = self.parameters[index], results[0]
        if index in self.masters:
            self.masters[index] = value
            value = value.astype(parameter.dtype)
        if value is not parameter:
            parameter.copy_(value)  # or what still refers to the old values would keep a second copy of all of them
        self.states[index] = dict(zip(self.states[index], results[1:], strict=True))

    def _named(self) -> State:
        named = {f"{f}.{n}": t for n, state in zip(self.names, self.states, strict=True) for f, t in state.items()}
        return named | {f"master.{self.names[index]}": tensor for index, tensor in self.masters.items()}

    def state(self) -> dict[str, np.ndarray]:
        """Copies of everything the next steps depend on, besides parameters and gradients.

        ``<field>.<parameter>`` and ``master.<parameter>`` in fp32, and ``step``: the number of steps done (int64).
        """
        return {"step": np.array(self.step_count, np.int64)} | {n: t.asnumpy().copy() for n, t in self._named().items()}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Takes over what ``state()`` returned; later steps have the bits they would have had.

        Raises:
            WeightsError: a name is missing or unknown, or a shape or type differs; nothing was taken over.
        """
        source = f"state of {type(self).__name__}"
        if "step" not in state:
            raise WeightsError(source, ["step is missing"])
        arrays = {name: array for name, array in state.items() if name != "step"}
        tensors = restored(source, {name: tuple(t.shape) for name, t in self._named().items()}, arrays)
        self.step_count = int(state["step"])
        for name, fields in zip(self.names, self.states, strict=True):
            fields.update({field: tensors[f"{field}.{name}"] for field in fields})
        self.masters = {index: tensors[f"master.{self.names[index]}"] for index in self.masters}

    def state_bytes(self) -> dict[str, int]:
        """Bytes held, by field (``m``, ``v``, ..., ``master``)."""
        total: dict[str, int] = {}
        for name, tensor in self._named().items():
            field = name.split(".", 1)[0]
            total[field] = total.get(field, 0) + tensor.size * tensor.itemsize
        return total


def decayed(parameters: Sequence[ms.Parameter], decay: Sequence[bool] | None, weight_decay: float) -> list[float]:
    """The weight decay of each parameter: ``weight_decay`` where ``decay`` (default: everywhere), else 0."""
    flags = [True] * len(parameters) if decay is None else list(decay)
    assert len(flags) == len(parameters), (len(flags), len(parameters))
    return [weight_decay if flag else 0.0 for flag in flags]
