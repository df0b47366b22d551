"""20 training steps of every layout of two ranks equal those of one process with the same global batch."""

from __future__ import annotations

import numpy as np
import pytest

from tests.distributed import train_cases as cases
from tests.distributed import train_checks as checks
from tests.distributed.ranks import run_ranks


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    names = ("train", "same_gradients", "overflow")
    return run_ranks("tests.distributed.train_cases", 2, tmp_path_factory.mktemp("ranks"), *names)


@pytest.mark.parametrize(("optimizer", "method"), cases.KINDS)
@pytest.mark.parametrize("layout", list(cases.LAYOUTS[2]))
def test_curve_and_parameters(runs, layout, optimizer, method):
    checks.assert_trains_as_one_process(runs, layout, optimizer, method)


@pytest.mark.parametrize("method", ["sft", "lora"])
@pytest.mark.parametrize("layout", list(cases.LAYOUTS[2]))
def test_bytes_of_live_tensors_are_those_of_the_formula(runs, layout, method):
    checks.assert_bytes_of_live_tensors(runs, layout, method)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_same_gradients_make_the_same_parameters(runs, stage):
    checks.assert_same_gradients_make_the_same_parameters(runs, stage)


@pytest.mark.parametrize("stage", range(4))
def test_an_overflow_on_one_rank_skips_the_step_on_all(runs, stage):
    for found in runs.of("overflow"):
        skipped, moved, scale, count, loss = found[str(stage)].T
        assert skipped.tolist() == [0, 1, 0, 0]
        assert moved.tolist() == [1, 0, 1, 1]
        assert scale.tolist() == [2.0**40, 2.0**39, 2.0**39, 2.0**39]
        assert count.tolist() == [0, 1, 1, 1]
        assert np.isfinite(loss).all()
        assert found[f"{stage}/agree"]
