"""The seam between HCCL and the CPU: collectives of one group of processes, with gradients, and counted.

Ascend has every collective. MindSpore's CPU backend has, for groups of some of the processes, the all-reduce alone, so
the others are composed of it there: same values, more bytes on the wire than the real one (which is what
``core.parallel.traffic`` counts). A group of one process is the identity on both.

Gradients are those of the sum of all processes' losses. Each is a Cell with a ``bprop`` of its own that looks at the
incoming gradient only: where one Cell with a ``bprop`` is called twice in a compiled function, MindSpore 2.10 hands
it the other call's *output* (``core.ops_cpu``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import communication, mint, nn
from mindspore import ops as _ops

from core import ops
from core.compiling import runtime
from core.parallel.handles import Handle, start_hccl
from core.parallel.mesh import Mesh
from core.parallel.traffic import BUCKET_BYTES, Kind, Message, Traffic

Raw = Callable[[Any], Any]


def _identity(x):
    return x


def _raw_hccl(name: str, size: int, _index: int) -> dict[Kind, Raw]:
    """Not measured: no card was at hand."""
    exchange: Any = _ops.AlltoAll(split_count=size, split_dim=0, concat_dim=0, group=name)

    def all_to_all(x):
        # Four dimensions, whatever the shape: CANN's limit in the versions documented.
        return exchange(x.reshape(size, -1, 1, 1)).reshape(x.shape)

    return {
        "all_reduce": _ops.AllReduce(group=name),
        "all_gather": _ops.AllGather(group=name),
        "reduce_scatter": _ops.ReduceScatter(group=name),
        "all_to_all": all_to_all,
    }


def _raw_composed(name: str, size: int, index: int) -> dict[Kind, Raw]:
    """Each a function of any tensor, which is sent as a whole."""
    # A gather, too, is an all-reduce here: MindSpore's CPU all-gather knows the group of all processes only.
    reduce: Any = _ops.AllReduce(group=name)

    own = ms.Tensor(np.eye(size, dtype=np.float32)[:, index : index + 1])

    def gather(x):
        # One in n rows is x, the others are zero. Building them as a list breaks the graph compiler inside a ``bprop``.
        rows = x.reshape(1, -1) * own.astype(x.dtype)
        return reduce(rows).reshape((size * x.shape[0], *x.shape[1:]))

    def reduce_scatter(x):
        length = x.shape[0] // size
        # A copy: as a view it would keep all of the sum.
        return mint.cat([reduce(x)[index * length : (index + 1) * length]], dim=0)

    def all_to_all(x):
        # [n, ...] of each of n processes -> [n, n, ...], of which column ``index`` is for this one.
        return gather(x).reshape((size, *x.shape))[:, index]

    return {"all_reduce": reduce, "all_gather": gather, "reduce_scatter": reduce_scatter, "all_to_all": all_to_all}


def _in_pieces(whole: dict[Kind, Raw], size: int) -> dict[Kind, Raw]:
    """The same, of some columns at a time: while a message is under way, MindSpore holds it four times on the CPU.

    For PyNative: a compiled function may run independent collectives in any order.
    """

    def apart(kind: Kind, x, own_rows: int, result_rows: int, sent_rows: int):
        x = x.reshape(own_rows, -1)
        columns = max(1, BUCKET_BYTES["CPU"] // (x.itemsize * sent_rows))
        if x.shape[1] <= columns:
            return None
        # Not ``Tensor.copy_`` to a part of a tensor, which writes to its beginning (MindSpore 2.10, CPU).
        out = np.empty((result_rows, x.shape[1]), ms.dtype_to_nptype(x.dtype))
        for first in range(0, x.shape[1], columns):
            piece = whole[kind](x[:, first : first + columns]).asnumpy()
            out[:, first : first + columns] = piece.reshape(result_rows, -1)
        return ms.Tensor.from_numpy(out)

    def all_reduce(x):
        out = apart("all_reduce", x, 1, 1, 1)
        return whole["all_reduce"](x) if out is None else out.reshape(x.shape)

    def all_gather(x):
        out = apart("all_gather", x, 1, size, size)
        return whole["all_gather"](x) if out is None else out.reshape((size * x.shape[0], *x.shape[1:]))

    def reduce_scatter(x):
        out = apart("reduce_scatter", x, size, 1, size)
        return whole["reduce_scatter"](x) if out is None else out.reshape((x.shape[0] // size, *x.shape[1:]))

    def all_to_all(x):
        out = apart("all_to_all", x, size, size, size * size)
        return whole["all_to_all"](x) if out is None else out.reshape(x.shape)

    return {
        "all_reduce": all_reduce, "all_gather": all_gather, "reduce_scatter": reduce_scatter, "all_to_all": all_to_all,
    }  # fmt: skip


def _sums_in(dtype):
    """The CPU's type for what is composed of sums with zeros, which are exact in it."""
    return ms.float32 if dtype in (ms.bfloat16, ms.float16) else dtype


def _to_neighbour(x, ranks: tuple[int, ...], before: int, after: int, name: str):
    """HCCL: one all-to-all of unequal parts, all of them empty but one. Not measured: no card was at hand."""
    from mindspore.mint import distributed  # noqa: PLC0415 - Ascend only

    sent, received = [0] * len(ranks), [0] * len(ranks)
    sent[after] = received[before] = x.size
    result = mint.zeros((x.size,), dtype=x.dtype)
    distributed.all_to_all_single(result, x.reshape(-1), received, sent, group=name)
    return result.reshape(x.shape)


class _WithGradient(nn.Cell):
    """``forward(x)``, whose gradient is ``backward`` of the incoming gradient."""

    def __init__(self, forward: Raw, backward: Raw):
        super().__init__()
        self._forward, self._backward = forward, backward

    def construct(self, x):
        return self._forward(x)

    def bprop(self, x, out, grad):
        return (self._backward(grad),)


class Group:
    """The processes ``ranks`` (ascending), of which this is number ``index``.

    The methods count and may be called outside compiled functions.
    """

    def __init__(self, ranks: Sequence[int], rank: int, traffic: Traffic):
        self.ranks, self.rank, self.traffic = tuple(ranks), rank, traffic
        self.size, self.index = len(self.ranks), self.ranks.index(rank)
        kinds: tuple[Kind, ...] = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
        raw: dict[Kind, Raw] = dict.fromkeys(kinds, _identity)
        self._raw = raw
        self._name = ""
        if self.size > 1:
            ops.return_large_memory()  # MindSpore's messages on the CPU
            self._name = _group_name(self.ranks)
            if runtime.device == "Ascend":
                raw = self._raw = _raw_hccl(self._name, self.size, self.index)
            else:
                raw = _raw_composed(self._name, self.size, self.index)
                self._raw = _in_pieces(raw, self.size)
        self._cells = {"pynative": self._with_gradients(self._raw), "graph": self._with_gradients(raw)}

    @property
    def cells(self) -> dict[str, Any]:
        """The same collectives uncounted, for compiled functions; whoever uses one says so with ``note``."""
        return self._cells[runtime.mode]

    def _with_gradients(self, raw: dict[Kind, Raw]) -> dict[str, Any]:
        count, index = self.size, self.index

        def own(x):
            length = x.shape[0] // count
            return x[index * length : (index + 1) * length]

        return {
            "all_reduce": _WithGradient(raw["all_reduce"], raw["all_reduce"]),
            "all_gather": _WithGradient(raw["all_gather"], raw["reduce_scatter"]),
            "reduce_scatter": _WithGradient(raw["reduce_scatter"], raw["all_gather"]),
            "all_to_all": _WithGradient(raw["all_to_all"], raw["all_to_all"]),
            "all_gather_same": _WithGradient(raw["all_gather"], own),
        }

    def message(self, purpose: str, kind: Kind, input_bytes: int) -> Message:
        """What is counted for a collective of this group on ``input_bytes`` of each process."""
        return Message(purpose, kind, input_bytes, self.size)

    def note(self, purpose: str, kind: Kind, x: ms.Tensor) -> None:
        """Counts a collective on ``x`` of each process."""
        self.traffic.add(self.message(purpose, kind, x.size * x.itemsize))

    def _plain(self, purpose: str, kind: Kind, x: ms.Tensor) -> ms.Tensor:
        self.note(purpose, kind, x)
        if kind == "all_gather" and x.dtype in (ms.bfloat16, ms.float16) and runtime.device != "Ascend":
            # Not in the function itself, which is compiled, too.
            return self._raw[kind](x.astype(_sums_in(x.dtype))).astype(x.dtype)
        return self._raw[kind](x)

    def all_reduce(self, x: ms.Tensor, purpose: str) -> ms.Tensor:
        """The sum over the processes, on each: shape unchanged. Without a gradient, as all methods here."""
        return self._plain(purpose, "all_reduce", x)

    def all_gather(self, x: ms.Tensor, purpose: str) -> ms.Tensor:
        """``[m, ...]`` of each process -> ``[n * m, ...]`` on each, in their order."""
        return self._plain(purpose, "all_gather", x)

    def reduce_scatter(self, x: ms.Tensor, purpose: str) -> ms.Tensor:
        """``[n * m, ...]`` of each process -> part ``index``, ``[m, ...]``, of the sum over the processes."""
        return self._plain(purpose, "reduce_scatter", x)

    def start(self, kind: Kind, x: ms.Tensor, purpose: str) -> Handle:
        """Starts an all-reduce, all-gather or reduce-scatter; its result is there after ``wait``."""
        if self.size == 1 or runtime.device != "Ascend":
            return Handle(self._plain(purpose, kind, x))
        self.note(purpose, kind, x)
        return start_hccl(kind, x, self.size, self._name)

    def all_to_all(self, x: ms.Tensor, purpose: str) -> ms.Tensor:
        """``[n, ...]`` -> ``[n, ...]``: entry j goes to process j and comes back as that process's entry ``index``."""
        return self._plain(purpose, "all_to_all", x)

    def broadcast(self, x: ms.Tensor, purpose: str, root: int = 0) -> ms.Tensor:
        """``x`` of process ``root`` (its place in the group) on every process."""
        self.note(purpose, "broadcast", x)
        if self.size == 1:
            return x
        if runtime.device == "Ascend":
            send: Any = _ops.Broadcast(self.ranks[root], self._name)
            return send((x,))[0]
        # MindSpore documents no CPU kernel for it; a sum with zeros is exact.
        given: Any = x if self.index == root else _ops.zeros_like(x)
        return self._raw["all_reduce"](given.astype(_sums_in(x.dtype))).astype(x.dtype)

    def to_next(self, x: ms.Tensor, purpose: str) -> ms.Tensor:
        """``x`` goes to the next process of the group, the last one's to the first; that of the one before comes back.

        All give tensors of one shape and type.
        """
        self.note(purpose, "next", x)
        if self.size == 1:
            return x
        before, after = (self.index - 1) % self.size, (self.index + 1) % self.size
        if runtime.device == "Ascend":
            return _to_neighbour(x, self.ranks, before, after, self._name)
        gathered = self._raw["all_gather"](x.astype(_sums_in(x.dtype)).reshape(1, *x.shape))
        return gathered[before].astype(x.dtype)

    def agree(self, ok: bool) -> bool:
        """Whether all processes say so; each waits for the others here (the CPU has no barrier); not counted."""
        failed = ms.Tensor(np.array([0.0 if ok else 1.0], np.float32))
        return float(self._raw["all_reduce"](failed).asnumpy()[0]) == 0.0

    def wait(self) -> None:
        """Returns when every process of the group has come here (the CPU has no barrier)."""
        self._raw["all_reduce"](ms.Tensor(np.zeros(1, np.float32))).asnumpy()


class Processes:
    """This process among those of a run: its groups, and what they have moved.

    Args:
        mesh: how the processes are laid out.
        rank: this one.

    Attributes:
        world: all; ``sequence``: those that share a sample; ``data``: those of other samples with the same tokens;
            ``zero``: those that ZeRO spreads over; ``replicas``: those that hold the same parts.
    """

    def __init__(self, mesh: Mesh, rank: int = 0):
        self.mesh, self.rank = mesh, rank
        self.traffic = Traffic()
        self.world = Group(mesh.world(), rank, self.traffic)
        self.sequence = Group(mesh.sequence_group(rank), rank, self.traffic)
        self.data = Group(mesh.data_group(rank), rank, self.traffic)
        self.zero = Group(mesh.zero_group(rank), rank, self.traffic)
        self.replicas = Group(mesh.replica_group(rank), rank, self.traffic)


def alone() -> Processes:
    """The only process there is: every collective is the identity."""
    return Processes(Mesh(ranks=1))


def joined(sequence: int, zero: int | None = None) -> Processes:
    """The processes that ``mindspore.communication.init`` has joined to this one, laid out as ``Mesh`` says."""
    mesh = Mesh(ranks=communication.get_group_size(), sequence=sequence, zero=zero)
    return Processes(mesh, communication.get_rank())


_created: set[str] = set()


def _group_name(ranks: tuple[int, ...]) -> str:
    """Creates the group at first use; every member has to come here in the same order."""
    name = "cogbench-" + "-".join(map(str, ranks))
    if name not in _created:
        communication.create_group(name, list(ranks))
        _created.add(name)
    return name
