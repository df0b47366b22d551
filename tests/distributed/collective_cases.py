"""Values and gradients of each collective, on whatever number of ranks runs this."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import communication

from core import ops
from core.parallel.collectives import Group, joined

KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")


def inputs(rank: int, ranks: int) -> np.ndarray:
    """``[n * 2, 3]`` of a rank, which divides for every collective; [n, 2, 3] where entries are exchanged."""
    return np.random.default_rng([7, rank]).standard_normal((ranks * 2, 3)).astype(np.float32)


def weights(rank: int, shape: tuple[int, ...]) -> np.ndarray:
    """What a rank's loss multiplies its output by: another one on each rank."""
    return np.random.default_rng([8, rank]).standard_normal(shape).astype(np.float32)


def expected(kind: str, ranks: int) -> list[np.ndarray]:
    """Each rank's output, by NumPy."""
    every = [inputs(rank, ranks) for rank in range(ranks)]
    total = np.sum(every, axis=0)
    if kind == "all_reduce":
        return [total] * ranks
    if kind == "all_gather":
        return [np.concatenate(every)] * ranks
    if kind == "reduce_scatter":
        return np.split(total, ranks)
    blocks = [np.split(value, ranks) for value in every]
    return [np.concatenate([blocks[j][rank] for j in range(ranks)]) for rank in range(ranks)]


def expected_gradient(kind: str, ranks: int) -> list[np.ndarray]:
    """Gradients of the sum of ``(output * weights).sum()`` over ranks, by the transposed linear map in NumPy."""
    given = [weights(rank, value.shape) for rank, value in enumerate(expected(kind, ranks))]
    if kind == "all_reduce":
        return [np.sum(given, axis=0)] * ranks
    if kind == "all_gather":
        return np.split(np.sum(given, axis=0), ranks)
    if kind == "reduce_scatter":
        return [np.concatenate(given)] * ranks
    blocks = [np.split(value, ranks) for value in given]
    return [np.concatenate([blocks[j][rank] for j in range(ranks)]) for rank in range(ranks)]


def _losses(group: Group, kind: str) -> dict[str, Any]:
    """Functions ``(p, x, w)`` of one use and of two uses of a cell; closures, as the graph compiler wants them."""
    cell, size = group.cells[kind], group.size

    def exchanged(x):
        return cell(x.reshape(size, 2, 3)).reshape(size * 2, 3)

    run = exchanged if kind == "all_to_all" else cell

    def once(p, x, w):
        return (run(x) * w).sum()

    def twice(p, x, w):
        return (run(x) * w).sum() + (run(x * x) * (w + w)).sum()

    return {"once": once, "twice": twice}


def case_collectives() -> dict[str, Any]:
    """Gradients of each cell in both modes, also of a cell used twice in one function."""
    processes = joined(1)
    group, rank = processes.world, processes.rank
    found: dict[str, Any] = {}
    x = ms.Tensor(inputs(rank, group.size))
    for kind in KINDS:
        w = ms.Tensor(weights(rank, expected(kind, group.size)[rank].shape))
        for mode in ("pynative", "graph"):
            ops.configure(mode=mode)
            for name, fn in _losses(group, kind).items():
                compiled: Any = ops.compiled(fn)
                value = compiled({}, x, w)
                gradient: Any = ms.grad(lambda x, w, compiled=compiled: compiled({}, x, w))(x, w)
                found[f"{kind}/{mode}/{name}"] = gradient.asnumpy()
                found[f"{kind}/{mode}/{name}/loss"] = value.asnumpy()
    ops.configure()
    return found


def case_counted() -> dict[str, Any]:
    """The counted methods: values, and what was counted for them."""
    processes = joined(1)
    group, rank = processes.world, processes.rank
    x = ms.Tensor(inputs(rank, group.size))
    found: dict[str, Any] = {kind: getattr(group, kind)(x, "test").asnumpy() for kind in KINDS[:3]}
    found["all_to_all"] = group.all_to_all(x.reshape(group.size, 2, 3), "test").asnumpy()
    for root in range(group.size):
        found[f"broadcast/{root}"] = group.broadcast(x, "test", root).asnumpy()
    found["next"] = group.to_next(x, "test").asnumpy()
    for kind in KINDS[:3]:
        found[f"started/{kind}"] = group.start(kind, x, "started").wait().asnumpy()
    found["half"] = group.to_next(x.astype(ms.bfloat16), "half").astype(ms.float32).asnumpy()
    for kind, numbers in processes.traffic.table()["test"].items():
        found[f"count/{kind}"] = [numbers["calls"], numbers["bytes"]]
    group.wait()
    return found


def case_groups() -> dict[str, Any]:
    """Sums over the sequence group and the data group of a mesh of two columns: each rank's number."""
    processes = joined(2)
    own = ms.Tensor(np.array([float(communication.get_rank())], np.float32))
    return {
        "sequence": processes.sequence.all_reduce(own, "test").asnumpy(),
        "data": processes.data.all_reduce(own, "test").asnumpy(),
        "gathered": processes.data.all_gather(own, "test").asnumpy(),
    }
