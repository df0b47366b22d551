from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.data.frames import latent_frames, legal_frames, select_frames
from core.errors import UserError


def test_stride_and_resampling_by_hand():
    assert select_frames(7, 8.0)[0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    indices, fps = select_frames(7, 8.0, frame_stride=3)
    assert (indices.tolist(), fps) == ([0, 3, 6], 8 / 3)
    indices, fps = select_frames(9, 24.0, fps=8)
    assert (indices.tolist(), fps) == ([0, 3, 6], 8)
    # 30 -> 16: i * 1.875 rounded half up.
    assert select_frames(10, 30.0, fps=16)[0].tolist() == [0, 2, 4, 6, 8, 9]
    assert select_frames(9, 24.0, fps=8, frame_stride=2)[0].tolist() == [0, 6]


@given(st.integers(1, 300), st.floats(1, 120), st.floats(0.5, 120), st.integers(1, 4))
def test_indices_rise_from_zero_within_the_clip(total, source, fps, stride):
    fps = min(fps, source)
    indices, rate = select_frames(total, source, fps=fps, frame_stride=stride)
    assert indices[0] == 0
    assert indices[-1] < total
    assert (np.diff(indices) > 0).all()
    assert rate == fps / stride


def test_repeating_frames_is_refused():
    with pytest.raises(UserError, match=r"has 8 fps and 16 were asked for.*set video\.fps to 8 or less"):
        select_frames(9, 8.0, fps=16)
    assert select_frames(9, 15.98, fps=16)[0].tolist() == list(range(9))
    with pytest.raises(UserError, match="states no frame rate"):
        select_frames(9, 0.0, fps=16)
    with pytest.raises(UserError, match="frame_stride 0"):
        select_frames(9, 8.0, frame_stride=0)


@pytest.mark.parametrize(
    ("available", "limit", "rule", "expected"),
    [
        (100, 85, "8n+1", 81), (81, None, "8n+1", 81), (80, None, "8n+1", 73), (9, 85, "8n+1", 9),
        (100, 85, "4n+1", 85), (84, 85, "4n+1", 81), (100, 81, "16n+1", 81), (80, 81, "16n+1", 65),
        (1, 1, "8n+1", 1), (50, 1, "16n+1", 1),
    ],
)  # fmt: skip
def test_longest_legal_prefix(available, limit, rule, expected):
    assert legal_frames(available, limit, rule) == expected


def test_too_few_frames_states_the_rule_and_what_was_got():
    with pytest.raises(UserError, match=r"got 8, the rule 8n\+1 needs 9, 17, 25"):
        legal_frames(8, 85, "8n+1")
    with pytest.raises(UserError, match=r"got 16, the rule 16n\+1 needs 17, 33, 49"):
        legal_frames(16, 85, "16n+1")
    with pytest.raises(UserError, match=r"max_frames 8; the rule 8n\+1 needs at least 9"):
        legal_frames(80, 8, "8n+1")
    with pytest.raises(UserError, match=r"'7n\+1'; needs one of 4n\+1"):
        legal_frames(80, 8, "7n+1")


def test_latent_frames_of_the_published_lengths():
    assert [latent_frames(f) for f in (1, 49, 77, 81, 85)] == [1, 13, 20, 21, 22]
    with pytest.raises(UserError, match=r"80 frames; the causal VAE needs 4n\+1"):
        latent_frames(80)
