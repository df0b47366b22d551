"""20 training steps with AdamW of every layout of two ranks equal those of one process with the same global batch."""

from __future__ import annotations

import numpy as np
import pytest

from tests.distributed import train_cases as cases
from tests.distributed import train_checks as checks
from tests.distributed.ranks import run_ranks


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return run_ranks(
        "tests.distributed.train_cases", 2, tmp_path_factory.mktemp("ranks"), "train_adamw", "overflow", "pieces"
    )


@pytest.mark.parametrize("method", cases.METHODS)
@pytest.mark.parametrize("layout", list(cases.LAYOUTS[2]))
def test_curve_and_parameters(runs, layout, method):
    checks.assert_trains_as_one_process(runs, layout, "adamw", method)


@pytest.mark.parametrize("method", ["sft", "lora"])
@pytest.mark.parametrize("layout", list(cases.LAYOUTS[2]))
def test_bytes_of_live_tensors_are_those_of_the_formula(runs, layout, method):
    checks.assert_bytes_of_live_tensors(runs, layout, method)


@pytest.mark.parametrize("method", cases.METHODS)
@pytest.mark.parametrize("layout", list(cases.LAYOUTS[2]))
def test_feed_forwards_in_pieces(runs, layout, method):
    want = checks.single("adamw", method, cases.FEW_STEPS)
    for found in runs.of("pieces"):
        assert found[f"{layout}/{method}/agree"]
        checks.assert_curve_and_values(found, f"{layout}/{method}", want)


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
