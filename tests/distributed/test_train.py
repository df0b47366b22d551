"""20 training steps of every layout, optimiser and method equal those of one process with the same global batch."""

from __future__ import annotations

import functools
import math

import mindspore as ms
import numpy as np
import pytest

from core import ops
from core.parallel.mesh import share
from tests.distributed import train_cases as cases
from tests.distributed.ranks import run_ranks
from tests.tolerances import MODULE, OPERATOR, relative_error

LAYOUTS = [(ranks, layout) for ranks, layouts in cases.LAYOUTS.items() for layout in layouts]


@functools.cache
def _single(optimizer: str, method: str):
    ops.configure()
    return cases.single(optimizer, method)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    wanted = {2: ("train", "same_gradients", "overflow"), 4: ("train", "same_gradients")}
    return {
        ranks: run_ranks("tests.distributed.train_cases", ranks, tmp_path_factory.mktemp("ranks"), *names)
        for ranks, names in wanted.items()
    }


@pytest.mark.parametrize(("optimizer", "method"), cases.KINDS)
@pytest.mark.parametrize(("ranks", "layout"), LAYOUTS)
def test_curve_and_parameters(runs, ranks, layout, optimizer, method):
    want = _single(optimizer, method)
    for found in runs[ranks].of("train"):
        key = f"{layout}/{optimizer}/{method}"
        assert found[f"{key}/agree"].all()
        assert relative_error(found[f"{key}/curve"], want["curve"]) <= MODULE
        assert relative_error(found[f"{key}/values"], want["values"]) <= MODULE


@pytest.mark.parametrize("method", ["sft", "lora"])
@pytest.mark.parametrize(("ranks", "layout"), LAYOUTS)
def test_bytes_of_live_tensors_are_those_of_the_formula(runs, ranks, layout, method):
    """AdamW: two states; parts have share(rows, n) rows."""
    _, stage = cases.LAYOUTS[ranks][layout]
    training = cases.Training(cases.alone(), 0, "adamw", method)
    shapes = [cut.rows_shape for cut in training.zero.cuts]
    whole = 4 * sum(math.prod(cut.shape) for cut in training.zero.cuts)
    part = 4 * sum(share(shape[0], ranks) * math.prod(shape[1:]) for shape in shapes)
    expected = {
        0: [whole, 0, 2 * whole],
        1: [whole, part, 2 * part],
        2: [whole, part, 2 * part],
        3: [0, part, 2 * part],
    }
    for found in runs[ranks].of("train"):
        assert np.array_equal(found[f"{layout}/adamw/{method}/held"], expected[stage])


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("ranks", list(cases.LAYOUTS))
def test_the_same_gradients_make_the_same_parameters(runs, ranks, stage):
    """Bit by bit with AdamW; CAME's means over a matrix are sums in another order."""
    for name, (optimizer, eps) in cases.updates(ranks).items():
        ops.configure()
        training = cases.Training(cases.alone(), 0, optimizer, "sft", eps=eps)
        for gradients in cases.given_gradients(training.zero.cuts):
            training.optimizer.step([ms.Tensor(g) for g in gradients], 1e-2)
        want = training.values()
        for found in runs[ranks].of("same_gradients"):
            if optimizer == "adamw":
                assert np.array_equal(found[f"{name}/{stage}"], want)
            else:
                assert relative_error(found[f"{name}/{stage}"], want) <= OPERATOR


@pytest.mark.parametrize("stage", range(4))
def test_an_overflow_on_one_rank_skips_the_step_on_all(runs, stage):
    for found in runs[2].of("overflow"):
        skipped, moved, scale, count, loss = found[str(stage)].T
        assert skipped.tolist() == [0, 1, 0, 0]
        assert moved.tolist() == [1, 0, 1, 1]
        assert scale.tolist() == [2.0**40, 2.0**39, 2.0**39, 2.0**39]
        assert count.tolist() == [0, 1, 1, 1]
        assert np.isfinite(loss).all()
        assert found[f"{stage}/agree"]
