from __future__ import annotations

import errno

import numpy as np
import pytest

from core.data import cache
from core.data.cache import TextCache, VideoCache
from core.errors import UserError


def text(length=5, width=4, **more):
    mask = np.array([1, 1, 0, 0, 0], np.uint8)[:length]
    return TextCache(text_emb=np.arange(length * width, dtype=np.float32).reshape(length, width), mask=mask, **more)


def video(frames=3, **more):
    mean = np.random.default_rng(0).standard_normal((frames, 2, 3, 4), np.float32)
    return VideoCache(latent_mean=mean, latent_std=np.abs(mean), fps=16.0, ori_size=(480, 720), **more)


def test_text_files_are_the_originals(tmp_path):
    path = cache.cache_path(tmp_path, "video_folder/part01/a.b.mp4")
    assert path == tmp_path / "video_folder/part01/a.b.npz"
    cache.write_text_cache(path, text())
    with np.load(path, allow_pickle=False) as file:
        assert set(file.files) == {"text_emb", "mask"}
        assert (file["text_emb"].dtype, file["mask"].dtype) == (np.float32, np.uint8)
    assert (cache.read_text_cache(path).text_emb == text().text_emb).all()
    assert cache.read_text_cache(path).tokens is None


def test_prompt_files_also_hold_tokens(tmp_path):
    name = cache.prompt_name(7, "a cat/dog sits\non the mat and looks at the big red moon tonight")
    assert name == "007-a-catdog-sits-on-the-mat-and-looks-at-the.npz"
    assert len(cache.prompt_name(1, "🐎" * 500).encode()) < 140
    assert cache.prompt_name(3, "  \n") == "003-.npz"
    cache.write_text_cache(tmp_path / name, text(tokens=np.arange(5, dtype=np.int32)))
    tokens = cache.read_text_cache(tmp_path / name).tokens
    assert tokens is not None
    assert tokens.tolist() == [0, 1, 2, 3, 4]


def test_video_files_are_the_originals_and_identity_is_one_more_entry(tmp_path):
    path = tmp_path / "a.npz"
    identity = {"vae": "ab12", "size": (480, 720), "tiling": None}
    cache.write_video_cache(path, video(identity=identity))
    # What the original's training script reads.
    with np.load(path, allow_pickle=False) as file:
        assert set(file.files) == {"latent_mean", "latent_std", "fps", "ori_size", "cogbench"}
        assert file["latent_mean"].shape == (3, 2, 3, 4)
        assert np.array(file["fps"], dtype=np.float32) == 16
        assert file["ori_size"].tolist() == [480, 720]
        assert file["cogbench"].dtype == np.uint8
    found = cache.read_video_cache(path)
    assert (found.latent_std == video().latent_std).all()
    assert (found.fps, found.ori_size) == (16.0, (480, 720))
    assert cache.identity_conflict(found.identity, identity) is None
    other = cache.identity_conflict(found.identity, identity | {"vae": "cd34", "size": (768, 1360)})
    assert other == "size [480, 720] instead of [768, 1360], vae ab12 instead of cd34"


def test_files_of_the_original_are_read(tmp_path):
    path = tmp_path / "a.npz"
    mean = np.zeros((3, 2, 3, 4), np.float32)
    np.savez(path, latent_mean=mean, latent_std=mean, fps=np.float64(29.97), ori_size=np.array([480, 720]))
    found = cache.read_video_cache(path)
    assert (found.fps, found.ori_size, found.identity) == (29.97, (480, 720), None)
    assert cache.identity_conflict(cache.read_identity(path), {"vae": "x"}) is None


def test_shapes_are_read_from_the_headers(tmp_path):
    cache.write_video_cache(tmp_path / "a.npz", video())
    shapes = cache.read_header(tmp_path / "a.npz").shapes
    assert shapes["latent_mean"] == ((3, 2, 3, 4), np.dtype(np.float32))
    assert shapes["fps"][0] == ()


def test_both_places_of_a_cache_file_are_found(tmp_path):
    with pytest.raises(UserError, match=r"no cache for v/p1/a\.mp4; run the encode"):
        cache.find_cache(tmp_path, "v/p1/a.mp4")
    cache.write_text_cache(tmp_path / "p1/a.npz", text())
    assert cache.find_cache(tmp_path, "v/p1/a.mp4") == tmp_path / "p1/a.npz"
    cache.write_text_cache(tmp_path / "v/p1/a.npz", text())
    assert cache.find_cache(tmp_path, "v/p1/a.mp4") == tmp_path / "v/p1/a.npz"


GOOD = np.ones((3, 2, 3, 4), np.float32)
REST = {"fps": np.array(8.0), "ori_size": np.array([48, 72])}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"latent_mean": GOOD, **REST}, "no latent_std (it holds fps, latent_mean, ori_size); needs latent_mean"),
        ({"latent_mean": GOOD.astype("f8"), "latent_std": GOOD, **REST}, "latent_mean is float64 [3, 2, 3, 4]; needs"),
        ({"latent_mean": GOOD[0], "latent_std": GOOD[0], **REST}, "needs float32 [t, C, h, w]"),
        ({"latent_mean": GOOD, "latent_std": GOOD[:2], **REST}, "latent_std is float32 [2, 2, 3, 4]; needs"),
        ({"latent_mean": GOOD, "latent_std": -GOOD, **REST}, "latent_std is negative"),
        ({"latent_mean": GOOD * np.nan, "latent_std": GOOD, **REST}, "latent_mean contains NaN"),
        ({"latent_mean": GOOD, "latent_std": GOOD, **REST, "ori_size": np.array(3)}, "ori_size is int64 []"),
        ({"latent_mean": GOOD, "latent_std": GOOD, **REST, "fps": np.array("8")}, "fps is <U1 []; needs one number"),
        ({"latent_mean": GOOD, "latent_std": GOOD, **REST, "fps": np.array(None)}, "pickled Python objects"),
        ({"latent_mean": GOOD, "latent_std": GOOD, **REST, "cogbench": np.array([65], np.uint8)}, "is not JSON"),
        ({"text_emb": GOOD}, "no latent_mean, latent_std, fps, ori_size (it holds text_emb)"),
    ],
)
def test_wrong_video_files_are_said_in_one_line(tmp_path, arrays, message):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    with pytest.raises(UserError) as error:
        cache.read_video_cache(path)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"text_emb": np.ones((5, 4), np.float16), "mask": np.ones(5, np.uint8)}, "text_emb is float16 [5, 4]"),
        ({"text_emb": np.ones((5, 4), np.float32), "mask": np.ones(4, np.uint8)}, "mask is uint8 [4]; needs uint8 [5]"),
        ({"text_emb": np.ones((5, 4), np.float32), "mask": np.ones(5, bool)}, "mask is bool [5]; needs uint8 [5]"),
        ({"text_emb": np.ones((5, 4), np.float32)}, "no mask (it holds text_emb)"),
    ],
)
def test_wrong_text_files_are_said_in_one_line(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=r"a\.npz: ") as error:
        cache.read_text_cache(tmp_path / "a.npz")
    assert message in str(error.value)


class Bomb:
    """Unpickling this would run a command."""

    def __reduce__(self):
        return (print, ("unpickled!",))


def test_a_pickle_is_never_loaded(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", text_emb=np.array([Bomb()], dtype=object), mask=np.ones(1, np.uint8))
    with pytest.raises(UserError, match="pickled Python objects, which are never loaded"):
        cache.read_text_cache(tmp_path / "a.npz")
    import pickle

    (tmp_path / "b.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match=r"b\.npz: not a readable cache file"):
        cache.read_text_cache(tmp_path / "b.npz")
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["empty", "half", "tail", "flipped", "npy", "text"])
def test_damaged_files_are_said_in_one_line(tmp_path, damage):
    path = tmp_path / "a.npz"
    cache.write_video_cache(path, video())
    data = path.read_bytes()
    middle = len(data) // 4
    flipped = data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]
    damaged = {"empty": b"", "half": data[: len(data) // 2], "tail": data[:-10], "flipped": flipped}
    path.write_bytes(damaged.get(damage, data))
    if damage == "npy":
        with path.open("wb") as file:
            np.save(file, np.ones(3))
    elif damage == "text":
        path.write_text("not an archive\nat all")
    with pytest.raises(UserError) as error:
        cache.read_video_cache(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    if damage != "flipped":  # headers alone can't know
        with pytest.raises(UserError, match="not a readable cache file"):
            cache.read_header(path)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(UserError, match=r"a\.npz: no such file; run the encode recipe"):
        cache.read_video_cache(tmp_path / "a.npz")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_or_read_only_disk_leaves_the_old_file(tmp_path, monkeypatch, code):
    path = tmp_path / "a.npz"
    cache.write_video_cache(path, video())
    before = path.read_bytes()
    real = np.savez

    def full(file, **arrays):
        real(file, mask=np.zeros(3))
        raise OSError(code, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(cache.OutputError, match=r"a\.npz: can't be written \(No space left on device\)"):
        cache.write_video_cache(path, video(frames=2))
    assert path.read_bytes() == before
    with pytest.raises(cache.OutputError):
        cache.write_text_cache(tmp_path / "new" / "b.npz", text())
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["a.npz"]


def test_wrong_arrays_are_not_written(tmp_path):
    bad = VideoCache(latent_mean=GOOD * np.inf, latent_std=GOOD, fps=8.0, ori_size=(1, 1))
    with pytest.raises(UserError, match="latent_mean contains NaN or infinity"):
        cache.write_video_cache(tmp_path / "a.npz", bad)
    assert list(tmp_path.iterdir()) == []
