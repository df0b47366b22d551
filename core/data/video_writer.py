"""Writing videos frame by frame: mp4, gif, a folder of png, npy. The result appears under its name only when complete.

Frames are uint8 RGB ``[T, H, W, 3]``. A writer takes chunks, so a VAE can stream into it.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np

from core.errors import UserError
from core.files import atomic_path

FORMATS: Final = ("mp4", "gif", "png", "npy")
_H264_OPTIONS = {"crf": "17", "preset": "medium"}
_MPEG4_OPTIONS = {"qmin": "1", "qmax": "2"}


class VideoWriter:
    """Context manager: ``with VideoWriter(path, fps=16) as out: out.write(frames)``; removed if the block fails.

    ``format`` is read off the suffix unless given; "png" writes a folder ``00000.png, ...`` named ``path``.
    ``codec``: "h264" (libx264, crf 17), "mpeg4" where FFmpeg was built without it, or None. ``frames`` counts.
    yuv420p needs even sizes: mp4 repeats the last row or column of an odd frame. GIF's clock has steps of 10 ms and
    its writer merges equal neighbours. UserError if a frame isn't uint8 RGB, sizes change, or no frame was written.
    """

    def __init__(self, path: str | os.PathLike, *, fps: float, format: str | None = None):
        self.path = Path(path)
        self.format = format or self.path.suffix.lstrip(".").lower()
        if self.format not in FORMATS:
            raise UserError(f"{self.path}: video format {self.format!r}; needs one of {', '.join(FORMATS)}")
        if not fps > 0:
            raise UserError(f"{self.path}: fps {fps}; needs a positive number of frames per second")
        self.fps = fps
        self.frames = 0
        self._size: tuple[int, int] | None = None
        self._sink: Any = None
        self._target: AbstractContextManager[Path] | None = None

    @property
    def codec(self) -> str | None:
        """Name of the video codec in use ("h264", "mpeg4"), None for the other formats or before the first frame."""
        return getattr(self._sink, "codec", None)

    def __enter__(self) -> VideoWriter:
        self._target = _atomic_folder(self.path) if self.format == "png" else atomic_path(self.path)
        temporary = self._target.__enter__()
        self._sink = {"mp4": _Mp4, "gif": _Gif, "png": _Png, "npy": _Npy}[self.format](temporary, self.fps)
        return self

    def write(self, frames: np.ndarray) -> None:
        """Appends uint8 ``[T, H, W, 3]``."""
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
            raise UserError(f"{self.path}: frames are {frames.dtype} {list(frames.shape)}; need uint8 [T, H, W, 3]")
        size = (frames.shape[1], frames.shape[2])
        if self._size not in (None, size):
            raise UserError(f"{self.path}: frame size changed from {self._size} to {size}; all must be equal")
        self._size = size
        for frame in frames:
            self._sink.add(np.ascontiguousarray(frame))
        self.frames += len(frames)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        assert self._target is not None
        try:
            if kind is None and not self.frames:
                raise UserError(f"{self.path}: no frame was written; a video needs at least one")
            self._sink.close(complete=kind is None)
        except BaseException as failure:
            self._target.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._target.__exit__(kind, error, trace)


def save_video(path: str | os.PathLike, frames: np.ndarray, *, fps: float, format: str | None = None) -> str | None:
    """Writes uint8 ``[T, H, W, 3]`` to ``path``; returns the codec for mp4."""
    with VideoWriter(path, fps=fps, format=format) as out:
        out.write(frames)
        return out.codec


class _Mp4:
    def __init__(self, path: Path, fps: float):
        self._path, self._fps = path, fps
        self._container: Any = None
        self._stream: Any = None
        self.codec: str | None = None

    def _open(self, height: int, width: int) -> None:
        import av  # noqa: PLC0415
        from av.video.reformatter import ColorRange, Colorspace  # noqa: PLC0415

        self._container = av.open(str(self._path), "w", format="mp4")
        self.codec, encoder = ("h264", "libx264") if "libx264" in av.codecs_available else ("mpeg4", "mpeg4")
        self._stream = self._container.add_stream(encoder, rate=Fraction(self._fps).limit_denominator(1001))
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.options = _H264_OPTIONS if self.codec == "h264" else _MPEG4_OPTIONS
        # One thread: x264's bytes depend on the number of threads, and records hold digests of files.
        self._stream.thread_count = 1
        # The conversion below is BT.601; untagged, players would take HD for BT.709 and shift the colours.
        self._stream.codec_context.colorspace = Colorspace.ITU601
        self._stream.codec_context.color_range = ColorRange.MPEG

    def add(self, frame: np.ndarray) -> None:
        import av  # noqa: PLC0415

        frame = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
        if self._container is None:
            self._open(*frame.shape[:2])
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG")
        assert self._container is not None
        self._container.mux(self._stream.encode(picture))

    def close(self, *, complete: bool) -> None:
        if self._container is None:
            return
        try:
            if complete:
                self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()


class _Gif:
    codec = None

    def __init__(self, path: Path, fps: float):
        self._path, self._fps = path, fps
        self._images: list[Any] = []

    def add(self, frame: np.ndarray) -> None:
        from PIL import Image  # noqa: PLC0415

        # 256 colours a frame: a byte per pixel is kept until close(), because Pillow writes a GIF in one call.
        self._images.append(Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE))

    def close(self, *, complete: bool) -> None:
        if complete:
            first, *rest = self._images
            first.save(self._path, format="GIF", save_all=True, append_images=rest, duration=1000 / self._fps, loop=0)
        self._images = []


class _Png:
    codec = None

    def __init__(self, path: Path, fps: float):
        self._path, self._count = path, 0

    def add(self, frame: np.ndarray) -> None:
        from PIL import Image  # noqa: PLC0415

        Image.fromarray(frame).save(self._path / f"{self._count:05d}.png")
        self._count += 1

    def close(self, *, complete: bool) -> None:
        del complete


class _Npy:
    """Frames go to disk as they come; the header is written again with their number at the end."""

    codec = None

    def __init__(self, path: Path, fps: float):
        self._file = open(path, "w+b")  # noqa: SIM115 (closed in close())
        self._shape: tuple[int, ...] = ()
        self._count = 0

    def _header(self) -> None:
        description = {"descr": "|u1", "fortran_order": False, "shape": (self._count, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, description)

    def add(self, frame: np.ndarray) -> None:
        if not self._count:
            self._shape = frame.shape
            self._header()
        self._file.write(frame.tobytes())
        self._count += 1

    def close(self, *, complete: bool) -> None:
        with self._file:
            if complete:
                # NumPy pads a header so that its first axis can grow to 21 digits: its length does not change.
                self._file.seek(0)
                self._header()


@contextmanager
def _atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a new folder beside ``path`` that replaces it on success and is removed on error.

    UserError if ``path`` exists and holds anything but frames: a typing error must not delete a folder.
    """
    if path.exists() and not (path.is_dir() and all(re.fullmatch(r"\d{5,}\.png", f.name) for f in path.iterdir())):
        raise UserError(f"{path}: exists and holds other things than frames (00000.png, ...); give another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            # All its files are frames of an earlier run and the new ones are complete.
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
