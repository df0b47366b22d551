"""Two layouts of eight real processes, two steps each, equal one process."""

from __future__ import annotations

import pytest

from core import ops
from tests.distributed import train_cases as cases
from tests.distributed import train_checks as checks
from tests.distributed.ranks import run_ranks


@pytest.fixture(scope="module")
def eight_ranks(tmp_path_factory):
    return run_ranks("tests.distributed.train_cases", 8, tmp_path_factory.mktemp("ranks"), "eight")


@pytest.mark.parametrize("layout", list(cases.EIGHT))
def test_eight_ranks_train_as_one_process(eight_ranks, layout):
    optimizer = cases.EIGHT[layout][2]
    ops.configure()
    want = cases.single(optimizer, "sft", cases.FEW_STEPS, cases.four_samples)
    for found in eight_ranks.of("eight"):
        assert found[f"{layout}/agree"]
        checks.assert_curve_and_values(found, layout, want)
        assert found[f"{layout}/held"].tolist() == list(checks.bytes_whole_and_part(optimizer, "sft", 8))
