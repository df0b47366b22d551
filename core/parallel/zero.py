"""ZeRO: which part of parameters, gradients and optimiser state a process holds (arXiv:1910.02054).

A tensor is cut along its first dimension (leading ones are dropped), so that a matrix is cut between rows, which is
what CAME's statistics ask for. Parts are equal; where rows do not divide, the last ones end in rows of zeros. For the
wire the parts of many tensors lie behind each other in one flat bucket.

Communication of a step, P bytes of parameters on n processes, each sending (n - 1) / n of what is named:

    stage 0   gradients all-reduced once a step: 2 P
    stage 1   gradients reduce-scattered once a step: P; new parameters gathered: P
    stage 2   gradients reduce-scattered in each micro-batch, block by block inside the backward pass: P; gathered: P
    stage 3   as 2, but parameters are gathered where a block needs them: P forward, P again where the block is
              computed again in the backward pass; nothing after the update

Gradients are those of the own tokens and samples, so their sum over *all* processes, divided by the number of samples,
is the gradient, whatever part of the processes shares a sample. Reduction, state and the values that updates move are
fp32: the parts (stages 1 to 3) are the masters of whole parameters that may be stored in bf16 or fp16; stage 0 has
whole masters beside those. What is saved and exported is the masters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import mint

from core.model import Model
from core.optim.clip import square_sum
from core.parallel.collectives import Group
from core.parallel.cut import Cut
from core.parallel.gathering import Gathering, HandOut
from core.parallel.mesh import held

BUCKET_BYTES = 2**26  # of fp32: large enough for full bandwidth, small beside a block of the 5B model (530 MB)


def _cut_by_rows(field: str, cut: Cut) -> bool:
    """Whether a state's field is cut as its parameter is: averages over a matrix's rows are whole on all processes."""
    return not (field.endswith("column") and len(cut.rows_shape) == 2)


def _summed(group: Group, tensors: list[Any]) -> list[Any]:
    """fp32 sums of each tensor over the processes, by one all-reduce."""
    flat = mint.cat([g.astype(ms.float32).reshape(-1) for g in tensors], dim=0)
    flat, sums, start = group.all_reduce(flat, "gradients"), [], 0
    for g in tensors:
        sums.append(flat[start : start + g.size].reshape(g.shape))
        start += g.size
    return sums


def _master(parameter: ms.Parameter) -> ms.Parameter:
    return ms.Parameter(parameter.astype(ms.float32), name=str(parameter.name))


class Zero:
    """What of ``parameters`` this process holds, updates and exchanges.

    Args:
        model: hands the parameters out.
        parameters: what is trained, loaded.
        group: the processes to spread over; of one process everything is whole and the same code runs.
        stage: 0 to 3.
        masters: whether stage 0 keeps fp32 masters of half-precision parameters; False leaves them to the optimiser.
        replicas: where ``group`` is only some of the processes: those, one of each such group, that hold the same parts
            as this one. Parts of gradients are summed over them once a step. With a group inside a machine and replicas
            across machines, gathering stays inside (hybrid sharding, arXiv:2304.11277).
        stored: for stage 3, where the parameters lie that were not read: ``rows(name, start, stop)`` and
            ``whole(name)`` in fp32 (``core.weights.Stored``). Only the own rows are read then.

    Attributes:
        whole: the parameters that the model computes with, in its type; none in stage 3.
        parameters: what the optimiser updates: those themselves, or fp32 masters or parts of them.
        variables: what the loss is differentiated by.
    """

    def __init__(
        self, model: Model, parameters: Sequence[ms.Parameter], group: Group, stage: int, *, masters: bool = True,
        replicas: Group | None = None, stored: Any = None,
    ):  # fmt: skip
        assert stored is None or stage == 3, "stages below 3 keep whole parameters"
        self._stored = stored
        self.model, self.group, self.stage, self._replicas = model, group, stage, replicas
        self.whole = list(parameters)
        self.names = [str(q.name) for q in self.whole]
        self.cuts = [Cut(tuple(q.shape), group.size) for q in self.whole]
        self.types = [q.dtype for q in self.whole]
        self.parameters, self.variables = self.whole, self.whole
        self._index = {name: index for index, name in enumerate(self.names)}
        if stage:
            self.parameters = [self._own(q, cut) for q, cut in zip(self.whole, self.cuts, strict=True)]
        elif masters:
            self.parameters = [q if q.dtype == ms.float32 else _master(q) for q in self.whole]
        if stage >= 2:
            self.variables = self.parameters
            self._cells: dict[tuple[str, ...], HandOut] = {}
            for q in self.whole:
                q.requires_grad = False
            model.keep_in(self)
        if stage == 3:
            for name, part in zip(self.names, self.parameters, strict=True):
                model.replace(name, part)
            self.whole = []

    def _own(self, parameter: ms.Parameter, cut: Cut) -> ms.Parameter:
        name = str(parameter.name)
        if self._stored is None:
            array = cut.part(parameter.astype(ms.float32).asnumpy(), self.group.index)
        elif cut.rows_shape[0] == cut.shape[0]:
            array = cut.part_of(partial(self._stored.rows, name), self.group.index)
        else:  # leading ones: rows lie in a later dimension
            array = cut.part(self._stored.whole(name), self.group.index)
        return ms.Parameter(ms.Tensor.from_numpy(array), name=name)

    @property
    def copy(self) -> int:
        """Which of the copies of its parts this process holds: 0 where there is one."""
        return 0 if self._replicas is None else self._replicas.index

    def agree(self, ok: bool) -> bool:
        """Whether all processes say so, copies too; each of them waits for the others here."""
        ok = self.group.agree(ok)
        return ok if self._replicas is None else self._replicas.agree(ok)

    # What the model asks while it hands parameters out (stages 2 and 3).

    def keeps(self, name: str) -> bool:
        """Whether the gradient of parameter ``name`` goes to a part."""
        return name in self._index

    def lazy(self) -> bool:
        """Whether whole parameters exist only while something computes with them."""
        return self.stage == 3

    def part(self, name: str) -> Any:
        """The own part of a parameter, as a view that gradients pass."""
        own = self.parameters[self._index[name]]
        return own.view(own.shape)

    def gathering(self, names: Sequence[str], shorts: Sequence[str]) -> Gathering:
        """How the parameters ``names``, called ``shorts`` in the hand-out, are gathered."""
        places = [self._index[name] for name in names]
        computed, stored = self.model.compute_dtype, self.types[places[0]]
        assert all(self.types[i] == stored for i in places), "one message has one type"
        # Stage 3 keeps fp32 only: what is computed in fewer bits need not travel in more.
        stored = computed if self.stage == 3 and stored == ms.float32 else stored
        return Gathering(self.group, tuple(shorts), tuple(self.cuts[i] for i in places), stored, computed)

    def full(self, names: Sequence[str]) -> list[Any]:
        """The whole parameters ``names``; their gradients arrive at the parts."""
        key = tuple(names)
        if key not in self._cells:
            resident = None if self.stage == 3 else [self.whole[self._index[name]] for name in names]
            self._cells[key] = HandOut(self.gathering(names, names), resident)
        result: Any = self._cells[key](*(self.part(name) for name in names))
        return list(result) if isinstance(result, tuple) else [result]

    # What a training step asks.

    def reduced(self, gradients: Sequence[Any]) -> list[Any]:
        """Gradients of ``variables``, summed over a step's micro-batches -> those of ``parameters``, over all ranks."""
        gradients = self._over_group(gradients)
        if self._replicas is None or self._replicas.size == 1:
            return gradients
        result: list[Any] = [None] * len(gradients)
        for bucket in self._buckets():
            found = _summed(self._replicas, [gradients[i] for i in bucket])
            for index, tensor in zip(bucket, found, strict=True):
                result[index] = tensor
        return result

    def _over_group(self, gradients: Sequence[Any]) -> list[Any]:
        if self.stage >= 2 or (self.stage == 0 and self.group.size == 1):
            return list(gradients)
        result: list[Any] = [None] * len(gradients)
        for bucket in self._buckets():
            cuts = tuple(self.cuts[i] for i in bucket)
            if self.stage == 1:
                wire = Gathering(self.group, (), cuts, ms.float32, ms.float32)
                found = wire.scatter([gradients[i] for i in bucket])
            else:
                found = _summed(self.group, [gradients[i] for i in bucket])
            for index, tensor in zip(bucket, found, strict=True):
                result[index] = tensor
        return result

    def _buckets(self) -> Iterator[list[int]]:
        """Indices of tensors of one stored type that travel together."""
        bucket, size = [], 0
        for index, cut in enumerate(self.cuts):
            full = size + 4 * math.prod(cut.shape) > BUCKET_BYTES
            if bucket and (full or self.types[index] != self.types[bucket[0]]):
                yield bucket
                bucket, size = [], 0
            bucket.append(index)
            size += 4 * math.prod(cut.shape)
        if bucket:
            yield bucket

    def norm(self, gradients: Sequence[Any]) -> Any:
        """Euclidean norm of reduced gradients, over all parts: the same on every process."""
        squares = square_sum(dict(zip(self.names, gradients, strict=True)))
        if self.stage:
            squares = self.group.all_reduce(squares.reshape(1), "statistics")[0]
        return mint.sqrt(squares)

    def mean(self, value: float) -> float:
        """Mean of a number over all processes, in fp32 where there are several."""
        for group in (self.group, self._replicas):
            if group is not None and group.size > 1:
                value = float(group.all_reduce(ms.Tensor([value], ms.float32), "statistics")[0]) / group.size
        return value

    def updated(self, optimizer: Any) -> None:
        """To be called after each update: counts what the optimiser exchanged, publishes what it changed."""
        for size in optimizer.exchanged():
            self.group.traffic.add(self.group.message("statistics", "all_reduce", 4 * size))
        self.publish()

    def came_options(self) -> dict[str, Any]:
        """What ``core.optim.came.CAME`` has to know of the parts."""
        if not self.stage:
            return {}
        rows = [(cut.valid(self.group.index), cut.part_shape[0] * cut.parts / cut.rows_shape[0]) for cut in self.cuts]
        padding = [pair if cut.padded else None for pair, cut in zip(rows, self.cuts, strict=True)]
        return {"sharded": [True] * len(self.cuts), "shards_mean": self._mean_function(), "padding": padding}

    def _mean_function(self) -> Any:
        sum_over, size = self.group.cells["all_reduce"], self.group.size

        def shards_mean(mean):
            # A scalar has no dimension to send.
            return (sum_over(mean.reshape(-1)) / size).reshape(mean.shape)

        return shards_mean

    def publish(self) -> None:
        """After an update (or whatever else moved them): the whole parameters become those of the parts or masters."""
        if self.stage == 0:
            for whole, master, stored in zip(self.whole, self.parameters, self.types, strict=True):
                if master is not whole:
                    whole.set_data(master.view(master.shape).astype(stored))
            return
        if self.stage == 3:
            return
        for bucket in self._buckets():
            stored = self.types[bucket[0]]
            gathering = Gathering(self.group, (), tuple(self.cuts[i] for i in bucket), stored, stored)
            found = gathering.gather([self.parameters[i].view(self.parameters[i].shape) for i in bucket])
            for index, tensor in zip(bucket, found, strict=True):
                self.whole[index].set_data(tensor.astype(self.types[index]))

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
