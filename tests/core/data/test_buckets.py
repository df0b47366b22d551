"""Which bucket a clip belongs to: by hand, and by brute force for any sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.data.buckets import (
    MAX_UPSCALE,
    Bucket,
    assign,
    bucket_table,
    check_buckets,
    crop_share,
    fallbacks,
    upscale,
)
from core.data.transforms import _geometry, fit
from core.errors import UserError
from tests.core.data.clips import ramp

WIDE = Bucket(frames=9, height=32, width=64)
SQUARE = Bucket(frames=9, height=48, width=48)
LARGE = Bucket(frames=9, height=64, width=128)
LONG = Bucket(frames=17, height=32, width=64)

sides = st.integers(1, 40).map(lambda n: 16 * n)
lengths = st.integers(0, 8).map(lambda n: 4 * n + 1)
buckets = st.lists(
    st.builds(Bucket, frames=lengths, height=sides, width=sides), min_size=1, max_size=6, unique_by=lambda b: b.size
)
sources = st.tuples(st.integers(1, 40), st.integers(8, 2000), st.integers(8, 2000))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((20, 100, 200), 1),  # 2:1, no crop in three of them: the most pixels
        ((20, 40, 80), 1),
        ((20, 30, 60), 3),  # enlarging to 64x128 is too much: the small ones, and of these the longer
        ((16, 30, 60), 0),
        ((9, 300, 310), 2),
    ],
)
def test_assignment_by_hand(size, expected):
    assert assign(size, [WIDE, LARGE, SQUARE, LONG], max_crop=0.2).bucket == expected


def test_the_cropped_share_is_that_of_the_picture():
    assert crop_share(100, 200, 50, 50) == 0.5
    assert crop_share(200, 100, 50, 50) == 0.5
    assert crop_share(90, 160, 48, 80) == 0.0625  # 150 of 160 columns stay
    assert crop_share(480, 768, 480, 768) == 0
    # The transform cuts what is stated: of the 62 columns 34 stay.
    frames = ramp(1, height=34, width=62)
    assert crop_share(34, 62, 16, 16) == 1 - 34 / 62
    assert (fit(frames, 34, 34) == frames[:, :, 14:48]).all()


@given(sources, buckets, st.floats(0, 0.9))
def test_nothing_that_fits_is_cut_less_and_the_bounds_hold(size, made, max_crop):
    frames, height, width = size
    found = assign(size, made, max_crop=max_crop)
    cuts = {
        index: crop_share(height, width, bucket.height, bucket.width)
        for index, bucket in enumerate(made)
        if bucket.frames <= frames and upscale(height, width, bucket.height, bucket.width) <= MAX_UPSCALE
    }
    fitting = {index: crop for index, crop in cuts.items() if crop <= max_crop}
    if not fitting:
        assert found.bucket is None
        assert found.reason
        assert "\n" not in found.reason
        return
    assert found.bucket is not None
    assert found.crop == fitting[found.bucket] == min(fitting.values()) <= max_crop
    equals = [index for index, crop in fitting.items() if crop == found.crop]
    ranks = {index: (made[index].height * made[index].width, made[index].frames) for index in equals}
    assert ranks[found.bucket] == max(ranks.values())


@given(st.integers(64, 2000), st.integers(64, 2000), sides, sides)
def test_what_the_transform_cuts_is_the_stated_share_and_nothing_is_stretched(height, width, tall, wide):
    (left, top, right, bottom), size = _geometry(height, width, tall, wide, "crop_resize")
    box_h, box_w = bottom - top, right - left
    assert size == (wide, tall)
    assert box_h == height or box_w == width
    # The box has whole pixels: it may be up to one row or column smaller than the exact one.
    kept = (1 - crop_share(height, width, tall, wide)) * height * width
    assert kept - max(box_h, box_w) - 1e-6 * height * width <= box_h * box_w <= kept + 1e-6 * height * width
    exact = wide / tall
    assert (box_w - 1e-6) / (box_h + 1) <= exact <= (box_w + 1) / (box_h - 1e-6)


@given(sources, buckets, st.floats(0, 0.9), st.randoms())
def test_the_order_of_the_list_does_not_matter(size, made, max_crop, random):
    shuffled = random.sample(made, len(made))
    one, other = assign(size, made, max_crop=max_crop), assign(size, shuffled, max_crop=max_crop)
    assert (one.crop, one.reason) == (other.crop, other.reason)
    if one.bucket is not None and other.bucket is not None:
        first, second = made[one.bucket], shuffled[other.bucket]
        # Two of equal pixels and frames may crop the same (one too high, one too wide): the first of the list wins.
        assert (first.height * first.width, first.frames) == (second.height * second.width, second.frames)


@given(st.integers(8, 2000), st.integers(8, 2000), sides, sides, st.integers(1, 5))
def test_scaling_a_bucket_changes_no_bit_of_its_share(height, width, tall, wide, factor):
    assert crop_share(height, width, tall, wide) == crop_share(height, width, tall * factor, wide * factor)
    assert 0 <= crop_share(height, width, tall, wide) < 1


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((8, 100, 200), "8 frames, the shortest bucket has 9; use a longer clip or add a bucket of fewer frames"),
        ((9, 10, 200), "a 10x200 picture would be enlarged 3.2 times, at most 2 are allowed"),
        ((9, 300, 100), "66.7% of a 300x100 picture would be cut off for bucket 9x48x48, at most 20.0% may be"),
    ],
)
def test_why_no_bucket_fits(size, reason):
    found = assign(size, [WIDE, LARGE, SQUARE, LONG], max_crop=0.2)
    assert found.bucket is None
    assert found.reason.startswith(reason)


def test_fallbacks_are_of_the_same_size_and_shorter():
    longest = Bucket(frames=33, height=32, width=64)
    made = [WIDE, LARGE, longest, SQUARE, LONG]
    assert fallbacks(2, made) == (2, 4, 0)
    assert fallbacks(4, made) == (4, 0)
    assert fallbacks(1, made) == (1,)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"frames": 8}, r"bucket 8x32x64: needs 4n\+1 frames"),
        ({"height": 0}, "bucket 9x0x64: needs"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"keep_probability": 0.0}, r"keep_probability 0\.0; need 1 or more, and above 0 to 1"),
        ({"keep_probability": 1.5}, "keep_probability 1.5"),
    ],
)
def test_buckets_that_make_no_sense(fields, words):
    with pytest.raises(UserError, match=words):
        Bucket(**({"frames": 9, "height": 32, "width": 64} | fields))


def test_a_list_of_buckets_has_one_of_each_size():
    with pytest.raises(UserError, match="buckets 9x32x64, 9x32x64; needs one or more of different sizes"):
        check_buckets([WIDE, Bucket(frames=9, height=32, width=64, batch_size=2)])
    with pytest.raises(UserError, match="buckets none"):
        check_buckets([])


def test_the_table_counts_clips_and_knows_what_it_does_not_know():
    rows = bucket_table([WIDE, SQUARE, LARGE], [(0, 0.1), (0, 0.3), (2, None)])
    assert [row["clips"] for row in rows] == [2, 0, 1]
    assert [(row["crop_mean"], row["crop_max"]) for row in rows] == [(0.2, 0.3), (None, None), (None, None)]
    assert (rows[1]["frames"], rows[1]["height"], rows[1]["width"]) == (9, 48, 48)
