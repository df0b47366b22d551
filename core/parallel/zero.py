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

from collections.abc import Sequence
from typing import Any

import mindspore as ms
from mindspore import mint, ops

from core.model import Model
from core.optim.clip import square_sum
from core.parallel.ahead import Ahead
from core.parallel.arriving import Arriving, zeros_of
from core.parallel.collectives import Group
from core.parallel.gathering import Gathering, HandOut
from core.parallel.handles import Handle
from core.parallel.parts import HeldParts
from core.parallel.reducing import Reducer, added, buckets


def _flat(tensors: list[Any]) -> Any:
    """Their elements one behind the other, in fp32."""
    return mint.cat([g.astype(ms.float32).reshape(-1) for g in tensors], dim=0)


def _pieces(flat: Any, tensors: Sequence[Any], bucket: list[int]) -> list[Any]:
    """What ``_flat`` put together, in the shapes of the ``tensors`` of these numbers."""
    found, start = [], 0
    for index in bucket:
        size = tensors[index].size
        found.append(flat[start : start + size].reshape(tensors[index].shape))
        start += size
    return found


class Zero(HeldParts):
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
        super().__init__(model, parameters, group, stage, masters, stored)
        self.variables, self._replicas = self.whole, replicas
        self._total: list[Any] = []
        self._cells: dict[tuple[str, ...], HandOut] = {}
        self._hand_outs: dict[tuple[str, ...], Gathering] = {}
        self._ahead = Ahead(self._gathered_early)
        self._reducer = Reducer(self.cuts, self.types, self._start_sum)
        self._unused: list[int] = []
        # Stage 0 of one process has nothing to cut or to send.
        self._arriving = Arriving(self.whole, self._reducer.add) if stage < 2 and stage + group.size > 1 else None
        if self._arriving is not None:
            self.variables = self._arriving.variables
        if stage or group.size > 1:
            model.keep_in(self)
        if stage >= 2:
            self.variables = self.parameters
            for q in self.whole:
                q.requires_grad = False
        if stage == 3:
            for name, part in zip(self.names, self.parameters, strict=True):
                model.replace(name, part)
            self.whole = []

    @property
    def copy(self) -> int:
        """Which of the copies of its parts this process holds: 0 where there is one."""
        return 0 if self._replicas is None else self._replicas.index

    def agree(self, ok: bool) -> bool:
        """Whether all processes say so, copies too; each of them waits for the others here."""
        ok = self.group.agree(ok)
        return ok if self._replicas is None else self._replicas.agree(ok)

    # What the model asks while it hands parameters out (not in stage 0 of one process).

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
        cuts = tuple(self.cuts[i] for i in places)
        place = tuple(names)
        self._hand_outs[place] = Gathering(self.group, tuple(shorts), cuts, stored, computed, place, self._ahead)
        return self._hand_outs[place]

    def full(self, names: Sequence[str]) -> list[Any]:
        """The whole parameters ``names``; their gradients arrive at the parts, or where they are summed."""
        key = tuple(names)
        if self._arriving is not None:
            return self._arriving.full([self._index[name] for name in names])
        if key not in self._cells:
            resident = None if self.stage == 3 else [self.whole[self._index[name]] for name in names]
            self._cells[key] = HandOut(self.gathering(names, names), resident)
        result: Any = self._cells[key](*(self.part(name) for name in names))
        return list(result) if isinstance(result, tuple) else [result]

    def _gathered_early(self, place: tuple[str, ...]) -> Handle:
        """Starts gathering a hand-out; what is handed out later is made of it there, so no gradient passes here."""
        return self._hand_outs[place].start_gather([ops.stop_gradient(self.part(name)) for name in place])

    # What a training step asks.

    def begin_pass(self, *, first: bool, last: bool) -> None:
        """A micro-batch's forward and backward pass begins, a step's ``first`` or ``last``.

        In the last one gradients are summed over processes as they come.
        """
        self._ahead.begin()
        if first:
            self._total = []
        if self._arriving is not None:
            self._reducer.begin(first=first, last=last)
            self._arriving.begin()

    def end_pass(self, gradients: list[Any]) -> None:
        """It is over; ``gradients`` of ``variables`` are used up."""
        self._ahead.end()
        if self._arriving is None:
            self._total = added(self._total, gradients)
            return
        self._unused = self._arriving.finish()

    def reduced(self) -> list[Any]:
        """The gradients of ``parameters``, of the step, over its micro-batches and all ranks."""
        gradients = self._over_group()
        if self._replicas is None or self._replicas.size == 1:
            return gradients
        result: list[Any] = [None] * len(gradients)
        for bucket in buckets(self.cuts, self.types):
            found = _pieces(
                self._replicas.all_reduce(_flat([gradients[i] for i in bucket]), "gradients"), gradients, bucket
            )
            for index, tensor in zip(bucket, found, strict=True):
                result[index] = tensor
        return result

    def _over_group(self) -> list[Any]:
        if self._arriving is None:
            total, self._total = self._total, []
            return total
        unused = self._reducer.lacking(self._unused)
        self._reducer.add(unused, zeros_of([self.whole[place] for place in unused]))
        result: list[Any] = [None] * len(self.cuts)
        for bucket, flat in self._reducer.finish():
            found = self._wire(bucket).parts(flat) if self.stage else _pieces(flat, self.whole, bucket)
            for index, tensor in zip(bucket, found, strict=True):
                result[index] = tensor
        return result

    def _wire(self, bucket: list[int]) -> Gathering:
        return Gathering(self.group, (), tuple(self.cuts[i] for i in bucket), ms.float32, ms.float32)

    def _start_sum(self, bucket: list[int], gradients: list[Any]) -> Handle:
        """Starts summing a bucket: to parts in stage 1, to everybody in stage 0."""
        if self.stage:
            return self._wire(bucket).start_scatter(gradients)
        flat = _flat(gradients)
        gradients.clear()
        return self.group.start("all_reduce", flat, "gradients")

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
                    whole.copy_(master.view(master.shape).astype(stored))
            return
        if self.stage == 3:
            return
        for bucket in buckets(self.cuts, self.types):
            stored = self.types[bucket[0]]
            gathering = Gathering(self.group, (), tuple(self.cuts[i] for i in bucket), stored, stored)
            found = gathering.gather([self.parameters[i].view(self.parameters[i].shape) for i in bucket])
            for index, tensor in zip(bucket, found, strict=True):
                # In place: as a piece of the message it would keep all of it, and products copy what is a view.
                self.whole[index].copy_(tensor.astype(self.types[index]))
