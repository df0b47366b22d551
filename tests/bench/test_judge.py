"""The judge on clips whose caption is known to be true, read back from mp4: sharp, blurred, noisy, mislabelled."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from bench.context import RunContext
from bench.events import EventLog
from bench.judge import UNKNOWN, judge
from bench.judge_scores import ATTRIBUTES, asked_for, wilson
from bench.tasks import judge as judge_task
from core.data import shapes
from core.data.video import VideoReader
from core.data.video_writer import save_video
from core.errors import UserError
from recipes.load import from_dict

SIZES = ((9, 64, 64), (17, 64, 64), (9, 64, 96), (17, 64, 96))
PER_SIZE = 80


def through_mp4(frames: np.ndarray, path: Path) -> np.ndarray:
    save_video(path, frames, fps=8)
    with VideoReader(path, "pyav") as reader:
        return reader.read()


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[tuple[shapes.Clip, np.ndarray]]:
    """320 clips of every colour as they come out of a file."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    made = []
    for number, (frames, height, width) in enumerate(SIZES):
        for index in range(PER_SIZE):
            clip = shapes.draw_clip(40 + number, index, colors=tuple(shapes.COLORS))
            made.append((clip, through_mp4(shapes.render_clip(clip, frames=frames, height=height, width=width), path)))
    return made


def degraded(frames: np.ndarray, blur: float, noise: float, seed: int) -> np.ndarray:
    soft = np.stack([np.asarray(Image.fromarray(f).filter(ImageFilter.GaussianBlur(blur))) for f in frames])
    return np.clip(soft + np.random.default_rng(seed).normal(0, noise, soft.shape), 0, 255).astype(np.uint8)


def shares(asked: list[shapes.Clip], seen: list) -> dict[str, float]:
    pairs = list(zip(asked, seen, strict=True))
    return {name: float(np.mean([getattr(c, name) == getattr(v, name) for c, v in pairs])) for name in ATTRIBUTES}


def test_true_captions_score_and_shuffled_ones_are_at_chance(clips):
    asked, seen = [clip for clip, _ in clips], [judge(frames) for _, frames in clips]
    assert len(clips) >= 300
    for first in range(0, len(clips), PER_SIZE):
        part = slice(first, first + PER_SIZE)
        assert min(shares(asked[part], seen[part]).values()) >= 0.99
    shuffled = [asked[n] for n in np.random.default_rng(0).permutation(len(asked))]
    chance = shares(shuffled, seen)
    assert chance["shape"] == pytest.approx(1 / 3, abs=0.09)
    assert chance["color"] == pytest.approx(1 / 8, abs=0.09)
    assert chance["motion"] == pytest.approx(1 / 4, abs=0.09)
    # And a wrong word in one attribute costs that attribute alone.
    flipped = [shapes.Clip(**{**clip.__dict__, "motion": "up" if clip.motion == "down" else "down"}) for clip in asked]
    assert shares(flipped, seen)["motion"] < 0.35
    assert shares(flipped, seen)["shape"] >= 0.99


@pytest.mark.parametrize(("blur", "noise", "least"), [(1.0, 10, 0.99), (2.0, 20, 0.95)])
def test_blur_and_noise_of_a_decoder_are_borne(clips, blur, noise, least):
    some = clips[:: len(clips) // 120]
    seen = [judge(degraded(frames, blur, noise, n)) for n, (_, frames) in enumerate(some)]
    assert min(shares([clip for clip, _ in some], seen).values()) >= least


def still(value: np.ndarray, frames: int = 9) -> np.ndarray:
    return np.repeat(value[None], frames, 0)


def test_nothing_to_see_is_unknown():
    rng = np.random.default_rng(0)
    empty = np.full((9, 64, 64, 3), 80, np.uint8)
    noise = rng.integers(0, 256, (9, 64, 64, 3)).astype(np.uint8)
    coloured_noise = np.clip(np.kron(rng.normal(100, 40, (9, 16, 16, 3)), np.ones((1, 4, 4, 1))), 0, 255)
    ramp = still(np.broadcast_to(np.linspace(0, 255, 64)[:, None, None], (64, 64, 3))).astype(np.uint8)
    for frames in (empty, noise, ramp, coloured_noise.astype(np.uint8), empty[:1]):
        verdict = judge(frames)
        assert UNKNOWN in (verdict.shape, verdict.motion), verdict
    assert (judge(empty).shape, judge(empty).color, judge(empty).motion) == (UNKNOWN,) * 3


def test_what_is_not_clear_is_unknown_by_itself():
    clip = shapes.Clip(shape="square", color="red", motion="right", background="black", size=0.4, offset=0.5)
    frames = shapes.render_clip(clip, frames=9, height=64, width=64)
    resting = judge(still(frames[4]))
    assert (resting.shape, resting.color, resting.motion) == ("square", "red", UNKNOWN)
    bar = np.full((9, 64, 64, 3), 16, np.uint8)
    for n in range(9):
        bar[n, 28:34, 4 + 3 * n : 34 + 3 * n] = (60, 90, 230)
    assert (judge(bar).shape, judge(bar).color, judge(bar).motion) == (UNKNOWN, "blue", "right")
    half = frames.copy()
    half[4:] = 16  # the object vanishes
    assert judge(half).shape == UNKNOWN
    darker = (frames.astype(int) * [0.5, 1.5, 1.0]).clip(0, 255).astype(np.uint8)  # dull brown, hue of orange or red
    assert judge(darker).color in ("red", "orange", UNKNOWN)


def test_captions_are_read_by_word():
    assert asked_for("A red Circle moving to the left on a grey background") == {
        "shape": "circle", "color": "red", "motion": "left",
    }  # fmt: skip
    assert asked_for("a cyan thing on a white background") == {"color": "cyan"}
    assert asked_for("something moving up, then staying up") == {"motion": "up"}
    for caption, message in (("a dog", "names no shape"), ("a red and a blue circle", "names blue and red, need one")):
        with pytest.raises(UserError, match=message):
            asked_for(caption)


def test_wilsons_interval_by_hand():
    low, high = wilson(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 20)[0] == 0
    assert wilson(20, 20)[1] == 1


def run(folder: Path, out: Path, **more) -> tuple[dict, list[dict]]:
    out.mkdir()
    log = out.parent / f"{out.name}.jsonl"
    recipe = from_dict({"schema": 1, "name": "test", "kind": "judge", "videos": str(folder), **more})
    judge_task.run(recipe, RunContext(recipe, out, 0, EventLog(log)))
    events = [json.loads(line) for line in log.read_text().splitlines()]
    return {event["name"]: event["value"] for event in events if event["type"] == "metric"}, events


def test_the_task_scores_a_folder(tmp_path):
    clips = [shapes.draw_clip(0, i) for i in range(4)]
    rows = shapes.write_clips(tmp_path / "clips", clips, frames=9, height=64, width=64, fps=8)
    metrics, events = run(tmp_path / "clips", tmp_path / "out")
    assert [metrics[f"judge.{name}"] for name in ("shape", "color", "motion", "all")] == [1.0] * 4
    assert (metrics["judge.videos"], metrics["judge.3_of_3"], metrics["judge.0_of_3"]) == (4, 4, 0)
    with open(tmp_path / "out" / "judge.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["shape_seen"], row["color_seen"], row["motion_right"]) for row in table] == [
        (clip.shape, clip.color, "1") for clip in clips
    ]
    note = next(event["value"] for event in events if event["type"] == "note" and event["key"] == "judge")
    assert note["all"] == {"right": 4, "of": 4, "low": pytest.approx(0.5101, abs=1e-4), "high": 1.0}
    # A wrong colour, a caption that names a part, one that names nothing, and a video that is not there.
    other = "blue" if clips[0].color != "blue" else "red"
    captions = [rows[0][1].replace(clips[0].color, other), f"a {clips[1].shape}", "a dog", rows[3][1]]
    changed = [(video, caption) for (video, _), caption in zip(rows, captions, strict=True)]
    changed.append(("gone.mp4", rows[0][1]))
    shapes.write_csv(tmp_path / "clips", changed)
    metrics, events = run(tmp_path / "clips", tmp_path / "again")
    failed = [(event["row"], event["message"]) for event in events if event["type"] == "failure"]
    assert [row for row, _ in failed] == [3, 5]
    assert "names no shape" in failed[0][1]
    assert "no such file" in failed[1][1]
    assert (metrics["judge.shape"], metrics["judge.color"], metrics["judge.all"]) == (1.0, 0.5, 0.5)
    assert (metrics["judge.videos"], metrics["judge.2_of_3"], metrics["judge.3_of_3"]) == (3, 1, 1)


@pytest.mark.parametrize("suffix", ["mp4", "gif", "png", "npy"])
def test_every_format_of_generate_is_read(tmp_path, suffix):
    clip = shapes.draw_clip(5, 0)
    frames = shapes.render_clip(clip, frames=9, height=64, width=64)
    name = "video" if suffix == "png" else f"video.{suffix}"
    save_video(tmp_path / name, frames, fps=8, format=suffix)
    shapes.write_csv(tmp_path, [(name, clip.caption)])
    metrics, _ = run(tmp_path, tmp_path / "out")
    assert metrics["judge.all"] == 1.0


def test_what_is_no_video_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"videos: no such folder"):
        run(tmp_path / "none", tmp_path / "a")
    with pytest.raises(UserError, match=r"video_caption\.csv"):
        run(tmp_path, tmp_path / "b")
