from __future__ import annotations

import errno

import av
import numpy as np
import pytest
from PIL import Image

from core.data.video import VideoReader
from core.data.video_writer import VideoWriter, save_video
from core.errors import UserError
from tests.core.data.clips import numbers, ramp


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_mp4_is_h264_yuv420p_and_the_same_bytes_each_time(tmp_path):
    assert save_video(tmp_path / "a.mp4", ramp(9), fps=8) == "h264"
    save_video(tmp_path / "b.mp4", ramp(9), fps=8)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 8
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert np.abs(reader.read().astype(int) - ramp(9)).mean() < 5


def test_mpeg4_where_x264_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    assert save_video(tmp_path / "a.mp4", ramp(9), fps=8) == "mpeg4"
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert numbers(reader.read()) == list(range(9))


@pytest.mark.parametrize(("height", "width"), [(33, 47), (34, 47), (33, 46)])
def test_odd_sizes_get_one_more_row_or_column(tmp_path, height, width):
    frames = ramp(5, height, width)
    save_video(tmp_path / "a.mp4", frames, fps=8)
    with VideoReader(tmp_path / "a.mp4", "pyav") as reader:
        back = reader.read()
    assert back.shape == (5, height + height % 2, width + width % 2, 3)
    assert np.abs(back[:, :height, :width].astype(int) - frames).mean() < 5


@pytest.mark.parametrize(("fps", "rate"), [(8, "8"), (29.97, "2997/100"), (30000 / 1001, "30000/1001"), (12.5, "25/2")])
def test_frame_rates_that_are_not_whole(tmp_path, fps, rate):
    save_video(tmp_path / "a.mp4", ramp(5), fps=fps)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert str(container.streams.video[0].average_rate) == rate


def test_chunks_give_the_same_file_as_all_at_once(tmp_path):
    frames = ramp(9)
    for suffix in ("mp4", "gif", "npy"):
        save_video(tmp_path / f"a.{suffix}", frames, fps=8)
        with VideoWriter(tmp_path / f"b.{suffix}", fps=8) as out:
            for start in range(0, 9, 4):
                out.write(frames[start : start + 4])
        assert out.frames == 9
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_npy_and_png_lose_nothing(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (11, 6, 5, 3)).astype(np.uint8)
    save_video(tmp_path / "a.npy", frames, fps=8)
    assert (np.load(tmp_path / "a.npy", allow_pickle=False) == frames).all()
    save_video(tmp_path / "pictures", frames, fps=8, format="png")
    assert files(tmp_path / "pictures") == [f"{i:05d}.png" for i in range(11)]
    assert (np.asarray(Image.open(tmp_path / "pictures" / "00010.png")) == frames[10]).all()


def test_gif_keeps_frames_colours_and_time(tmp_path):
    save_video(tmp_path / "a.gif", ramp(5), fps=8)
    with Image.open(tmp_path / "a.gif") as gif:
        assert (getattr(gif, "n_frames", 1), gif.info["loop"]) == (5, 0)
        assert gif.info["duration"] in (120, 125, 130)
        gif.seek(3)
        assert np.abs(np.asarray(gif.convert("RGB"))[-1, -1].astype(int) - 34).max() <= 4


def test_a_png_folder_replaces_an_older_one_but_nothing_else(tmp_path):
    save_video(tmp_path / "out", ramp(5), fps=8, format="png")
    save_video(tmp_path / "out", ramp(3), fps=8, format="png")
    assert len(files(tmp_path / "out")) == 3
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other things than frames"):
        save_video(tmp_path / "out", ramp(3), fps=8, format="png")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def write_and_fail(path, format):
    with VideoWriter(path, fps=8, format=format) as out:
        out.write(ramp(5))
        raise RuntimeError("the VAE failed")


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.npy", "pictures"])
def test_a_failure_leaves_nothing_behind_and_the_old_file_whole(tmp_path, name):
    format = "png" if name == "pictures" else None
    with pytest.raises(RuntimeError, match="the VAE failed"):
        write_and_fail(tmp_path / name, format)
    assert files(tmp_path) == []
    save_video(tmp_path / name, ramp(3), fps=8, format=format)
    before = files(tmp_path)
    with pytest.raises(RuntimeError, match="the VAE failed"):
        write_and_fail(tmp_path / name, format)
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.npy", "pictures"])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, name):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        save_video(tmp_path / name, ramp(3), fps=8, format="png" if name == "pictures" else None)
    assert files(tmp_path) == []


def test_wrong_arguments_are_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match="video format 'webm'; needs one of mp4"):
        VideoWriter(tmp_path / "a.webm", fps=8)
    with pytest.raises(UserError, match="fps 0; needs a positive"):
        VideoWriter(tmp_path / "a.mp4", fps=0)
    with pytest.raises(UserError, match="no frame was written"), VideoWriter(tmp_path / "a.mp4", fps=8):
        pass
    with pytest.raises(UserError, match=r"frames are float64 \[2, 4, 4, 3\]; need uint8"):
        save_video(tmp_path / "a.mp4", np.zeros((2, 4, 4, 3)), fps=8)
    out = VideoWriter(tmp_path / "b.mp4", fps=8)
    with out:
        out.write(ramp(1, 34, 62))
        with pytest.raises(UserError, match="frame size changed"):
            out.write(ramp(1, 34, 64))
    (tmp_path / "b.mp4").unlink()
    assert files(tmp_path) == []
