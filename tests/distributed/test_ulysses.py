"""Outputs and gradients of shared sequences equal those of one process."""

from __future__ import annotations

import numpy as np
import pytest

from core.parallel.mesh import share
from core.parallel.traffic import sent_bytes
from tests.distributed import ulysses_cases as cases
from tests.distributed.ranks import run_ranks
from tests.tolerances import MODULE, relative_error


@pytest.fixture(scope="module", params=[2, 4])
def results(request, tmp_path_factory):
    return run_ranks("tests.distributed.ulysses_cases", request.param, tmp_path_factory.mktemp("ranks"))


def _assert_equal(found, key, preset, lengths):
    want = cases._summary(cases.outputs(preset, lengths, None))
    for name, value in want.items():
        assert relative_error(found[f"{key}/{name}"], value) <= MODULE, (key, name)


@pytest.mark.parametrize("lengths", list(cases.LENGTHS))
@pytest.mark.parametrize("preset", cases.PRESET_NAMES)
def test_outputs_and_gradients(results, preset, lengths):
    for found in results.of("ulysses"):
        _assert_equal(found, f"{preset}/{lengths}", preset, lengths)


@pytest.mark.parametrize("mode", ["none", "all"])
def test_compiled_blocks(results, mode):
    for found in results.of("graph"):
        _assert_equal(found, mode, "tiny-1.5", "odd")


@pytest.mark.parametrize(("mode", "times"), [("none", 2), ("all", 3), ("keep_attention", 3)])
def test_what_is_computed_again_is_exchanged_again_and_counted(results, mode, times):
    ranks, config = results.ranks, cases.config_of("tiny-1.5")
    text, frames, height, width = cases.LENGTHS["odd"]
    length = share(text, ranks) + share(frames * height * width // 8, ranks)
    one = 2 * length * config.inner_dim * 4
    per_block = sent_bytes("all_to_all", 3 * one, ranks) + sent_bytes("all_to_all", one, ranks)
    for found in results.of("recompute"):
        _assert_equal(found, mode, "tiny-1.5", "odd")
        assert found[f"{mode}/all_to_all"].tolist() == [
            2 * times * config.num_layers,
            times * config.num_layers * per_block,
        ]


def test_every_rank_has_the_same_bits(results):
    first, *others = results.of("ulysses")
    for other in others:
        assert all(np.array_equal(first[key], other[key]) for key in first)
