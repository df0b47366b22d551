"""The same on four ranks, and layouts that differ from these in one thing, two steps each."""

from __future__ import annotations

import pytest

from tests.distributed import train_cases as cases
from tests.distributed import train_checks as checks
from tests.distributed.ranks import run_ranks


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    names = ("train", "same_gradients", "few_steps")
    return run_ranks("tests.distributed.train_cases", 4, tmp_path_factory.mktemp("ranks"), *names)


@pytest.mark.parametrize(("optimizer", "method"), cases.KINDS)
@pytest.mark.parametrize("layout", list(cases.LAYOUTS[4]))
def test_curve_and_parameters(runs, layout, optimizer, method):
    checks.assert_trains_as_one_process(runs, layout, optimizer, method)


@pytest.mark.parametrize("method", ["sft", "lora"])
@pytest.mark.parametrize("layout", list(cases.LAYOUTS[4]))
def test_bytes_of_live_tensors_are_those_of_the_formula(runs, layout, method):
    checks.assert_bytes_of_live_tensors(runs, layout, method)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_same_gradients_make_the_same_parameters(runs, stage):
    checks.assert_same_gradients_make_the_same_parameters(runs, stage)


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
