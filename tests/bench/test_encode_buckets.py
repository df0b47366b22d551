"""encode-video with buckets, and what training makes of its caches."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from bench.tasks import encode_video
from core.data import cache
from core.data.buckets import Bucket
from core.data.loader import CachedClips
from core.data.manifest import read_manifest
from core.data.video_writer import save_video
from core.errors import UserError
from recipes.load import from_dict
from tests.bench.task_runs import failures, run_task, video_recipe
from tests.core.data.clips import ramp

pytestmark = pytest.mark.usefixtures("mindspore_runs")

BUCKETS = [
    {"frames": 5, "height": 16, "width": 32, "batch_size": 2},
    {"frames": 9, "height": 16, "width": 32},
    {"frames": 5, "height": 32, "width": 16, "keep_probability": 0.5},
]
VIDEO = {"buckets": BUCKETS, "max_crop": 0.2}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Wide clips of 5 and 11 frames, a tall one, and one that no bucket fits."""
    folder = tmp_path_factory.mktemp("clips")
    sizes = {"short": (5, 18, 40), "long": (11, 18, 40), "tall": (6, 40, 18), "thin": (9, 16, 160)}
    for name, size in sizes.items():
        save_video(folder / f"{name}.mp4", ramp(*size), fps=8)
    (folder / "video_caption.csv").write_text("video\n" + "".join(f"{name}.mp4\n" for name in sizes))
    return folder


def notes(events):
    return {event["key"]: event["value"] for event in events if event["type"] == "note"}


def test_each_clip_is_encoded_at_its_buckets_size(tmp_path, clips):
    out = tmp_path / "out"
    ctx, events = run_task(encode_video, video_recipe(clips, video=VIDEO), out)
    expected = {"short": (2, 2, 4), "long": (3, 2, 4), "tall": (2, 4, 2)}
    for name, (frames, height, width) in expected.items():
        found = cache.read_video_cache(out / f"{name}.npz")
        assert found.latent_mean.shape == (frames, 16, height, width)
        assert found.identity is not None
        stored = [found.identity[key] for key in ("max_frames", "height", "width")]
        assert stored == [4 * frames - 3, 8 * height, 8 * width]
    assert ctx.failures == 1
    row, item, message = failures(events)[0]
    assert (row, item) == (4, "thin.mp4")
    assert "no bucket fits: 80.0% of a 16x160 picture would be cut off for bucket 5x16x32" in message
    note = notes(events)["buckets"]
    assert [bucket["clips"] for bucket in note["buckets"]] == [1, 1, 1]
    assert note["buckets"][0]["crop_max"] == pytest.approx(0.1)
    assert [(entry["row"], entry["video"]) for entry in note["refused"]] == [(4, "thin.mp4")]
    _, events = run_task(encode_video, video_recipe(clips, video=VIDEO), out)
    assert notes(events)["clips"]["kept"] == 3
    assert notes(events)["buckets"] == note


def test_a_cache_of_a_single_size_is_the_cache_of_that_bucket(tmp_path, clips):
    folder, out = tmp_path / "clips", tmp_path / "out"
    shutil.copytree(clips, folder)
    (folder / "video_caption.csv").write_text("video\nlong.mp4\n")
    single = video_recipe(folder, video={"height": 16, "width": 32, "max_frames": 9})
    run_task(encode_video, single, out)
    before = (out / "long.npz").read_bytes()
    ctx, events = run_task(encode_video, video_recipe(folder, video=VIDEO), out)
    assert (ctx.failures, notes(events)["clips"]["kept"]) == (0, 1)
    ctx, events = run_task(encode_video, video_recipe(folder, video=VIDEO | {"buckets": BUCKETS[:1]}), out)
    assert "made with other settings (max_frames 9 instead of 5); set overwrite: true" in failures(events)[0][2]
    run_task(encode_video, single | {"overwrite": True}, out)
    assert (out / "long.npz").read_bytes() == before


def test_training_finds_the_clips_in_the_buckets_they_were_encoded_for(tmp_path, clips):
    folder, out = tmp_path / "clips", tmp_path / "out"
    shutil.copytree(clips, folder)
    (folder / "video_caption.csv").write_text("video\nshort.mp4\nlong.mp4\ntall.mp4\n")
    _, events = run_task(encode_video, video_recipe(folder, video=VIDEO), out)
    text = cache.TextCache(text_emb=np.zeros((3, 6), np.float32), mask=np.ones(3, np.uint8))
    for name in ("short", "long", "tall"):
        cache.write_text_cache(tmp_path / "t5" / f"{name}.npz", text)
    rows = read_manifest(folder / "video_caption.csv", caption_column=None)
    made = [Bucket(**bucket) for bucket in BUCKETS]
    own = {"vae": (cache.read_identity(out / "tall.npz") or {})["vae"]}
    data = CachedClips(rows, tmp_path / "t5", out, buckets=made, scaling_factor=1.0, seed=0, expected=own)
    encoded = notes(events)["buckets"]["buckets"]
    for found, wanted in zip(data.statistics()["buckets"], encoded, strict=True):
        assert {key: found[key] for key in wanted} == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("video", "words"),
    [
        ({}, r"video\.height: missing, need height, width, max_frames or buckets and max_crop"),
        ({"height": 16, "width": 16}, r"video\.max_frames: missing"),
        ({"buckets": BUCKETS}, r"video\.max_crop: missing, need the largest share"),
        (VIDEO | {"height": 16, "max_frames": 5}, r"video\.height: got height and max_frames together with buckets"),
        ({"height": 16, "width": 16, "max_frames": 5, "max_crop": 0.2}, r"video\.max_crop: got a bound without bucke"),
        (VIDEO | {"transform": "center"}, r"video\.transform: got center, need crop_resize with buckets"),
        (VIDEO | {"buckets": []}, r"video\.buckets"),
        (VIDEO | {"buckets": [*BUCKETS, BUCKETS[0]]}, r"video\.buckets\.3: got 5x16x32 twice"),
        (VIDEO | {"buckets": [BUCKETS[0] | {"frames": 6}]}, r"video\.buckets\.0\.frames: got 6, need 4n\+1.*5 or 9"),
        (VIDEO | {"frames_rule": "8n+1"}, r"video\.buckets\.0\.frames: got 5, need 8n\+1 frames"),
        (VIDEO | {"buckets": [BUCKETS[0] | {"height": 20}]}, r"video\.buckets\.0\.height"),
        (VIDEO | {"max_crop": 1.0}, r"video\.max_crop"),
        (VIDEO | {"max_upscale": 0.5}, r"video\.max_upscale"),
    ],
)
def test_what_a_recipe_may_not_say(clips, video, words):
    with pytest.raises(UserError, match=words):
        from_dict({"schema": 1, "name": "x", **video_recipe(clips, video=video)})
