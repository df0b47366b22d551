"""Rank arithmetic and the cost of collectives, by hand; no processes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from core.parallel.mesh import Mesh, held, share
from core.parallel.traffic import Kind, Message, Traffic, sent_bytes


def test_groups_by_hand():
    mesh = Mesh(ranks=8, sequence=4)
    assert mesh.data == 2
    assert mesh.sequence_group(1) == mesh.sequence_group(3) == (0, 1, 2, 3)
    assert mesh.sequence_group(6) == (4, 5, 6, 7)
    assert mesh.data_group(6) == mesh.data_group(2) == (2, 6)
    assert (mesh.row(6), mesh.column(6)) == (1, 2)


def test_zero_over_neighbours_by_hand():
    mesh = Mesh(ranks=8, sequence=2, zero=4)
    assert mesh.zero_group(5) == (4, 5, 6, 7)
    assert mesh.replica_group(5) == mesh.replica_group(1) == (1, 5)
    every = Mesh(ranks=8, sequence=2)
    assert (every.zero_group(5), every.replica_group(5)) == (every.world(), (5,))
    for wrong in (0, 3, 16):
        with pytest.raises(UserError, match=rf"parallel\.zero_ranks: got {wrong} for 8 processes, need a divisor"):
            Mesh(ranks=8, zero=wrong)


@given(st.integers(1, 8), st.integers(1, 8))
def test_each_part_is_held_once_in_each_group(size, copies):
    mesh = Mesh(ranks=size * copies, zero=size)
    for rank in mesh.world():
        group, replicas = mesh.zero_group(rank), mesh.replica_group(rank)
        assert (len(group), len(replicas)) == (size, copies)
        assert set(group) & set(replicas) == {rank}
        assert {mesh.zero_group(r).index(r) for r in replicas} == {group.index(rank)}


@given(st.integers(1, 8), st.integers(1, 8))
def test_groups_cut_the_ranks_into_equal_parts_that_cross_once(data, sequence):
    mesh = Mesh(ranks=data * sequence, sequence=sequence)
    for rank in mesh.world():
        own, others = mesh.sequence_group(rank), mesh.data_group(rank)
        assert own[mesh.column(rank)] == others[mesh.row(rank)] == rank
        assert rank // sequence == mesh.row(rank)  # as the original counts its groups
        assert set(own) & set(others) == {rank}
        assert (len(own), len(others)) == (sequence, data)
    assert sorted(r for row in range(data) for r in mesh.sequence_group(row * sequence)) == list(mesh.world())


@pytest.mark.parametrize(("ranks", "sequence"), [(8, 3), (4, 8), (0, 1), (4, 0)])
def test_a_layout_that_does_not_divide_is_refused(ranks, sequence):
    with pytest.raises(UserError, match=r"need a divisor of runtime\.workers"):
        Mesh(ranks=ranks, sequence=sequence)


@given(st.integers(0, 100), st.integers(1, 9))
def test_parts_cover_everything_once(total, parts):
    pieces = [held(total, parts, index) for index in range(parts)]
    assert [i for piece in pieces for i in piece] == list(range(total))
    assert all(len(piece) <= share(total, parts) for piece in pieces)


def test_bytes_by_hand():
    # 4 ranks with 1000 bytes each, sent by one rank in a ring.
    expected: dict[Kind, int] = {
        "all_reduce": 1500,
        "reduce_scatter": 750,
        "all_gather": 3000,
        "all_to_all": 750,
        "broadcast": 1000,
        "next": 1000,
    }
    assert {kind: sent_bytes(kind, 1000, 4) for kind in expected} == expected
    assert not any(sent_bytes(kind, 1000, 1) for kind in expected)
    # A reduce-scatter and the gather of its parts move what an all-reduce moves.
    assert sent_bytes("reduce_scatter", 800, 8) + sent_bytes("all_gather", 100, 8) == sent_bytes("all_reduce", 800, 8)


def test_traffic_is_counted_by_purpose():
    traffic = Traffic()
    traffic.add(Message("sequence", "all_to_all", 1000, 4), times=2)
    traffic.add(Message("gradients", "reduce_scatter", 80, 2))
    traffic.add(Message("gradients", "all_reduce", 80, 1))
    assert traffic.table() == {
        "sequence": {"all_to_all": {"calls": 2, "bytes": 1500}},
        "gradients": {"reduce_scatter": {"calls": 1, "bytes": 40}},
    }
    traffic.reset()
    assert traffic.table() == {}
