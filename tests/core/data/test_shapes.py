from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from core.data import shapes
from core.data.manifest import read_manifest, resolve_video
from core.data.shapes import Clip
from core.data.video import VideoReader
from core.errors import UserError


def clip(**more) -> Clip:
    settings = {"shape": "circle", "color": "red", "motion": "right", "background": "black", "size": 0.4, "offset": 0.5}
    return Clip(**(settings | more))


def centre(frame: np.ndarray, background: tuple[int, int, int]) -> tuple[float, float]:
    rows, columns = np.nonzero(np.abs(frame.astype(int) - background).sum(-1) > 60)
    return float(columns.mean()), float(rows.mean())


@pytest.mark.parametrize("shape", shapes.SHAPES)
@pytest.mark.parametrize(("motion", "sign"), [("right", (1, 0)), ("left", (-1, 0)), ("up", (0, -1)), ("down", (0, 1))])
def test_the_shape_moves_as_the_caption_says(shape, motion, sign):
    frames = shapes.render_clip(clip(shape=shape, motion=motion), frames=5, height=48, width=64)
    places = np.array([centre(frame, (16, 16, 16)) for frame in frames])
    steps = np.diff(places, axis=0)
    assert (np.sign(np.rint(steps)) == sign).all()
    assert np.abs(steps - steps.mean(axis=0)).max() < 0.75  # constant speed, up to a pixel's rounding


@pytest.mark.parametrize("color", shapes.COLORS)
@pytest.mark.parametrize("background", shapes.BACKGROUNDS)
def test_colours_are_the_captions(color, background):
    frames = shapes.render_clip(clip(color=color, background=background), frames=3, height=48, width=64)
    assert tuple(frames[1, 24, 32]) == shapes.COLORS[color]
    assert tuple(frames[1, 0, 0]) == shapes.BACKGROUNDS[background]
    assert np.abs(np.subtract(shapes.COLORS[color], shapes.BACKGROUNDS[background])).max() > 80


def test_edges_are_smooth_and_the_shape_stays_inside():
    frames = shapes.render_clip(clip(), frames=9, height=48, width=64)
    assert len(np.unique(frames[4].reshape(-1, 3), axis=0)) > 5
    assert ((frames[:, 0] == 16).all(), (frames[:, -1] == 16).all()) == (True, True)
    area = (frames > 60).any(-1).sum((1, 2))
    assert area.max() - area.min() <= 0.05 * area.max()


def test_shapes_differ_in_their_area():
    area = {
        name: (shapes.render_clip(clip(shape=name), frames=1, height=64, width=64)[0].astype(float) - 16)[..., 0].sum()
        for name in shapes.SHAPES
    }
    assert area["circle"] / area["square"] == pytest.approx(np.pi / 4, abs=0.03)
    assert area["triangle"] / area["square"] == pytest.approx(0.5, abs=0.03)


def test_clips_depend_on_seed_and_number_only_and_do_not_repeat():
    drawn = [shapes.draw_clip(3, i) for i in range(120)]
    assert drawn == [shapes.draw_clip(3, i) for i in range(120)]
    assert drawn != [shapes.draw_clip(4, i) for i in range(120)]
    assert len({(c.shape, c.color, c.motion, c.background) for c in drawn}) == 120  # all 3 x 5 x 4 x 2
    only = [shapes.draw_clip(0, i, shapes=("square",), colors=("blue",), motions=("up",)) for i in range(4)]
    assert {c.caption for c in only} == {f"a blue square moving up on a {b} background" for b in ("black", "grey")}


def test_extents_are_within_the_bounds_and_change_nothing_else():
    small, large = ([shapes.draw_clip(3, i, size=size) for i in range(50)] for size in ((0.25, 0.4), (0.4, 0.5)))
    assert all(0.25 <= c.size <= 0.4 for c in small)
    assert all(0.4 <= c.size <= 0.5 for c in large)
    assert small == [shapes.draw_clip(3, i) for i in range(50)]
    assert [(c.caption, c.offset) for c in small] == [(c.caption, c.offset) for c in large]


def test_captions_have_the_article_of_their_colour():
    assert {(c, clip(color=c).caption.split()[0]) for c in shapes.COLORS} == {
        (c, "an" if c == "orange" else "a") for c in shapes.COLORS
    }


def test_captions_can_leave_out_all_but_the_shape():
    whole = clip(shape="square", color="orange", motion="up", background="grey")
    said = {
        (): "an orange square moving up on a grey background",
        ("color",): "a square moving up on a grey background",
        ("motion",): "an orange square on a grey background",
        ("background",): "an orange square moving up",
        ("color", "motion", "background"): "a square",
    }
    assert {names: replace(whole, unsaid=frozenset(names)).caption for names in said} == said


def test_each_part_of_a_caption_is_left_out_as_often_as_asked_and_the_clips_stay_the_same():
    whole, dropped = ([shapes.draw_clip(3, i, caption_drop=drop) for i in range(600)] for drop in (0.0, 0.3))
    assert all(not c.unsaid for c in whole)
    assert [replace(c, unsaid=frozenset()) for c in dropped] == whole
    for name in shapes.CAN_BE_UNSAID:
        assert 0.24 < np.mean([name in c.unsaid for c in dropped]) < 0.36
    alone = np.mean([c.unsaid == {"color"} for c in dropped])
    assert 0.1 < alone < 0.2  # 0.3 * 0.7 * 0.7: by themselves


def test_every_caption_is_listed_once():
    captions = shapes.all_captions()
    assert len(set(captions)) == len(captions) == 3 * 8 * 4 * 2
    every = {shapes.draw_clip(0, i, colors=tuple(shapes.COLORS)).caption for i in range(192)}
    assert every == set(captions)
    by_default = {shapes.draw_clip(0, i).color for i in range(120)}
    assert by_default == {"red", "green", "blue", "yellow", "white"}


@pytest.mark.parametrize(("hold_out", "seed"), [(1, 0), (12, 0), (12, 5), (30, 1)])
def test_train_and_held_out_share_nothing_and_make_all(hold_out, seed):
    def named(part: Any, **more: Any):
        return shapes.combinations(hold_out=hold_out, hold_out_seed=seed, part=part, **more)

    train, held_out = set(named("train")), set(named("held_out"))
    assert len(held_out) == hold_out
    assert not train & held_out
    assert train | held_out == set(named("all")) == set(shapes.combinations())
    reordered: dict[str, Any] = {"colors": shapes.DEFAULT_COLORS[::-1], "motions": tuple(shapes.MOTIONS)[::-1]}
    assert set(named("held_out", **reordered)) == held_out


def test_draws_visit_their_part_only_and_all_of_it():
    settings: dict[str, Any] = {"hold_out": 10, "hold_out_seed": 2}
    parts: list[tuple[shapes.Part, int]] = [("train", 50), ("held_out", 10), ("all", 60)]
    for part, count in parts:
        drawn = [shapes.draw_clip(1, i, part=part, **settings) for i in range(2 * count)]  # two backgrounds
        seen = [(c.shape, c.color, c.motion) for c in drawn]
        assert set(seen) == set(shapes.combinations(part=part, **settings))
        assert len({(c.shape, c.color, c.motion, c.background) for c in drawn}) == 2 * count
    other = set(shapes.combinations(part="held_out", hold_out=10, hold_out_seed=3))
    assert other != set(shapes.combinations(part="held_out", **settings))


def test_a_hold_out_that_can_not_be_is_refused():
    with pytest.raises(UserError, match=r"clips\.hold_out: got 60, need 0 to 59 of 60 combinations"):
        shapes.combinations(hold_out=60)
    with pytest.raises(UserError, match=r"clips\.part: held_out of clips\.hold_out 0 is empty"):
        shapes.draw_clip(0, 0, part="held_out")
    with pytest.raises(UserError, match=r"hold_out: 3 with clips\.hold_out_seed 0 leaves no .* in train"):
        shapes.combinations(shapes=("circle",), motions=("up",), colors=("red", "green", "blue", "cyan"), hold_out=3)


def test_what_is_not_known_is_refused():
    with pytest.raises(UserError, match=r"clips\.colors: pink; needs some of red, green"):
        shapes.draw_clip(0, 0, colors=("pink",))
    with pytest.raises(UserError, match=r"clips\.shapes: empty"):
        shapes.draw_clip(0, 0, shapes=())


def test_files_are_in_the_originals_layout_and_always_the_same(tmp_path):
    clips = [shapes.draw_clip(0, i) for i in range(3)]
    for name in ("a", "b"):
        rows = shapes.write_clips(tmp_path / name, clips, frames=9, height=32, width=46, fps=8)
    assert rows[1] == ("video_folder/part01/vid002.mp4", clips[1].caption)
    assert shapes.video_name(100) == "video_folder/part02/vid001.mp4"
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert [str(f) for f in files] == ["video_caption.csv"] + [f"video_folder/part01/vid00{i}.mp4" for i in (1, 2, 3)]
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    manifest = read_manifest(tmp_path / "a" / "video_caption.csv", video_folder=tmp_path / "a")
    assert [row.caption for row in manifest] == [c.caption for c in clips]
    with VideoReader(resolve_video(manifest.rows[0], tmp_path / "a")) as reader:
        frames = reader.read()
    drawn = shapes.render_clip(clips[0], frames=9, height=32, width=46)
    assert np.abs(frames.astype(int) - drawn).mean() < 4
