"""The sequence of batches, as properties that hold for any data set and any number of ranks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.buckets import Bucket, fallbacks
from core.data.plan import BucketPlan, ContinuousPlan, rank_samples
from core.errors import UserError

LENGTHS = (33, 17, 9)
ALWAYS = st.just(1.0)


@st.composite
def worlds(draw, keep=ALWAYS):
    """Buckets of two sizes and three lengths, and the choices of up to 30 clips."""
    made = [
        Bucket(frames=frames, height=32, width=width, batch_size=draw(st.integers(1, 3)), keep_probability=draw(keep))
        for width in (32, 64)
        for frames in LENGTHS
    ]
    firsts = draw(st.lists(st.integers(0, len(made) - 1), min_size=1, max_size=30))
    return made, [fallbacks(first, made) for first in firsts]


def plan(world, *, accumulation=1, ranks=1, seed=0):
    made, choices = world
    return BucketPlan(choices, made, [b.batch_size * accumulation * ranks for b in made], seed=seed)


def steps(made, start, count):
    return [(bucket, items.tolist()) for bucket, items in (made.step(step) for step in range(start, start + count))]


@given(worlds(), st.integers(1, 3), st.integers(1, 2), st.integers(0, 5))
def test_every_clip_is_seen_in_every_epoch_and_only_in_its_bucket(world, ranks, accumulation, seed):
    made = plan(world, ranks=ranks, accumulation=accumulation, seed=seed)
    length = int(made.epoch_steps())
    for epoch in range(2):
        seen = steps(made, epoch * length, length)
        counts = Counter(item for _, items in seen for item in items)
        assert set(counts) == set(range(len(world[1])))
        assert all(bucket == world[1][item][0] for bucket, items in seen for item in items)
        assert sum(counts.values()) - len(counts) == made.epoch(epoch).repeated
        for bucket, entry in enumerate(world[0]):
            size = entry.batch_size * ranks * accumulation
            members = sum(choice[0] == bucket for choice in world[1])
            batches = [items for b, items in seen if b == bucket]
            # No more is repeated than fills the last batch, and no clip twice as often as another.
            assert len(batches) == -(-members // size)
            assert all(len(items) == size for items in batches)
            shown = Counter(item for items in batches for item in items)
            assert not shown or max(shown.values()) - min(shown.values()) <= 1


@given(worlds(keep=st.sampled_from([1.0, 0.7, 0.3])), st.integers(0, 40), st.integers(0, 3))
def test_starting_at_any_step_is_running_through(world, start, seed):
    through = steps(plan(world, seed=seed), 0, start + 6)
    assert steps(plan(world, seed=seed), start, 6) == through[start:]
    backwards = plan(world, seed=seed)
    assert [steps(backwards, step, 1)[0] for step in reversed(range(start + 6))] == through[::-1]


@given(worlds(keep=st.sampled_from([1.0, 0.5])), st.sampled_from([(1, 4), (2, 2), (4, 1)]))
def test_the_sequence_is_that_of_any_number_of_ranks_of_the_same_global_batch(world, split):
    ranks, accumulation = split
    assert steps(plan(world, ranks=ranks, accumulation=accumulation), 0, 12) == steps(plan(world, ranks=4), 0, 12)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_ranks_share_the_samples_of_a_step_without_overlap(batch_size, accumulation, ranks):
    shares = [
        rank_samples(rank, batch_size=batch_size, accumulation=accumulation, ranks=ranks) for rank in range(ranks)
    ]
    every = [sample for share in shares for part in share for sample in part]
    assert sorted(every) == list(range(batch_size * accumulation * ranks))
    assert all(len(share) == accumulation and all(len(part) == batch_size for part in share) for share in shares)


@given(worlds(keep=st.sampled_from([1.0, 0.6, 0.2])), st.integers(0, 3))
def test_a_clip_left_out_of_a_bucket_goes_to_the_next_shorter_one(world, seed):
    made, choices = world
    for epoch in range(3):
        members = plan(world, seed=seed).members(epoch)
        for item, bucket in enumerate(members):
            assert bucket == -1 or bucket in choices[item]
            if bucket == -1:  # the last of its choices did not keep it
                assert made[choices[item][-1]].keep_probability < 1
            for passed in choices[item][: choices[item].index(bucket) if bucket >= 0 else None]:
                assert made[passed].keep_probability < 1


def test_clips_stay_as_often_as_asked_and_not_always_the_same_ones():
    made = [Bucket(frames=17, height=32, width=32, keep_probability=0.25), Bucket(frames=9, height=32, width=32)]
    kept = np.stack([BucketPlan([(0, 1)] * 400, made, [1, 1], seed=0).members(epoch) == 0 for epoch in range(20)])
    assert abs(kept.mean() - 0.25) < 0.02
    assert 0 < kept.mean(axis=0).max() < 0.8
    # What one clip draws does not depend on how many there are after it.
    fewer = BucketPlan([(0, 1)] * 100, made, [1, 1], seed=0).members(3)
    assert (BucketPlan([(0, 1)] * 400, made, [1, 1], seed=0).members(3)[:100] == fewer).all()


def test_batches_of_different_buckets_are_mixed_and_epochs_differ():
    made = [Bucket(frames=9, height=32, width=32), Bucket(frames=9, height=32, width=64)]
    world = (made, [(item % 2,) for item in range(40)])
    first = steps(plan(world), 0, 40)
    assert len({bucket for bucket, _ in first[:10]}) == 2
    assert first != steps(plan(world), 40, 40) != steps(plan(world, seed=1), 0, 40)
    straight = BucketPlan(world[1], made, [2, 2], seed=0, shuffle=False)
    assert steps(straight, 0, 3) == [(0, [0, 2]), (0, [4, 6]), (0, [8, 10])]


def test_a_bucket_smaller_than_its_batch_repeats_its_clips():
    made = BucketPlan([(0,)] * 2, [Bucket(frames=9, height=32, width=32)], [5], seed=0, shuffle=False)
    assert steps(made, 0, 1) == [(0, [0, 1, 0, 1, 0])]
    assert made.epoch(0).repeated == 3


def test_nothing_left_for_a_thousand_epochs_is_said():
    rare = [Bucket(frames=9, height=32, width=32, keep_probability=1e-12)]
    with pytest.raises(UserError, match=r"keep_probability \[1e-12\]: 1000 epochs in a row had no clip left"):
        BucketPlan([(0,)], rare, [1], seed=0).step(0)


@settings(max_examples=30)
@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 20), st.booleans())
def test_one_size_runs_through_its_epochs_without_a_gap(clips, samples, start, shuffle):
    made = ContinuousPlan(clips, samples, seed=3, shuffle=shuffle)
    flat = [item for step in range(start, start + 4) for item in made.step(step)[1].tolist()]
    whole = [item for epoch in range((start + 4) * samples // clips + 1) for item in made.order(epoch).tolist()]
    assert flat == whole[start * samples : (start + 4) * samples]
    assert sorted(made.order(1).tolist()) == list(range(clips))
