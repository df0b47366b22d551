"""The same on four ranks, and layouts that differ from these in one thing, two steps each."""

from __future__ import annotations

import pytest

from tests.distributed import train_cases as cases
from tests.distributed import train_checks as checks
from tests.distributed.ranks import run_ranks


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return run_ranks("tests.distributed.train_cases", 4, tmp_path_factory.mktemp("ranks"), "train_adamw", "few_steps")


@pytest.mark.parametrize("method", cases.METHODS)
@pytest.mark.parametrize("layout", list(cases.LAYOUTS[4]))
def test_curve_and_parameters(runs, layout, method):
    checks.assert_trains_as_one_process(runs, layout, "adamw", method)


@pytest.mark.parametrize("method", ["sft", "lora"])
@pytest.mark.parametrize("layout", list(cases.LAYOUTS[4]))
def test_bytes_of_live_tensors_are_those_of_the_formula(runs, layout, method):
    checks.assert_bytes_of_live_tensors(runs, layout, method)


@pytest.mark.parametrize("optimizer", ["adamw", "came"])
@pytest.mark.parametrize("layout", list(cases.FEW[4]))
def test_zero_over_all_and_over_some_of_four_ranks(runs, layout, optimizer):
    _, stage, subset = cases.FEW[4][layout]
    want = checks.single(optimizer, "sft", cases.FEW_STEPS)
    whole, part = checks.bytes_whole_and_part(optimizer, "sft", 2 if subset else 4)
    for found in runs.of("few_steps"):
        key = f"{layout}/{optimizer}"
        assert found[f"{key}/agree"]
        checks.assert_curve_and_values(found, key, want)
        assert found[f"{key}/held"].tolist() == [0 if stage == 3 else whole, part]
