"""Layouts and modes of training that differ from ``test_train``'s in one thing, two steps each."""

from __future__ import annotations

import functools
import math

import pytest

from core import ops
from core.parallel.mesh import share
from tests.distributed import train_cases as cases
from tests.distributed.ranks import run_ranks
from tests.tolerances import MODULE, relative_error

pytestmark = pytest.mark.slow


@functools.cache
def _single(optimizer: str):
    ops.configure()
    return cases.single(optimizer, "sft", cases.FEW_STEPS)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return run_ranks("tests.distributed.train_cases", 2, tmp_path_factory.mktemp("two"), "graph")


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory):
    return run_ranks("tests.distributed.train_cases", 4, tmp_path_factory.mktemp("four"), "few_steps")


@pytest.mark.parametrize("optimizer", ["adamw", "came"])
@pytest.mark.parametrize("layout", list(cases.FEW[4]))
def test_zero_over_all_and_over_some_of_four_ranks(four_ranks, layout, optimizer):
    _, stage, subset = cases.FEW[4][layout]
    want = _single(optimizer)
    cuts = cases.Training(cases.alone(), 0, optimizer, "sft").zero.cuts
    whole = 4 * sum(math.prod(cut.shape) for cut in cuts)
    parts = 2 if subset else 4
    part = 4 * sum(share(c.rows_shape[0], parts) * math.prod(c.rows_shape[1:]) for c in cuts)
    for found in four_ranks.of("few_steps"):
        key = f"{layout}/{optimizer}"
        assert found[f"{key}/agree"]
        assert relative_error(found[f"{key}/curve"], want["curve"]) <= MODULE
        assert relative_error(found[f"{key}/values"], want["values"]) <= MODULE
        assert found[f"{key}/held"].tolist() == [0 if stage == 3 else whole, part]


@pytest.mark.parametrize(("stage", "optimizer", "recompute"), cases.GRAPH)
def test_compiled_training(two_ranks, stage, optimizer, recompute):
    want = _single(optimizer)
    for found in two_ranks.of("graph"):
        assert relative_error(found[f"{stage}/curve"], want["curve"]) <= MODULE
        assert relative_error(found[f"{stage}/values"], want["values"]) <= MODULE
