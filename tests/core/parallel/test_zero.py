"""Cutting tensors by arithmetic; and each stage on one process is the plain optimiser, bit by bit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import ops
from core.optim.came import CAME
from core.parallel.collectives import alone
from core.parallel.cut import Cut
from core.parallel.reducing import buckets
from core.parallel.traffic import BUCKET_BYTES
from core.parallel.zero import Zero

SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple)


def test_cut_by_hand():
    cut = Cut((5, 3), 4)
    assert (cut.part_shape, cut.padded) == ((2, 3), True)
    assert [cut.valid(i).tolist() for i in range(4)] == [[1, 1], [1, 1], [1, 0], [0, 0]]
    assert Cut((1, 6, 4), 2).part_shape == (3, 4)  # a table of positions is cut, too
    assert Cut((1, 6), 2).part_shape == (1, 6)  # a matrix stays one: CAME factors it


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.integers(1, 5))
def test_parts_make_the_whole_again(shape, parts):
    whole = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    cut = Cut(shape, parts)
    pieces = np.stack([cut.part(whole, index).ravel() for index in range(parts)])
    assert np.array_equal(cut.spread(ms.Tensor(whole)).asnumpy(), pieces)
    assert np.array_equal(cut.assembled(ms.Tensor(pieces)).asnumpy(), whole)


@pytest.mark.parametrize(
    ("shape", "mode"),
    [((5, 3), "pynative"), ((5,), "pynative"), ((3, 2, 2, 2), "pynative"), ((5, 3), "graph")],
)
def test_rows_of_padding_do_not_move_came(shape, mode):
    """A single part with padding, whose means are over the true rows, steps as the tensor itself."""
    ops.configure(mode=mode)
    rng = np.random.default_rng(0)
    value = rng.standard_normal(shape).astype(np.float32)
    cut = Cut(shape, 1)
    longer = np.concatenate([value, np.zeros((2, *shape[1:]), np.float32)])
    valid = (np.arange(len(longer)) < len(value)).astype(np.float32)
    assert not cut.padded
    options = {"betas": (0.9, 0.95, 0.99), "eps": (1e-30, 1e-16), "weight_decay": 0.1}
    plain, padded = (ms.Parameter(ms.Tensor(v), name="w") for v in (value, longer))
    one = CAME([plain], **options)
    model: Any = SimpleNamespace(keep_in=lambda storage: None)
    exchange = Zero(model, [padded], alone().world, 1).came_options()["shards_mean"]
    padding = [(valid, len(longer) / len(value))]
    other = CAME([padded], **options, sharded=[True], shards_mean=exchange, padding=padding)
    for _ in range(4):
        gradient = rng.standard_normal(shape).astype(np.float32)
        one.step([ms.Tensor(gradient)], 1e-2)
        other.step([ms.Tensor(np.concatenate([gradient, np.zeros((2, *shape[1:]), np.float32)]))], 1e-2)
    got = padded.asnumpy()
    assert np.abs(got[: len(value)] - plain.asnumpy()).max() <= 1e-6
    assert np.all(got[len(value) :] == 0)


def test_what_travels_together_has_one_type_and_is_no_larger_than_a_bucket(monkeypatch):
    monkeypatch.setitem(BUCKET_BYTES, "CPU", 4 * 12)
    types = [ms.float32, ms.float32, ms.float32, ms.bfloat16, ms.float32]
    cuts = [Cut(shape, 2) for shape in [(4, 2), (4,), (3,), (3,), (20,)]]
    assert list(buckets(cuts, types)) == [[0, 1], [2], [3], [4]]
