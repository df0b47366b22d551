"""20 training steps with CAME of every layout of two ranks equal one process's, and the same gradients its update."""

from __future__ import annotations

import pytest

from tests.distributed import train_cases as cases
from tests.distributed import train_checks as checks
from tests.distributed.ranks import run_ranks


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    names = ("train_came", "same_gradients")
    return run_ranks("tests.distributed.train_cases", 2, tmp_path_factory.mktemp("ranks"), *names)


@pytest.mark.parametrize("method", cases.METHODS)
@pytest.mark.parametrize("layout", list(cases.LAYOUTS[2]))
def test_curve_and_parameters(runs, layout, method):
    checks.assert_trains_as_one_process(runs, layout, "came", method)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_same_gradients_make_the_same_parameters(runs, stage):
    checks.assert_same_gradients_make_the_same_parameters(runs, stage)
