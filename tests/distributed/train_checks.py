"""What training on so many ranks has to show; each number of ranks has a test file, so that they run side by side."""

from __future__ import annotations

import functools
import math
from typing import Any

import mindspore as ms
import numpy as np

from core import ops
from core.parallel.mesh import share
from tests.distributed import train_cases as cases
from tests.distributed.ranks import Results
from tests.tolerances import MODULE, OPERATOR, relative_error


@functools.cache
def single(optimizer: str, method: str, steps: int = cases.STEPS) -> dict[str, np.ndarray]:
    """What one process gets in PyNative."""
    ops.configure()
    return cases.single(optimizer, method, steps)


@functools.cache
def one_process(optimizer: str, method: str) -> cases.Training:
    """A training of one process, of which only shapes are read."""
    ops.configure()
    return cases.Training(cases.alone(), 0, optimizer, method)


def assert_curve_and_values(found: dict[str, np.ndarray], key: str, want: dict[str, np.ndarray]) -> None:
    """Losses, gradient norms and final parameters within fp32's rounding."""
    assert relative_error(found[f"{key}/curve"], want["curve"]) <= MODULE
    assert relative_error(found[f"{key}/values"], want["values"]) <= MODULE


def assert_trains_as_one_process(runs: Results, layout: str, optimizer: str, method: str) -> None:
    """20 steps; whole parameters are the same bits on all ranks after each."""
    key = f"{layout}/{optimizer}/{method}"
    for found in runs.of(f"train_{optimizer}"):
        assert len(found[f"{key}/agree"]) == cases.STEPS
        assert found[f"{key}/agree"].all()
        assert_curve_and_values(found, key, single(optimizer, method))


def bytes_whole_and_part(optimizer: str, method: str, parts: int) -> tuple[int, int]:
    """Of the trained parameters in fp32; a part has share(rows, parts) rows of each."""
    cuts = one_process(optimizer, method).zero.cuts
    whole = 4 * sum(math.prod(cut.shape) for cut in cuts)
    return whole, 4 * sum(share(c.rows_shape[0], parts) * math.prod(c.rows_shape[1:]) for c in cuts)


def assert_bytes_of_live_tensors(runs: Results, layout: str, method: str) -> None:
    """AdamW: two states."""
    _, stage = cases.LAYOUTS[runs.ranks][layout]
    whole, part = bytes_whole_and_part("adamw", method, runs.ranks)
    expected = {
        0: [whole, 0, 2 * whole],
        1: [whole, part, 2 * part],
        2: [whole, part, 2 * part],
        3: [0, part, 2 * part],
    }
    for found in runs.of("train_adamw"):
        assert np.array_equal(found[f"{layout}/adamw/{method}/held"], expected[stage])


@functools.cache
def _given_updates(optimizer: str, eps: Any) -> np.ndarray:
    ops.configure()
    training = cases.Training(cases.alone(), 0, optimizer, "sft", eps=eps)
    for gradients in cases.given_gradients(training.zero.cuts):
        training.optimizer.step([ms.Tensor(g) for g in gradients], 1e-2)
    return training.values()


def assert_same_gradients_make_the_same_parameters(runs: Results, stage: int) -> None:
    """Bit by bit with AdamW; CAME's means over a matrix are sums in another order."""
    for name, (optimizer, eps) in cases.updates(runs.ranks).items():
        want = _given_updates(optimizer, eps)
        for found in runs.of("same_gradients"):
            if optimizer == "adamw":
                assert np.array_equal(found[f"{name}/{stage}"], want)
            else:
                assert relative_error(found[f"{name}/{stage}"], want) <= OPERATOR
