"""Checkpoints of eight processes read by four and by one: cutting and files alone, no processes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mindspore as ms
import numpy as np
import pytest

from core.parallel.zero import Zero
from core.train.parts import Parts, Writers, write_part

# Rows that 8 divides, that it does not, fewer rows than processes, a leading one, a vector.
SHAPES = {"even": (16, 3), "odd": (11, 2), "few": (3, 4), "table": (1, 9, 2), "bias": (5,)}


def zeros_of(count: int) -> list[Zero]:
    """What each of ``count`` processes holds by ZeRO-1."""
    parameters = [ms.Parameter(ms.Tensor(np.zeros(s, np.float32)), name=n) for n, s in SHAPES.items()]
    model: Any = SimpleNamespace(keep_in=lambda zero: None)
    groups: list[Any] = [SimpleNamespace(size=count, index=index) for index in range(count)]
    return [Zero(model, parameters, group, 1) for group in groups]


def shapes_of(zero: Zero) -> dict[str, tuple[int, ...]]:
    """Arrays of an optimiser's state on a process: one cut as its parameter is, and a matrix's column averages."""
    held: dict[str, tuple[int, ...]] = {n: tuple(q.shape) for n, q in zip(SHAPES, zero.parameters, strict=True)}
    columns = {f"v_column.{name}": shape[1:] for name, shape in held.items() if len(shape) == 2}
    return {f"m.{name}": shape for name, shape in held.items()} | columns


@pytest.mark.parametrize("chain", [(8, 4, 1), (8, 1), (3, 8, 2)])
def test_whoever_reads_has_the_same_numbers(tmp_path, chain):
    rng = np.random.default_rng(0)
    whole: dict[str, np.ndarray] = {f"m.{n}": rng.standard_normal(s, np.float32) for n, s in SHAPES.items()}
    columns = {n: s[-1] for n, s in SHAPES.items() if len(s) >= 2}
    whole |= {f"v_column.{n}": rng.standard_normal(size, np.float32) for n, size in columns.items()}
    held = [zero.own_rows(whole.items(), shapes_of(zero)) for zero in zeros_of(chain[0])]
    for link, count in enumerate(chain):
        folder = tmp_path / str(link)
        folder.mkdir()
        for index, (zero, arrays) in enumerate(zip(zeros_of(count), held, strict=True)):
            write_part(folder, Writers(index, count), zero.rows_held(arrays))
        stored = Parts(folder)
        assert sorted(stored) == sorted(whole)
        for name, array in whole.items():
            assert np.array_equal(stored[name].reshape(array.shape), array), (name, count)
        following = chain[link + 1] if link + 1 < len(chain) else count
        held = [zero.own_rows(stored.items(), shapes_of(zero)) for zero in zeros_of(following)]
    assert any(np.array_equal(held[0][name], whole[name]) for name in whole)
