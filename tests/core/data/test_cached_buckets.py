"""Caches of several sizes in one run, and files that don't belong together."""

from __future__ import annotations

import json

import numpy as np
import pytest

from core.data import cache
from core.data.buckets import Bucket
from core.data.loader import CachedClips, prefetch
from core.data.manifest import read_manifest
from core.errors import UserError

WIDE, LONG, TALL = (
    Bucket(frames=5, height=16, width=32, batch_size=2),
    Bucket(frames=9, height=16, width=32),
    Bucket(frames=5, height=32, width=16, batch_size=3),
)
VAE = {"kind": "video", "vae": "a" * 64, "transform": "crop_resize", "height": 16, "width": 32, "max_frames": 9}
T5 = {"kind": "text", "text_encoder": "b" * 64, "max_length": 3}


def clip(folder, i, size=(3, 2, 4), *, source=(16, 40), identity=None, text_identity=None):
    """Cache files of clip i with latents ``[t, 4, h, w]`` that all are i."""
    frames, height, width = size
    mean = np.full((frames, 4, height, width), i, np.float32)
    entry = cache.VideoCache(
        latent_mean=mean, latent_std=np.zeros_like(mean), fps=8.0, ori_size=source, identity=identity
    )
    cache.write_video_cache(folder / "vae" / f"{i}.npz", entry)
    text = cache.TextCache(text_emb=np.full((3, 6), i, np.float32), mask=np.ones(3, np.uint8), identity=text_identity)
    cache.write_text_cache(folder / "t5" / f"{i}.npz", text)


@pytest.fixture
def mixed(tmp_path):
    """Clips 0-3 wide and long, 4-6 wide and short, 7-9 tall."""
    for i in range(10):
        shape = (3, 2, 4) if i < 4 else (2, 2, 4) if i < 7 else (2, 4, 2)
        identity = VAE | {"height": 8 * shape[1], "width": 8 * shape[2]}
        clip(tmp_path, i, shape, source=(16, 40) if i < 7 else (32, 16), identity=identity)
    (tmp_path / "c.csv").write_text("video\n" + "".join(f"{i}.mp4\n" for i in range(10)))
    return tmp_path


def load(folder, buckets=(WIDE, LONG, TALL), **more):
    rows = read_manifest(folder / "c.csv", caption_column=None)
    settings = {"scaling_factor": 1.0, "seed": 0, "buckets": buckets} | more
    if "latent_frames" in more:
        settings["buckets"] = ()
    return CachedClips(rows, folder / "t5", folder / "vae", **settings)


def test_a_batch_has_one_size_and_every_clip_is_seen(mixed):
    data = load(mixed)
    shapes = {0: (2, 2, 4, 2, 4), 1: (1, 3, 4, 2, 4), 2: (3, 2, 4, 4, 2)}
    length = data.statistics()["steps_per_epoch"]
    assert length == 2 + 4 + 1
    seen = []
    for step in range(length):
        batch = data.batch(step)
        assert batch["latents"].shape == shapes[batch["bucket"]]
        assert data.samples(step) == len(batch["item"]) == data.buckets[batch["bucket"]].batch_size
        assert (batch["latents"][:, 0, 0, 0, 0] == batch["item"]).all()
        assert (batch["prompt_embeds"][:, 0, 0] == batch["item"]).all()
        seen += batch["item"]
    assert set(seen) == set(range(10))


def test_every_rank_and_micro_batch_of_a_step_has_the_same_bucket(mixed):
    data = load(mixed, accumulation=2, data_ranks=3)
    for step in range(6):
        parts = [data.batch(step, part) for rank in range(3) for part in data.micro_batches(step, rank)]
        assert len({part["bucket"] for part in parts}) == 1
        assert len({part["latents"].shape for part in parts}) == 1
        assert sum(len(part["item"]) for part in parts) == data.samples(step)


def test_reading_ahead_in_a_thread_and_starting_later_give_the_same_bits(mixed):
    keep = tuple(Bucket(**{**vars(b), "keep_probability": 0.6}) for b in (WIDE, LONG, TALL))
    through = [load(mixed, keep, text_drop_prob=0.0).batch(step) for step in range(12)]
    later = load(mixed, keep)
    for step, loaded in enumerate(prefetch((later.load(step) for step in range(5, 12)), 2), start=5):
        later.micro_batches(step + 3)  # the consumer asks while the thread is elsewhere
        batch = later.finish(loaded)
        assert batch["item"] == through[step]["item"]
        assert (batch["latents"] == through[step]["latents"]).all()


def test_statistics_say_where_clips_are_and_what_was_cut(mixed):
    found = load(mixed).statistics()
    assert json.loads(json.dumps(found)) == found
    assert [row["clips"] for row in found["buckets"]] == [3, 4, 3]
    assert [row["steps"] for row in found["buckets"]] == [2, 4, 1]
    assert [row["crop_max"] for row in found["buckets"]] == pytest.approx([0.2, 0.2, 0.0])
    assert (found["repeated"], found["left_out"], found["refused"], found["clips"]) == (1, 0, [], 10)


def test_a_long_cache_falls_to_the_shorter_bucket_and_is_cut(mixed):
    rare = Bucket(frames=9, height=16, width=32, keep_probability=1e-9)
    data = load(mixed, (WIDE, rare, TALL))
    found = data.statistics()
    assert [row["clips"] for row in found["buckets"]] == [3, 4, 3]
    assert [row["steps"] for row in found["buckets"]] == [4, 0, 1]
    assert all(data.batch(step)["latents"].shape[1] == 2 for step in range(5))


def test_sizes_that_no_bucket_has_and_caches_that_are_too_short(mixed):
    with pytest.raises(UserError, match=r"c\.csv:9 \(row 8\): .*7\.npz: latents of 32x16 pixels; no bucket has this"):
        load(mixed, (WIDE, LONG))
    with pytest.raises(UserError, match=r"row 5\): .*4\.npz: 2 latent frames \(5 video frames\); needs 3"):
        load(mixed, (LONG, TALL))
    odd = Bucket(frames=9, height=16, width=32)
    with pytest.raises(UserError, match="3 latent frames; patch_size_t 2 needs a multiple of 2"):
        load(mixed, (odd, TALL, WIDE), patch_size_t=2)
    assert load(mixed, patch_size_t=2, odd_latents="pad_last").batch(0)["latents"].shape[1] in (2, 4)


def one_size(folder, identities, text_identities=None, **more):
    texts = text_identities or [T5] * len(identities)
    for i, identity in enumerate(identities):
        clip(folder, i, identity=identity, text_identity=texts[i])
    (folder / "c.csv").write_text("video\n" + "".join(f"{i}.mp4\n" for i in range(len(identities))))
    return load(folder, latent_frames=2, **more)


def test_clips_may_differ_in_what_is_their_own(tmp_path):
    identities = [VAE | {"source": str(i), "max_frames": 5 + 4 * i, "frames_rule": "4n+1"} for i in range(3)]
    texts = [T5 | {"tokens": str(i)} for i in range(3)]
    assert len(one_size(tmp_path, identities, texts)) == 3
    assert one_size(tmp_path, [None, *identities[1:]], [T5, None, None]).statistics()["without_identity"] == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vae": "c" * 64}, r"vae cccccccccccc\.\.\. instead of aaaaaaaaaaaa\.\.\."),
        ({"transform": "center"}, r"transform center instead of crop_resize"),
        ({"height": 32}, "height 32 instead of 16"),
    ],
)
def test_a_file_of_another_maker_is_named_with_what_differs(tmp_path, change, words):
    expected = rf"c\.csv:4 \(row 3\): .*2\.npz: made with other settings than .*0\.npz \({words}\)"
    with pytest.raises(UserError, match=expected) as error:
        one_size(tmp_path, [VAE, VAE, VAE | change])
    assert "\n" not in str(error.value)


def test_a_text_of_another_encoder_is_named_also_the_empty_one(tmp_path):
    other = T5 | {"text_encoder": "d" * 64}
    with pytest.raises(UserError, match=r"row 2\): .*t5/1\.npz: made with other settings .*text_encoder dddd"):
        one_size(tmp_path, [VAE, VAE], [T5, other])
    text = cache.TextCache(text_emb=np.zeros((3, 6), np.float32), mask=np.ones(3, np.uint8), identity=other)
    cache.write_text_cache(tmp_path / "t5" / cache.EMPTY_TEXT, text)
    with pytest.raises(UserError, match=r"empty_text\.npz: made with other settings .*text_encoder dddd"):
        one_size(tmp_path, [VAE, VAE], text_drop_prob=0.5)
    assert len(one_size(tmp_path, [VAE, VAE])) == 2


def test_sizes_may_differ_between_buckets_but_not_the_vae(mixed):
    assert len(load(mixed)) == 10
    clip(mixed, 9, (2, 4, 2), source=(32, 16), identity=VAE | {"height": 32, "width": 16, "vae": "e" * 64})
    with pytest.raises(UserError, match=r"row 10\): .*9\.npz: made with other settings .*\(vae eeee"):
        load(mixed)


def test_files_of_another_model_than_the_runs(tmp_path):
    good = {"vae": VAE["vae"], "text_encoder": T5["text_encoder"]}
    assert len(one_size(tmp_path, [VAE, VAE], expected=good)) == 2
    assert len(one_size(tmp_path, [None, None], [None, None], expected={"vae": "0" * 64})) == 2
    words = r"row 1\): .*vae/0\.npz: made by another VAE than this run's \(vae aaaa.* instead of 0000.*set model\.vae"
    with pytest.raises(UserError, match=words):
        one_size(tmp_path, [VAE, VAE], expected=good | {"vae": "0" * 64})
    words = r"row 1\): .*t5/0\.npz: made by another text encoder than this run's .*set model\.text_encoder"
    with pytest.raises(UserError, match=words):
        one_size(tmp_path, [VAE, VAE], expected=good | {"text_encoder": "0" * 64})
