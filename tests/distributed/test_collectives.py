"""Collectives of real processes: values, gradients against their transposed maps and differences, counts."""

from __future__ import annotations

import numpy as np
import pytest

from core.parallel.traffic import sent_bytes
from tests.distributed.collective_cases import KINDS, expected, expected_gradient, inputs, weights
from tests.distributed.ranks import run_ranks
from tests.tolerances import OPERATOR, relative_error


@pytest.fixture(scope="module", params=[2, 4])
def results(request, tmp_path_factory):
    return run_ranks("tests.distributed.collective_cases", request.param, tmp_path_factory.mktemp("ranks"))


def test_values_are_numpys(results):
    ranks = results.ranks
    for rank, found in enumerate(results.of("counted")):
        for kind in KINDS:
            got = found[kind].reshape(expected(kind, ranks)[rank].shape)
            assert relative_error(got, expected(kind, ranks)[rank]) <= OPERATOR, kind
        for root in range(ranks):
            assert np.array_equal(found[f"broadcast/{root}"], inputs(root, ranks))
        before = inputs((rank - 1) % ranks, ranks)
        assert np.array_equal(found["next"], before)
        assert np.abs(found["half"] - before).max() <= np.abs(before).max() / 256
        for kind in KINDS[:3]:
            assert np.array_equal(found[f"started/{kind}"], found[kind]), kind


@pytest.mark.parametrize("mode", ["pynative", "graph"])
def test_gradients_are_those_of_the_transposed_maps(results, mode):
    for rank, found in enumerate(results.of("collectives")):
        for kind in KINDS:
            want = expected_gradient(kind, results.ranks)[rank]
            assert relative_error(found[f"{kind}/{mode}/once"], want) <= OPERATOR, kind
            # f(x) + 2 f(x^2): one cell twice in a function, where a bprop must not see the other call.
            twice = want + 4 * inputs(rank, results.ranks) * want
            assert relative_error(found[f"{kind}/{mode}/twice"], twice) <= OPERATOR, kind


@pytest.mark.parametrize("kind", KINDS)
def test_the_transposed_maps_agree_with_central_differences(kind):
    """The sum of all ranks' losses is linear in each input, so differences of any size are exact but for rounding."""
    ranks, step = 3, 0.5
    gradient = expected_gradient(kind, ranks)[1]

    def loss(shift: np.ndarray) -> float:
        every = [inputs(rank, ranks).astype(np.float64) + (shift if rank == 1 else 0) for rank in range(ranks)]
        blocks = [np.split(value, ranks) for value in every]
        outputs = {
            "all_reduce": [np.sum(every, axis=0)] * ranks,
            "all_gather": [np.concatenate(every)] * ranks,
            "reduce_scatter": np.split(np.sum(every, axis=0), ranks),
            "all_to_all": [np.concatenate([blocks[j][r] for j in range(ranks)]) for r in range(ranks)],
        }[kind]
        return sum(float((out * weights(rank, out.shape)).sum()) for rank, out in enumerate(outputs))

    for place in [(0, 0), (3, 1), (5, 2)]:
        shift = np.zeros((2 * ranks, 3))
        shift[place] = step
        assert (loss(shift) - loss(-shift)) / (2 * step) == pytest.approx(gradient[place], rel=1e-5)


def test_calls_and_bytes_are_counted_by_the_real_collectives_cost(results):
    ranks = results.ranks
    size = inputs(0, ranks).nbytes
    for found in results.of("counted"):
        for kind in KINDS:
            assert found[f"count/{kind}"].tolist() == [1, sent_bytes(kind, size, ranks)], kind
        assert found["count/broadcast"].tolist() == [ranks, ranks * size]
        assert found["count/next"].tolist() == [1, size]


def test_groups_are_those_of_the_mesh(results):
    half = results.ranks // 2
    for rank, found in enumerate(results.of("groups")):
        assert found["sequence"][0] == 2 * (rank - rank % 2) + 1
        members = [rank % 2 + 2 * row for row in range(half)]
        assert found["data"][0] == sum(members)
        assert found["gathered"].tolist() == members
