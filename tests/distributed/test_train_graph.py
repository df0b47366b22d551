"""Compiled training on two ranks; most of its time is the compiler's."""

from __future__ import annotations

import pytest

from tests.distributed import train_cases as cases
from tests.distributed import train_checks as checks
from tests.distributed.ranks import run_ranks


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return run_ranks("tests.distributed.train_cases", 2, tmp_path_factory.mktemp("ranks"), "graph")


@pytest.mark.parametrize(("stage", "optimizer", "recompute"), cases.GRAPH)
def test_compiled_training(runs, stage, optimizer, recompute):
    want = checks.single(optimizer, "sft", cases.FEW_STEPS)
    for found in runs.of("graph"):
        checks.assert_curve_and_values(found, str(stage), want)
