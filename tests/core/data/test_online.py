"""Clips encoded in the loop, with encoders that are simple enough to know their results."""

from __future__ import annotations

import json

import numpy as np
import pytest

from core.data import cache
from core.data.buckets import Bucket
from core.data.loader import CachedClips
from core.data.manifest import read_manifest
from core.data.online import OnlineClips
from core.data.transforms import fit, to_model
from core.data.video import VideoReader
from core.data.video_writer import save_video
from core.errors import UserError
from tests.core.data.clips import make_clip, numbers, ramp

CAPTIONS = ['a "quoted", horse', "two\nlines\r\nof text", "emoji 🐎👩‍🚀", "word " * 2000, "größe"]


def encode_video(pixels):
    """Every fourth frame's mean over 2 x 2 pixels is the mean, half of it the deviation."""
    frames = pixels[:, :, ::4].reshape(*pixels[:, :, ::4].shape[:3], pixels.shape[3] // 2, 2, pixels.shape[4] // 2, 2)
    mean = frames.mean(axis=(4, 6)).astype(np.float32)
    return mean, np.abs(mean) / 2


class Texts:
    """Counts what it is asked for; the embedding is the length of the caption."""

    def __init__(self):
        self.asked: list[str] = []

    def __call__(self, captions):
        self.asked += captions
        return np.stack([np.full((3, 6), len(text), np.float32) for text in captions])


@pytest.fixture
def folder(tmp_path):
    """Five clips of 9 to 17 frames with difficult captions."""
    rows = []
    for i, caption in enumerate(CAPTIONS):
        make_clip(tmp_path / "v" / f"{i}.mp4", frames=9 + 2 * i, height=34, width=62)
        rows.append(f'v/{i}.mp4,"{caption.replace(chr(34), chr(34) * 2)}"\n')
    (tmp_path / "c.csv").write_bytes(("video,caption\n" + "".join(rows)).encode())
    return tmp_path


def load(folder, **more):
    settings = {"encode_video": encode_video, "encode_text": Texts(), "scaling_factor": 1.0, "seed": 0}
    settings |= {"size": (9, 32, 48), "backend": "pyav"}
    if "buckets" in more:
        del settings["size"]
    return OnlineClips(read_manifest(folder / "c.csv"), folder, **(settings | more))


def test_it_is_what_a_cache_of_the_same_frames_gives(folder):
    online = load(folder, random_start=False, batch_size=2, scaling_factor=0.7, text_drop_prob=0.5)
    mask = np.ones(3, np.uint8)
    for i, caption in enumerate(CAPTIONS):
        with VideoReader(folder / f"v/{i}.mp4", "pyav") as reader:
            mean, std = encode_video(to_model(online_frames(reader))[None])
        entry = cache.VideoCache(
            latent_mean=np.ascontiguousarray(mean[0].swapaxes(0, 1)),
            latent_std=np.ascontiguousarray(std[0].swapaxes(0, 1)), fps=8.0, ori_size=(34, 62),
        )  # fmt: skip
        cache.write_video_cache(folder / "vae" / f"v/{i}.npz", entry)
        for name, text in ((f"v/{i}.npz", caption), (cache.EMPTY_TEXT, "")):
            text_emb = Texts()([text])[0]
            cache.write_text_cache(folder / "t5" / name, cache.TextCache(text_emb=text_emb, mask=mask))
    cached = CachedClips(
        read_manifest(folder / "c.csv"), folder / "t5", folder / "vae", latent_frames=3, scaling_factor=0.7, seed=0,
        batch_size=2, text_drop_prob=0.5, spatial_compression=2,
    )  # fmt: skip
    for step in range(4):
        one, other = online.batch(step), cached.batch(step)
        for name in ("item", "video", "fps", "text_dropped", "bucket"):
            assert one[name] == other[name], name
        assert (one["latents"] == other["latents"]).all()
        assert (one["prompt_embeds"] == other["prompt_embeds"]).all()


def online_frames(reader):
    return fit(reader.read(np.arange(9)), 32, 48)


def frames_of(clips, step, i=0):
    """Which frames of the ramp a sample's pixels are."""
    part = clips.load(step, [i])["parts"][0]
    pixels = np.rint((part["pixels"].transpose(1, 2, 3, 0) + 1) * 127.5).astype(np.uint8)
    return part["item"], numbers(pixels)


def test_pieces_start_at_random_frames_that_the_step_and_sample_decide(folder):
    clips = load(folder)
    seen = {}
    for step in range(60):
        item, frames = frames_of(clips, step)
        assert frames == list(range(frames[0], frames[0] + 9))
        assert frames[-1] < 9 + 2 * item
        seen.setdefault(item, set()).add(frames[0])
    assert seen[0] == {0}
    assert len(seen[4]) > 3
    assert frames_of(load(folder), 37) == frames_of(clips, 37)
    assert all(frames_of(load(folder, random_start=False), step)[1][0] == 0 for step in range(5))


def test_stride_and_rate_choose_frames_as_encode_video_does(folder):
    _, frames = frames_of(load(folder, size=(5, 32, 48), frame_stride=2, random_start=False), 0)
    assert frames == [0, 2, 4, 6, 8]
    assert load(folder, size=(5, 32, 48), fps=4.0).sample(0, 0)["fps"] == 4.0
    with pytest.raises(UserError, match=r"c\.csv:2 \(row 1\): .*has 8 fps and 16 were asked for"):
        load(folder, fps=16.0)


def test_half_of_the_samples_are_mirrored(folder):
    plain, mirrored = load(folder, random_start=False), load(folder, random_start=False, horizontal_flip=True)
    flips = 0
    for step in range(40):
        one, other = (clips.load(step)["parts"][0] for clips in (plain, mirrored))
        flips += other["flipped"]
        expected = one["pixels"][..., ::-1] if other["flipped"] else one["pixels"]
        assert (expected == other["pixels"]).all()
        assert not other["flipped"] or (one["pixels"] != other["pixels"]).any()
    assert 10 <= flips <= 30


def test_captions_reach_the_encoder_character_by_character_and_once(folder):
    texts = Texts()
    clips = load(folder, encode_text=texts, text_drop_prob=0.3)
    for step in range(30):
        clips.batch(step)
    assert sorted(texts.asked) == sorted([*CAPTIONS, ""])
    few = Texts()
    clips = load(folder, encode_text=few, captions_kept=2, shuffle=False)
    for step in (0, 1, 0, 1, 2, 0):
        clips.batch(step)
    assert few.asked == [CAPTIONS[0], CAPTIONS[1], CAPTIONS[2], CAPTIONS[0]]


def test_ranks_get_the_same_numbers_however_the_batch_is_split(folder):
    whole = load(folder, batch_size=4).batch(2)
    spread = load(folder, batch_size=1, accumulation=2, data_ranks=2)
    for rank in (0, 1):
        for part in spread.micro_batches(2, rank):
            assert (spread.batch(2, part)["latents"] == whole["latents"][part]).all()


def test_each_clip_goes_to_its_bucket_and_what_fits_none_is_listed(folder):
    save_video(folder / "v/tall.mp4", ramp(9, 62, 34), fps=8)
    save_video(folder / "v/thin.mp4", ramp(9, 16, 160), fps=8)
    with (folder / "c.csv").open("a") as file:
        file.write("v/tall.mp4,t\nv/thin.mp4,s\n")
    buckets = (
        Bucket(frames=9, height=16, width=32, batch_size=2),
        Bucket(frames=13, height=16, width=32),
        Bucket(frames=9, height=32, width=16),
    )
    clips = load(folder, buckets=buckets, max_crop=0.2)
    found = clips.statistics()
    assert json.loads(json.dumps(found)) == found
    assert [row["clips"] for row in found["buckets"]] == [2, 3, 1]
    assert len(clips) == 6
    refused = found["refused"]
    assert [(row["row"], row["video"]) for row in refused] == [(7, "v/thin.mp4")]
    assert "80.0% of a 16x160 picture would be cut off for bucket 9x16x32" in refused[0]["reason"]
    seen = set()
    for step in range(int(found["steps_per_epoch"])):
        batch = clips.batch(step)
        bucket = buckets[batch["bucket"]]
        expected = ((bucket.frames + 3) // 4, 3, bucket.height // 2, bucket.width // 2)
        assert batch["latents"].shape == (bucket.batch_size, *expected)
        seen |= set(batch["item"])
    assert seen == set(range(6))
    with pytest.raises(UserError, match=r"c\.csv: no clip fits a bucket; row 1, v/0\.mp4: 9 frames, the shortest"):
        load(folder, buckets=[Bucket(frames=33, height=16, width=32)], max_crop=0.2)


def test_how_far_a_picture_is_enlarged_is_the_callers_choice(folder):
    large = [Bucket(frames=9, height=96, width=192)]
    with pytest.raises(UserError, match=r"would be enlarged 3\.1 times, at most 2 are allowed.*or raise max_upscale"):
        load(folder, buckets=large, max_crop=0.5)
    assert len(load(folder, buckets=large, max_crop=0.5, max_upscale=3.2)) == 5


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"empty file \(0 bytes\)"),
        (b"this is not a video\n" * 50, "not a video"),
        (b"\x00\x00\x00\x18ftypmp42" + bytes(200), "not a video that can be decoded|without frames|no video"),
        (None, "no such file"),
    ],
)
def test_what_is_no_clip_is_named_with_file_and_row_before_the_first_step(folder, content, words):
    if content is None:
        (folder / "v/2.mp4").unlink()
    else:
        (folder / "v/2.mp4").write_bytes(content)
    (folder / "v/4.mp4").write_bytes(b"")
    for more in ({}, {"buckets": [Bucket(frames=9, height=32, width=48)]}):
        # Row 2's caption spans three lines of the file.
        with pytest.raises(UserError, match=rf"c\.csv:6 \(row 3\): .*2\.mp4.*({words}).*and 1 more") as error:
            load(folder, **more)
        assert "\n" not in str(error.value)


def test_damage_inside_a_clip_is_named_when_it_is_read(folder):
    path = folder / "v/0.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (9, 64, 96, 3)).astype(np.uint8)
    save_video(path, noise, fps=8)
    clips = load(folder, shuffle=False)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + len(data) // 2
    data[start : start + 400] = bytes(400)
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"c\.csv:2 \(row 1\): .*0\.mp4: damaged video: frame") as error:
        clips.batch(0)
    assert "\n" not in str(error.value)


def test_wrong_settings(folder):
    with pytest.raises(UserError, match=r"row 1\): v/0\.mp4: 9 frames, needs 13; use a longer clip.*and 1 more"):
        load(folder, size=(13, 32, 48))
    with pytest.raises(UserError, match=r"size \(9, 32, 48\), 1 buckets; need one of them"):
        load(folder, buckets=[Bucket(frames=9, height=32, width=48)], size=(9, 32, 48))
    with pytest.raises(UserError, match="3 latent frames; patch_size_t 2"):
        load(folder, patch_size_t=2)
    with pytest.raises(TypeError, match="unknown arguments bananas"):
        load(folder, bananas=1)
