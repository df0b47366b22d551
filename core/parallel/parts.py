"""What of the trained parameters a process holds: parts or masters of them, and how they are saved and read again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import mindspore as ms
import numpy as np

from core.model import Model
from core.parallel.collectives import Group
from core.parallel.cut import Cut
from core.parallel.mesh import held


def _cut_by_rows(field: str, cut: Cut) -> bool:
    """Whether a state's field is cut as its parameter is: averages over a matrix's rows are whole on all processes."""
    return not (field.endswith("column") and len(cut.rows_shape) == 2)


def _master(parameter: ms.Parameter) -> ms.Parameter:
    return ms.Parameter(parameter.astype(ms.float32), name=str(parameter.name))


class HeldParts:
    """The parameters of ``core.parallel.zero.Zero``, which exchanges them; its arguments and attributes."""

    def __init__(
        self, model: Model, parameters: Sequence[ms.Parameter], group: Group, stage: int, masters: bool, stored: Any
    ):
        assert stored is None or stage == 3, "stages below 3 keep whole parameters"
        self._stored = stored
        self.model, self.group, self.stage = model, group, stage
        self.whole = list(parameters)
        self.names = [str(q.name) for q in self.whole]
        self.cuts = [Cut(tuple(q.shape), group.size) for q in self.whole]
        self.types = [q.dtype for q in self.whole]
        self.parameters = self.whole
        self._index = {name: index for index, name in enumerate(self.names)}
        if stage:
            self.parameters = [self._own(q, cut) for q, cut in zip(self.whole, self.cuts, strict=True)]
        elif masters:
            self.parameters = [q if q.dtype == ms.float32 else _master(q) for q in self.whole]

    def _own(self, parameter: ms.Parameter, cut: Cut) -> ms.Parameter:
        name = str(parameter.name)
        if self._stored is None:
            array = cut.part(parameter.astype(ms.float32).asnumpy(), self.group.index)
        elif cut.rows_shape[0] == cut.shape[0]:
            array = cut.part_of(partial(self._stored.rows, name), self.group.index)
        else:  # leading ones: rows lie in a later dimension
            array = cut.part(self._stored.whole(name), self.group.index)
        return ms.Parameter(ms.Tensor.from_numpy(array), name=name)

    def array(self, name: str) -> np.ndarray:
        """The whole fp32 value of a parameter of the model on every process, each of which has to ask."""
        if name not in self._index:
            return self.model.parameters_dict()[name].astype(ms.float32).asnumpy()
        own = self.parameters[self._index[name]]
        return self.assembled(name, own.view(own.shape))

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """``array`` of each trained parameter."""
        return ((name, self.array(name)) for name in self.names)

    def assembled(self, name: str, own: Any) -> np.ndarray:
        """The whole fp32 array of what belongs to parameter ``name`` and is cut as it is."""
        if not self.stage:
            return own.astype(ms.float32).asnumpy()
        gathered = self.group.all_gather(own.astype(ms.float32).reshape(1, -1), "checkpoint")
        return np.ascontiguousarray(self.cuts[self._index[name]].assembled(gathered).asnumpy())

    def assign(self, name: str, whole: np.ndarray) -> None:
        """Sets a trained parameter; ``publish`` follows."""
        index = self._index[name]
        array = self.cuts[index].part(whole, self.group.index) if self.stage else whole
        parameter = self.parameters[index]
        parameter.set_data(ms.Tensor(np.array(array, np.float32)).astype(parameter.dtype))

    def rows_held(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Of arrays ``<field>.<parameter>``, as optimisers name them, what this process saves: its rows, no padding."""
        if not self.stage:
            return arrays
        result = {}
        for name, array in arrays.items():
            field, _, parameter = name.partition(".")
            cut = self.cuts[self._index[parameter]]
            if _cut_by_rows(field, cut):
                result[name] = array[: len(held(cut.rows_shape[0], cut.parts, self.group.index))]
            elif self.group.index == 0:
                result[name] = array
        return result

    def own_rows(
        self, whole: Iterable[tuple[str, np.ndarray]], shapes: dict[str, tuple[int, ...]]
    ) -> dict[str, np.ndarray]:
        """What ``rows_held`` of all processes of some layout make together -> this process's arrays of ``shapes``."""
        result = {}
        for name, array in whole:
            field, _, parameter = name.partition(".")
            shape = shapes.get(name)
            cut = self.cuts[self._index[parameter]] if parameter in self._index else None
            if shape is None or cut is None:
                result[name] = array  # whoever takes the result refuses it by name
            elif self.stage and _cut_by_rows(field, cut):
                rows = array.reshape(cut.rows_shape[0], *shape[1:])
                result[name] = Cut(rows.shape, cut.parts).part(rows, self.group.index).reshape(shape)
            else:
                result[name] = array.reshape(shape)
        return result

    @property
    def tensors(self) -> list[Cut]:
        """The trained tensors: shapes, before they were cut."""
        return self.cuts

    def held_bytes(self) -> dict[str, int]:
        """Bytes on this process, from its live tensors: whole parameters, and the fp32 parts or masters beside them."""
        whole = {id(q) for q in self.whole}
        apart = [q for q in self.parameters if id(q) not in whole]
        return {
            "whole": sum(q.size * q.itemsize for q in self.whole),
            "parts": sum(q.size * q.itemsize for q in apart),
        }
