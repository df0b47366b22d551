from __future__ import annotations

import json

import numpy as np
import pytest

from core.data import cache
from core.data.loader import CachedClips, pad_latents
from core.data.manifest import read_manifest
from core.errors import UserError

SCALE = 0.7


def make(tmp_path, clips=5, frames=4, *, std=0.1, length=3, empty=True):
    """A cached data set: clip i's mean is i, its text is i; the empty text is -1."""
    rows = "".join(f"v/{i}.mp4,clip {i}\n" for i in range(clips))
    (tmp_path / "c.csv").write_text("video,caption\n" + rows)
    mask = np.ones(length, np.uint8)
    for i in range(clips):
        mean = np.full((frames, 2, 3, 4), i, np.float32)
        latents = cache.VideoCache(latent_mean=mean, latent_std=np.full_like(mean, std), fps=8.0, ori_size=(24, 32))
        cache.write_video_cache(tmp_path / "vae" / f"v/{i}.npz", latents)
        text = cache.TextCache(text_emb=np.full((length, 6), i, np.float32), mask=mask)
        cache.write_text_cache(tmp_path / "t5" / f"v/{i}.npz", text)
    if empty:
        text = cache.TextCache(text_emb=np.full((length, 6), -1, np.float32), mask=mask)
        cache.write_text_cache(tmp_path / "t5" / cache.EMPTY_TEXT, text)
    return tmp_path


def load(folder, **more):
    settings = {"latent_frames": 3, "scaling_factor": SCALE, "seed": 0, "batch_size": 2} | more
    return CachedClips(read_manifest(folder / "c.csv"), folder / "t5", folder / "vae", **settings)


def test_an_epoch_shows_every_clip_once_in_an_order_of_its_own(tmp_path):
    data = load(make(tmp_path))
    seen = [item for step in range(5) for item in data.batch(step)["item"]]
    assert sorted(seen[:5]) == sorted(seen[5:]) == [0, 1, 2, 3, 4]
    assert seen[:5] == data.order(0).tolist() != data.order(1).tolist()
    assert load(tmp_path, seed=1).order(0).tolist() != data.order(0).tolist()
    assert load(tmp_path, shuffle=False).batch(2)["item"] == [4, 0]


def test_text_and_latents_belong_together_and_latents_are_scaled(tmp_path):
    data = load(make(tmp_path, std=0.0))
    sample = data.sample(1, 0)
    assert sample["latents"].shape == (3, 2, 3, 4)
    assert sample["latents"].dtype == np.float32
    assert (sample["latents"] == np.float32(sample["item"]) * np.float32(SCALE)).all()
    assert (sample["prompt_embeds"] == sample["item"]).all()
    assert (sample["video"], sample["fps"]) == (f"v/{sample['item']}.mp4", 8.0)


def test_latents_are_drawn_from_their_distribution(tmp_path):
    data = load(make(tmp_path, clips=1, frames=3, std=2.0), scaling_factor=1.0, batch_size=1)
    values = np.stack([data.sample(step, 0)["latents"] for step in range(200)])
    assert abs(values.mean()) < 0.05
    assert abs(values.std() - 2.0) < 0.05


def test_noise_depends_on_step_and_sample_only_so_ranks_and_resuming_change_nothing(tmp_path):
    make(tmp_path)
    first = load(tmp_path, batch_size=4, text_drop_prob=0.5)
    whole = [first.batch(step) for step in range(4)]
    again = load(tmp_path, batch_size=1, accumulation=2, data_ranks=2, text_drop_prob=0.5)
    resumed = [again.batch(step) for step in (2, 3)]
    assert [again.micro_batches(3, rank) for rank in (0, 1)] == [[[0], [2]], [[1], [3]]]
    ranks = [again.batch(3, [0, 1]), again.batch(3, [2, 3])]
    for name in ("latents", "prompt_embeds", "mask"):
        assert (resumed[1][name] == whole[3][name]).all()
        assert (np.concatenate([rank[name] for rank in ranks]) == whole[3][name]).all()
    assert [batch["step"] for batch in resumed] == [2, 3]
    assert not (whole[0]["latents"][0] == whole[0]["latents"][1]).any()
    other = load(tmp_path, batch_size=4, text_drop_prob=0.5, seed=1).batch(3)
    assert not (other["latents"] == whole[3]["latents"]).any()


def test_noise_is_not_the_noise_a_plain_generator_would_add(tmp_path):
    data = load(make(tmp_path, std=1.0), scaling_factor=1.0)
    sample = data.sample(2, 1)
    drawn = sample["latents"] - sample["item"]
    for words in ([0, 2, 1], [0, 2, 1, 0]):
        plain = np.random.default_rng(words).standard_normal(drawn.shape, np.float32)
        assert abs(np.corrcoef(drawn.ravel(), plain.ravel())[0, 1]) < 0.5


def test_text_is_dropped_as_often_as_asked(tmp_path):
    data = load(make(tmp_path), text_drop_prob=0.25, batch_size=8)
    samples = [data.sample(step, i) for step in range(50) for i in range(8)]
    dropped = [s for s in samples if s["text_dropped"]]
    assert 70 <= len(dropped) <= 130
    assert all((s["prompt_embeds"] == -1).all() for s in dropped)
    assert all((s["prompt_embeds"] == s["item"]).all() for s in samples if not s["text_dropped"])
    assert not any(load(tmp_path).sample(0, i)["text_dropped"] for i in range(2))
    assert all(load(tmp_path, text_drop_prob=1.0).sample(0, i)["text_dropped"] for i in range(2))


def test_odd_latents_by_hand():
    latents = np.array([[1.0], [2.0], [3.0]], np.float32)
    assert pad_latents(latents, 2, "pad_first").ravel().tolist() == [1, 1, 2, 3]
    assert pad_latents(latents, 2, "pad_last").ravel().tolist() == [1, 2, 3, 3]
    assert pad_latents(latents[:2], 2, "refuse").ravel().tolist() == [1, 2]
    assert pad_latents(latents, 1, "refuse").ravel().tolist() == [1, 2, 3]
    with pytest.raises(UserError, match=r"3 latent frames; patch_size_t 2 needs a multiple of 2: use 2 or 4"):
        pad_latents(latents, 2, "refuse")


def test_the_copy_of_the_first_latent_has_the_same_noise(tmp_path):
    latents = load(make(tmp_path), patch_size_t=2, odd_latents="pad_first").sample(0, 0)["latents"]
    assert latents.shape[0] == 4
    assert (latents[0] == latents[1]).all()
    assert not (latents[1] == latents[2]).all()


def test_a_clip_is_cut_from_its_beginning(tmp_path):
    make(tmp_path, clips=1, std=0.0)
    mean = np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1).repeat(2, 1)
    entry = cache.VideoCache(latent_mean=mean, latent_std=np.zeros_like(mean), fps=8.0, ori_size=(8, 8))
    cache.write_video_cache(tmp_path / "vae/v/0.npz", entry)
    sample = load(tmp_path, scaling_factor=1.0).sample(0, 0)
    assert sample["latents"][:, 0, 0, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent_start": 1}, r"latent start 1; must be 0: the causal VAE's first latent.*encode the video again"),
        ({"odd_latents": "drop"}, "odd_latents 'drop'; needs one of pad_first, pad_last, refuse"),
        ({"patch_size_t": 2}, "3 latent frames; patch_size_t 2 needs a multiple of 2"),
        ({"latent_frames": 5}, r"c\.csv:2 \(row 1\): .*4 latent frames \(13 video frames\); needs 5 .*and 4 more"),
        ({"horizontal_flip": True}, "horizontal flip with the cached latents of .*vae: they were made of unflipped"),
        ({"latent_frames": None}, "latent_frames None, 0 buckets; need 1 or more of one of them"),
        ({"latent_frames": 0}, "latent_frames 0"),
        ({"accumulation": 0}, "accumulation 0"),
        ({"data_ranks": 0}, "data_ranks 0"),
        ({"text_drop_prob": 1.5}, "text_drop_prob 1.5"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_wrong_settings(tmp_path, settings, message):
    make(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path, **settings)
    assert "\n" not in str(error.value)


def test_missing_and_unequal_files_are_found_before_the_first_step(tmp_path):
    make(tmp_path, empty=False)
    with pytest.raises(UserError, match=r"empty_text\.npz: missing.*encode-text with text\.empty_text: true"):
        load(tmp_path, text_drop_prob=0.1)
    mean = np.zeros((4, 2, 3, 5), np.float32)
    entry = cache.VideoCache(latent_mean=mean, latent_std=mean, fps=8.0, ori_size=(24, 40))
    cache.write_video_cache(tmp_path / "vae/v/2.npz", entry)
    with pytest.raises(UserError, match=r"row 3\): .*2\.npz: latent_mean is \[2, 3, 5\], but in .*0\.npz \[2, 3, 4\]"):
        load(tmp_path)
    (tmp_path / "vae/v/2.npz").unlink()
    with pytest.raises(UserError, match=r"c\.csv:4 \(row 3\): .*no cache for v/2\.mp4"):
        load(tmp_path)
    (tmp_path / "vae/v/2.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"row 3\): .*2\.npz: not a readable cache file"):
        load(tmp_path)


@pytest.mark.parametrize(("odd", "expected"), [("pad_first", [0, 0, 1, 2]), ("pad_last", [0, 1, 2, 2])])
def test_all_published_paddings_reach_the_batch(tmp_path, odd, expected):
    make(tmp_path, clips=1, std=0.0)
    mean = np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1).repeat(2, 1)
    entry = cache.VideoCache(latent_mean=mean, latent_std=np.zeros_like(mean), fps=8.0, ori_size=(8, 8))
    cache.write_video_cache(tmp_path / "vae/v/0.npz", entry)
    batch = load(tmp_path, scaling_factor=1.0, patch_size_t=2, odd_latents=odd).batch(0)
    assert batch["latents"][0, :, 0, 0, 0].tolist() == expected
    # The third way is to choose an even number, as the original does: nothing is added then.
    even = load(tmp_path, scaling_factor=1.0, patch_size_t=2, odd_latents="refuse", latent_frames=4)
    assert even.batch(0)["latents"][0, :, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_damage_that_shows_only_when_read_names_file_and_row(tmp_path):
    make(tmp_path, clips=2)
    mean = np.full((4, 2, 3, 4), np.nan, np.float32)
    np.savez(tmp_path / "vae/v/1.npz", latent_mean=mean, latent_std=mean, fps=8.0, ori_size=[24, 32])
    data = load(tmp_path)
    with pytest.raises(UserError, match=r"c\.csv:3 \(row 2\): .*1\.npz: latent_mean contains NaN"):
        data.batch(0)


def test_statistics_without_buckets(tmp_path):
    found = load(make(tmp_path), accumulation=2).statistics()
    assert json.loads(json.dumps(found)) == found
    row = found["buckets"][0]
    assert (row["frames"], row["height"], row["width"], row["clips"]) == (9, 24, 32, 5)
    assert row["crop_mean"] is row["crop_max"] is None  # files without identity do not say how they were cut
    assert (found["clips"], found["steps_per_epoch"], found["without_identity"]) == (5, 1.25, 10)
