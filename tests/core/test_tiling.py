"""The tiles' geometry and weights: against in-place blending in a loop, and by property."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from core.presets import PRESETS
from core.vae.tiling import TilePlan, TilingConfig, plan_tiles

sizes = st.integers(1, 40)
tile_sizes = st.integers(1, 14)
overlaps = st.floats(0, 0.5)
corners = st.sampled_from(["reference", "separable"])


@st.composite
def plans(draw) -> TilePlan:
    tiling = TilingConfig(
        tile_height=8 * draw(tile_sizes),
        tile_width=8 * draw(tile_sizes),
        overlap_height=draw(overlaps),
        overlap_width=draw(overlaps),
        corners=draw(corners),
    )
    return plan_tiles(draw(sizes), draw(sizes), tiling)


def assembled(plan: TilePlan, values: dict, scale: int) -> np.ndarray:
    out = np.zeros((plan.rows.size * scale, plan.cols.size * scale))
    for tile in plan.tiles:
        box = np.s_[tile.top * scale : tile.bottom * scale, tile.left * scale : tile.right * scale]
        out[box] += plan.weights(tile, scale) * values[tile.i, tile.j]
    return out


def blended_in_place(plan: TilePlan, values: dict, scale: int) -> np.ndarray:
    """Every tile is mixed row by row with the finished tile above, then column by column with the one on the left."""
    done: dict = {}
    extents = [(axis.lengths[0] - axis.stride) * scale for axis in (plan.rows, plan.cols)]
    out = np.full((plan.rows.size * scale, plan.cols.size * scale), np.nan)
    for tile in plan.tiles:
        t = values[tile.i, tile.j].astype(np.float64)
        for axis, before in enumerate([(tile.i - 1, tile.j), (tile.i, tile.j - 1)]):
            if before not in done:
                continue
            mine, other = np.moveaxis(t, axis, 0), np.moveaxis(done[before], axis, 0)
            extent = min(len(mine), len(other), extents[axis])
            for k in range(extent):
                mine[k] = other[len(other) - extent + k] * (1 - k / extent) + mine[k] * (k / extent)
        done[tile.i, tile.j] = t
        kept = t[: plan.rows.stride * scale, : plan.cols.stride * scale]
        top, left = tile.top * scale, tile.left * scale
        out[top : top + kept.shape[0], left : left + kept.shape[1]] = kept
    return out


def test_weights_along_one_axis_by_hand():
    plan = plan_tiles(10, 4, TilingConfig(tile_height=32, tile_width=32, overlap_height=0.5, overlap_width=0))
    assert plan.rows.lengths == (4, 4, 4, 4, 2)
    assert plan.rows.stride == 2
    np.testing.assert_array_equal(plan.rows.weights(0, 1), [1, 1, 1, 0.5])
    np.testing.assert_array_equal(plan.rows.weights(1, 1), [0, 0.5, 1, 0.5])
    np.testing.assert_array_equal(plan.rows.weights(4, 1), [0, 0.5])
    np.testing.assert_array_equal(plan.rows.weights(0, 2), [1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_corner_by_hand():
    tiling = {"tile_height": 32, "tile_width": 32, "overlap_height": 0.5, "overlap_width": 0.5}
    plain = plan_tiles(6, 6, TilingConfig(**tiling, corners="separable"))
    reference = plan_tiles(6, 6, TilingConfig(**tiling))
    above_right = plain.tiles[1]
    assert (above_right.i, above_right.j) == (0, 1)
    assert plain.weights(above_right, 1)[3, 1] == pytest.approx(0.5 * 0.5)
    assert reference.weights(above_right, 1)[3, 1] == pytest.approx(0.5 * 0.5**2)
    assert plain.weights(above_right, 1)[0, 1] == reference.weights(above_right, 1)[0, 1] == pytest.approx(0.5)


@settings(max_examples=150, deadline=None)
@given(plans(), st.sampled_from([1, 2, 8]))
def test_weights_are_not_negative_and_sum_to_one_at_every_pixel(plan, scale):
    ones = {(tile.i, tile.j): 1.0 for tile in plan.tiles}
    total = assembled(plan, ones, scale)
    np.testing.assert_allclose(total, 1.0, atol=1e-6)
    assert all(plan.weights(tile, scale).min() >= 0 for tile in plan.tiles)


def test_the_sum_notices_a_missing_tile():
    plan = plan_tiles(9, 9, TilingConfig(tile_height=32, tile_width=32))
    ones = {(tile.i, tile.j): float((tile.i, tile.j) != (1, 1)) for tile in plan.tiles}
    assert assembled(plan, ones, 1).min() == 0


@settings(max_examples=150, deadline=None)
@given(plans(), st.sampled_from([1, 3, 8]), st.integers(0, 2**31))
def test_reference_corners_equal_in_place_blending(plan, scale, seed):
    plan = TilePlan(plan.rows, plan.cols, "reference")
    rng = np.random.default_rng(seed)
    values = {
        (t.i, t.j): rng.standard_normal(((t.bottom - t.top) * scale, (t.right - t.left) * scale)) for t in plan.tiles
    }
    np.testing.assert_allclose(assembled(plan, values, scale), blended_in_place(plan, values, scale), atol=2e-6)


def test_separable_corners_differ_from_in_place_blending():
    tiling = TilingConfig(tile_height=32, tile_width=32, overlap_height=0.5, overlap_width=0.5, corners="separable")
    plan = plan_tiles(6, 6, tiling)
    rng = np.random.default_rng(0)
    values = {(t.i, t.j): rng.standard_normal((t.bottom - t.top, t.right - t.left)) for t in plan.tiles}
    difference = np.abs(assembled(plan, values, 1) - blended_in_place(plan, values, 1)) > 1e-6
    assert difference.any()
    crossing = {(y, x) for y in (2, 3, 4, 5) for x in (2, 3, 4, 5)}
    assert {(int(y), int(x)) for y, x in np.argwhere(difference)} <= crossing


@settings(max_examples=100, deadline=None)
@given(plans(), st.integers(0, 3), st.integers(0, 2**31))
def test_tiled_equals_whole_away_from_seams(plan, reach, seed):
    """For a function that sees ``reach`` pixels around: equal wherever every weighted tile sees that far."""

    def blur(x):
        padded = np.pad(x, reach)
        width = 2 * reach + 1
        rows = np.sum([padded[k : k + x.shape[0]] for k in range(width)], axis=0)
        return np.sum([rows[:, k : k + x.shape[1]] for k in range(width)], axis=0)

    image = np.random.default_rng(seed).standard_normal((plan.rows.size, plan.cols.size))
    values, unseen = {}, np.zeros(image.shape, bool)
    for t in plan.tiles:
        values[t.i, t.j] = blur(image[t.top : t.bottom, t.left : t.right])
        sees = np.ones(image.shape, bool)
        top = t.top + reach if t.top else 0
        left = t.left + reach if t.left else 0
        bottom = t.bottom - reach if t.bottom < image.shape[0] else image.shape[0]
        right = t.right - reach if t.right < image.shape[1] else image.shape[1]
        sees[top : max(top, bottom), left : max(left, right)] = False
        box = np.s_[t.top : t.bottom, t.left : t.right]
        unseen[box] |= sees[box] & (plan.weights(t, 1) > 0)
    np.testing.assert_allclose(assembled(plan, values, 1)[~unseen], blur(image)[~unseen], atol=1e-4)
    if reach == 0:
        assert not unseen.any()


@settings(max_examples=100, deadline=None)
@given(plans(), st.integers(1, 5))
def test_groups_hold_every_tile_once_in_equal_shapes(plan, max_batch):
    groups = plan.groups(max_batch)
    assert sorted((t.i, t.j) for g in groups for t in g) == sorted((t.i, t.j) for t in plan.tiles)
    for group in groups:
        assert len(group) <= max_batch
        assert len({(t.bottom - t.top, t.right - t.left) for t in group}) == 1


def test_no_tiling_and_a_small_clip_are_one_tile():
    for plan in (plan_tiles(7, 9, None), plan_tiles(4, 5, TilingConfig(tile_height=32, tile_width=40))):
        assert len(plan.tiles) == 1
        assert (plan.weights(plan.tiles[0], 8) == 1).all()


def test_published_tiles():
    """480x720 with the reference's defaults: tiles of 240x360, latents 30x45, strides 25 and 36."""
    tiling = TilingConfig.reference(PRESETS["5b"].vae)
    plan = plan_tiles(60, 90, tiling)
    assert (plan.rows.stride, plan.rows.lengths) == (25, (30, 30, 10))
    assert (plan.cols.stride, plan.cols.lengths) == (36, (45, 45, 18))


def test_half_a_tile_of_overlap_never_joins_three_tiles():
    plan = plan_tiles(9, 9, TilingConfig(tile_height=24, tile_width=24, overlap_height=0.5, overlap_width=0.5))
    assert plan.rows.stride == 2  # 1.5 latents would round to 2 of 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tile_height": 0, "tile_width": 8}, "tiling.tile_height: got 0, need a positive number"),
        ({"tile_height": 8, "tile_width": 8, "max_batch": 0}, "tiling.max_batch: got 0"),
        ({"tile_height": 8, "tile_width": 8, "overlap_width": 0.6}, "tiling.overlap_width: got 0.6, need 0 to 0.5"),
        ({"tile_height": 8, "tile_width": 8, "overlap_height": -0.1}, "tiling.overlap_height: got -0.1"),
        ({"tile_height": 8, "tile_width": 8, "corners": "round"}, "tiling.corners: got 'round', need one of"),
    ],
)
def test_bad_values_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        TilingConfig(**values)


def test_a_tile_that_is_no_multiple_of_8_is_refused():
    with pytest.raises(UserError, match=r"tiling.tile_width: got 100, need a multiple of 8; use 96"):
        plan_tiles(60, 90, TilingConfig(tile_height=240, tile_width=100))
