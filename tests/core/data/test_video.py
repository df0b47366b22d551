from __future__ import annotations

import subprocess
import sys
import wave
from pathlib import Path

import av
import numpy as np
import pytest

from core.data.video import VideoReader, choose_backend, probe
from core.data.video_writer import save_video
from core.errors import UserError
from tests.core.data.clips import make_clip, numbers, ramp

BACKENDS = ("decord", "pyav")


def write_tagged(path: Path, *, standard: int, width: int, height: int) -> None:
    """A clip with B-frames whose stream says BT.709 (1) or BT.601 (5)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "12", "bf": "3"}
        stream.codec_context.colorspace = standard
        for frame in ramp(12, height, width):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture.reformat(format="yuv420p", dst_colorspace=standard)))
        container.mux(stream.encode(None))


def turn(path: Path) -> None:
    """Rewrites an mp4's display matrix as a phone held upright does: turned by 90 degrees."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 4 + 20 + 16
    matrix = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], ">i4")
    assert np.frombuffer(data[start : start + 4], ">i4")[0] == 1 << 16
    data[start : start + 36] = matrix.tobytes()
    path.write_bytes(data)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_frames_asked_for_in_chunks(tmp_path, backend):
    path = make_clip(tmp_path / "a.mp4", 12)
    with VideoReader(path, backend) as reader:
        assert (reader.info.frames, reader.info.fps, reader.info.height, reader.info.width) == (12, 8.0, 34, 62)
        assert reader.backend == backend
        assert numbers(reader.read()) == list(range(12))
        assert numbers(reader.read(np.array([1, 4, 4, 9]))) == [1, 4, 4, 9]
        chunks = list(reader.chunks(np.arange(0, 12, 2), 4))
        assert [numbers(chunk) for chunk in chunks] == [[0, 2, 4, 6], [8, 10]]
        assert reader.read(np.array([], int)).shape == (0, 34, 62, 3)


def test_colours_are_not_swapped(tmp_path):
    frame = VideoReader(make_clip(tmp_path / "a.mp4"), "pyav").read(np.array([3]))[0]
    assert np.abs(frame[12, 30].astype(int) - (200, 20, 20)).max() <= 6
    assert np.abs(frame[3, 3].astype(int) - (20, 20, 200)).max() <= 6


@pytest.mark.parametrize(("standard", "width", "height"), [(5, 62, 46), (1, 62, 46), (1, 130, 98), (5, 176, 80)])
def test_both_backends_give_the_same_frames(tmp_path, standard, width, height):
    write_tagged(tmp_path / "a.mp4", standard=standard, width=width, height=height)
    first, second = (VideoReader(tmp_path / "a.mp4", backend).read() for backend in BACKENDS)
    assert first.shape == (12, height, width, 3)
    assert (first == second).all()


def test_backends_agree_on_a_clip_turned_by_a_phone(tmp_path):
    path = make_clip(tmp_path / "a.mp4", 5)
    upright = VideoReader(path, "pyav").read()
    turn(path)
    info = probe(path)
    assert (info.height, info.width, info.rotation) == (62, 34, 270)
    for backend in BACKENDS:
        turned = VideoReader(path, backend).read()
        assert turned.shape == (5, 62, 34, 3)
        # 90 degrees clockwise: the red top half comes to the right, the blue corner to the top right.
        assert (turned == np.rot90(upright, -1, axes=(1, 2))).all()
        assert turned[0, 3, -3].argmax() == 2
        assert turned[0, 30, -3].argmax() == 0


def test_auto_leaves_to_pyav_what_decord_misreads(tmp_path):
    # decord 0.6 returns four channels for this width (dmlc/decord issue 336).
    path = make_clip(tmp_path / "a.mp4", width=48)
    with VideoReader(path) as reader:
        assert reader.backend == "pyav"
        assert numbers(reader.read()) == list(range(9))
    with pytest.raises(UserError, match=r"decord misreads.*set video\.backend: pyav"):
        VideoReader(path, "decord")


def test_without_decord_auto_is_pyav_and_decord_is_refused(tmp_path, monkeypatch):
    path = make_clip(tmp_path / "a.mp4")
    assert VideoReader(path).backend == "decord"
    monkeypatch.setitem(sys.modules, "decord", None)
    assert VideoReader(path).backend == "pyav"
    with pytest.raises(UserError, match=r"decord can't be imported.*set video\.backend: auto or pyav"):
        VideoReader(path, "decord")
    with pytest.raises(UserError, match="video backend 'cv2'; needs one of auto, decord, pyav"):
        choose_backend("cv2")


def test_decord_is_not_loaded_before_mindspore():
    """decord first, MindSpore second aborts the process; see ``choose_backend``."""
    code = "import sys; from core.data.video import *; print(choose_backend('auto'), 'decord' in sys.modules)"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["pyav", "False"]


def audio(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))


def cut(path: Path) -> None:
    make_clip(path)
    path.write_bytes(path.read_bytes()[:600])


def no_frames(path: Path) -> None:
    """A valid y4m file that ends after its header."""
    path.write_bytes(b"YUV4MPEG2 W32 H32 F8:1 Ip A1:1 C420\n")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "not a file"),
        (lambda path: path.write_bytes(b""), "empty file (0 bytes)"),
        (lambda path: path.write_bytes(bytes(range(256)) * 50), "not a video that can be decoded"),
        (lambda path: path.write_text("video,caption\na.mp4,a horse\n"), "not a video that can be decoded"),
        (cut, "not a video that can be decoded"),
        (audio, "no video in this file (it holds audio)"),
        (no_frames, "without frames"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_no_clip_is_said_in_one_line(tmp_path, make, message, backend):
    path = tmp_path / "a.mp4"
    make(path)
    with pytest.raises(UserError) as error:
        VideoReader(path, backend)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_text_file_named_as_text_is_no_clip(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("FFmpeg would draw this text as pictures\n" * 20)
    with pytest.raises(UserError, match="FFmpeg takes it for text"):
        probe(path)


@pytest.mark.parametrize("backend", BACKENDS)
def test_damage_inside_a_clip_is_found_by_both_backends(tmp_path, backend):
    noise = np.random.default_rng(0).integers(0, 256, (12, 64, 96, 3)).astype(np.uint8)
    path = tmp_path / "a.mp4"
    save_video(path, noise, fps=8)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + len(data) // 2
    data[start : start + 400] = bytes(400)
    path.write_bytes(data)
    with VideoReader(path, backend) as reader, pytest.raises(UserError, match=r"damaged video: frame \d+") as error:
        reader.read()
    assert "\n" not in str(error.value)
    # What lies before the damage can still be read.
    with VideoReader(path, backend) as reader:
        assert reader.read(np.array([0])).shape == (1, 64, 96, 3)


@pytest.mark.parametrize("indices", [[3, 1], [-1, 2], [0, 9]])
def test_indices_that_do_not_rise_within_the_clip(tmp_path, indices):
    with VideoReader(make_clip(tmp_path / "a.mp4")) as reader, pytest.raises(UserError, match=r"the clip has 0\.\.8"):
        reader.read(np.array(indices))
