from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.transforms import _geometry, fit, to_frames, to_model
from core.errors import UserError


def test_crop_resize_takes_the_centre_of_a_wide_frame():
    # 2 x 8 to 2 x 4: columns 2..5, no resizing, so the values are exact.
    frames = np.arange(2 * 8 * 3, dtype=np.uint8).reshape(1, 2, 8, 3)
    assert (fit(frames, 2, 4) == frames[:, :, 2:6]).all()


def test_crop_resize_takes_the_centre_of_a_tall_frame():
    frames = np.arange(8 * 2 * 3, dtype=np.uint8).reshape(1, 8, 2, 3)
    assert (fit(frames, 4, 2) == frames[:, 2:6]).all()


def test_crop_resize_covers_the_target_for_a_real_size():
    # 480x720 to 768x1360: the full width, and 480 * ... rows of the target's ratio.
    box, size = _geometry(480, 720, 768, 1360, "crop_resize")
    assert box == (0, 37, 720, 443)
    assert size == (1360, 768)


@settings(max_examples=200)
@given(*[st.integers(1, 2000)] * 4)
def test_crop_resize_box_is_inside_centred_and_of_the_targets_ratio(source_h, source_w, height, width):
    (left, top, right, bottom), size = _geometry(source_h, source_w, height, width, "crop_resize")
    assert 0 <= left < right <= source_w
    assert 0 <= top < bottom <= source_h
    assert abs(left - (source_w - right)) <= 1
    assert abs(top - (source_h - bottom)) <= 1
    assert right - left == source_w or bottom - top == source_h
    assert size == (width, height)
    # Less than one source pixel off the exact ratio, on the side that is cut (or the least possible, one pixel).
    exact_w, exact_h = min(source_w, source_h * width / height), min(source_h, source_w * height / width)
    assert abs((right - left) - max(1, exact_w)) < 1
    assert abs((bottom - top) - max(1, exact_h)) < 1


def test_center_resizes_the_shorter_side_then_crops():
    frames = np.zeros((1, 4, 8, 3), np.uint8)
    frames[:, :, 4:] = 255
    out = fit(frames, 8, 10, "center")  # 8x16, columns 3..12
    assert out.shape == (1, 8, 10, 3)
    assert (out[0, :, :3] == 0).all()
    assert (out[0, :, -3:] == 255).all()


def test_center_that_does_not_cover_is_refused():
    with pytest.raises(UserError, match=r"8x4 does not cover 4x8.*crop_resize"):
        fit(np.zeros((1, 8, 4, 3), np.uint8), 4, 8, "center")


def test_channels_and_time_keep_their_places():
    frames = np.zeros((2, 6, 6, 3), np.uint8)
    frames[0, ..., 0], frames[1, ..., 2] = 255, 255
    video = to_model(fit(frames, 4, 4))
    assert video.shape == (3, 2, 4, 4)
    assert video.dtype == np.float32
    assert video[:, 0, 0, 0].tolist() == [1, -1, -1]
    assert video[:, 1, 0, 0].tolist() == [-1, -1, 1]


def test_all_256_values_survive_the_way_there_and_back():
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    assert (to_frames(to_model(frames)) == frames).all()


def test_out_of_range_is_clipped_and_nan_refused():
    assert to_frames(np.full((3, 1, 1, 1), 2.0, np.float32)).tolist() == [[[[255, 255, 255]]]]
    with pytest.raises(UserError, match="NaN"):
        to_frames(np.full((3, 1, 1, 1), np.nan, np.float32))


@pytest.mark.parametrize(
    ("frames", "size", "transform", "message"),
    [
        (np.zeros((1, 4, 4, 3), np.uint8), (4, 4), "squash", "transform 'squash'; needs one of crop_resize, center"),
        (np.zeros((1, 4, 4, 3), np.float32), (4, 4), "center", r"frames are float32 \[1, 4, 4, 3\]; need uint8"),
        (np.zeros((1, 4, 4, 4), np.uint8), (4, 4), "center", r"need uint8 \[T, H, W, 3\]"),
        (np.zeros((1, 4, 4, 3), np.uint8), (0, 4), "center", "target size 0x4"),
    ],
)
def test_wrong_arguments(frames, size, transform, message):
    with pytest.raises(UserError, match=message):
        fit(frames, size[0], size[1], transform)
