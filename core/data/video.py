"""Reading clips: probe, and decode only the frames asked for, by decord or PyAV.

Frames are uint8 RGB ``[T, H, W, 3]``. PyAV probes the file in every case (it says why a file is no video), so both
backends refuse the same files with the same line; where decord has no wheel (aarch64) ``auto`` decodes with PyAV.
Both use FFmpeg's scaler and give equal bytes for 8-bit BT.601 and BT.709 clips (tests/core/data/test_video.py).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from core.errors import UserError

Backend = Literal["auto", "decord", "pyav"]
BACKENDS: Final = ("auto", "decord", "pyav")
_TEXT_DEMUXERS = {"tty", "bin", "xbin", "adf", "idf"}


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a file holds; ``frames`` counts them, ``fps`` is the average rate (frames/s), sizes are as displayed."""

    path: Path
    frames: int
    fps: float
    height: int
    width: int
    rotation: int = 0
    """Degrees counter-clockwise that a player turns the stored picture (phone clips)."""


class VideoReader:
    """Reads frames of one clip; a context manager.

    ``backend`` names what decodes: "decord" or "pyav". UserError, one line, for a file that is missing, empty,
    damaged, no video or without pictures, and for a backend that isn't installed.
    """

    def __init__(self, path: str | os.PathLike, backend: Backend = "auto"):
        self.info = probe(path)
        self.backend = choose_backend(backend)
        self._decord: Any = None
        if self.backend == "decord":
            self._decord = _open_decord(self.info)
            if self._decord is None and backend == "auto":
                self.backend = "pyav"
            elif self._decord is None:
                raise UserError(f"{self.info.path}: decord misreads its size or frames; set video.backend: pyav")

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._decord = None

    def chunks(self, indices: np.ndarray, chunk_frames: int) -> Iterator[np.ndarray]:
        """Yields the frames at rising ``indices`` as uint8 ``[<= chunk_frames, H, W, 3]``; holds one chunk at a time.

        Nothing after the last index is decoded. UserError if a frame is missing or damaged.
        """
        indices = np.asarray(indices, np.int64)
        if len(indices) and (indices[0] < 0 or indices[-1] >= self.info.frames or (np.diff(indices) < 0).any()):
            raise UserError(
                f"{self.info.path}: frames {indices[0]}..{indices[-1]} asked for, in rising order; "
                f"the clip has 0..{self.info.frames - 1}"
            )
        frames = self._frames_decord(indices, chunk_frames) if self._decord else self._frames_pyav(indices)
        chunk: list[np.ndarray] = []
        for frame in frames:
            chunk.append(frame)
            if len(chunk) == chunk_frames:
                yield np.stack(chunk)
                chunk = []
        if chunk:
            yield np.stack(chunk)

    def read(self, indices: np.ndarray | None = None) -> np.ndarray:
        """uint8 ``[T, H, W, 3]`` of the frames at ``indices`` (all without)."""
        wanted = np.arange(self.info.frames) if indices is None else np.asarray(indices, np.int64)
        chunks = list(self.chunks(wanted, max(1, len(wanted))))
        return chunks[0] if chunks else np.zeros((0, self.info.height, self.info.width, 3), np.uint8)

    def _frames_decord(self, indices: np.ndarray, chunk_frames: int) -> Iterator[np.ndarray]:
        # decord hands out concealed damage without a word; FFmpeg, asked through PyAV, says so.
        for _ in self._decoded(int(indices[-1]) if len(indices) else -1):
            pass
        for start in range(0, len(indices), chunk_frames):
            part = indices[start : start + chunk_frames]
            try:
                batch = self._decord.get_batch(part.tolist()).asnumpy()
            except Exception as error:  # decord raises its own type, defined only once it is imported
                raise _damaged(self.info, f"frames {part[0]}..{part[-1]}", error) from error
            yield from batch  # decord has turned them already

    def _frames_pyav(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        position = 0
        for number, frame in enumerate(self._decoded(int(indices[-1]) if len(indices) else -1)):
            if number < indices[position]:
                continue
            picture = np.rot90(frame.to_ndarray(format="rgb24"), self.info.rotation // 90)
            while position < len(indices) and indices[position] == number:
                yield picture
                position += 1

    def _decoded(self, last: int) -> Iterator[Any]:
        """FFmpeg's frames 0..last in order; UserError at the first that is missing or damaged."""
        import av  # noqa: PLC0415
        from av.error import FFmpegError  # noqa: PLC0415

        number = -1
        if last < 0:
            return
        try:
            with av.open(str(self.info.path)) as container:
                for number, frame in enumerate(container.decode(_picture_stream(container))):
                    if frame.is_corrupt:
                        raise _damaged(self.info, f"frame {number}", "its data is corrupt")
                    yield frame
                    if number == last:
                        return
        except FFmpegError as error:
            raise _damaged(self.info, f"frame {number + 1}", error) from error
        raise _damaged(self.info, f"frame {number + 1}", f"only {number + 1} frames decode")


def probe(path: str | os.PathLike) -> VideoInfo:
    """Size, rate and number of frames, counted from the packets; decodes the first frame to be sure that it is one.

    UserError, one line, if the file can't be used as a clip.
    """
    import av  # noqa: PLC0415
    from av.error import FFmpegError  # noqa: PLC0415

    path = Path(path)
    _check_file(path)
    try:
        with av.open(str(path)) as container:
            if container.format.name in _TEXT_DEMUXERS:
                raise UserError(f"{path}: not a video (FFmpeg takes it for text); give an mp4 or another video file")
            stream = _picture_stream(container)
            if stream is None:
                kinds = sorted({s.type for s in container.streams}) or ["nothing"]
                raise UserError(f"{path}: no video in this file (it holds {', '.join(kinds)}); give a video file")
            frames = sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)
            container.seek(0)
            first = next(iter(container.decode(stream)), None)
            if first is None or not frames:
                raise UserError(f"{path}: a video without frames; replace the clip or remove its row")
            rate = stream.average_rate or stream.guessed_rate
            rotation = int(getattr(first, "rotation", 0)) % 360
            turned = rotation in (90, 270)
            return VideoInfo(
                path=path,
                frames=frames,
                fps=float(rate) if rate else 0.0,
                height=first.width if turned else first.height,
                width=first.height if turned else first.width,
                rotation=rotation,
            )
    except (FFmpegError, StopIteration) as error:
        raise UserError(
            f"{path}: not a video that can be decoded ({_reason(error)}); replace the clip or remove its row"
        ) from error


def choose_backend(backend: str) -> str:
    """ "decord" or "pyav": what ``auto`` means here (decord if it can be imported, else PyAV).

    MindSpore aborts the process ("random_device could not be read") when it is imported after decord 0.6, so while
    MindSpore is installed but not yet imported, ``auto`` stays with PyAV; the frames are the same.
    """
    if backend not in BACKENDS:
        raise UserError(f"video backend {backend!r}; needs one of {', '.join(BACKENDS)}")
    if backend == "pyav" or (backend == "auto" and _mindspore_may_follow()):
        return "pyav"
    try:
        import decord  # noqa: F401, PLC0415
    except (ImportError, OSError) as error:
        if backend == "decord":
            raise UserError(f"decord can't be imported ({_reason(error)}); set video.backend: auto or pyav") from error
        return "pyav"
    return "decord"


def _mindspore_may_follow() -> bool:
    loaded = "mindspore" in sys.modules or "decord" in sys.modules
    return not loaded and importlib.util.find_spec("mindspore") is not None


def _check_file(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path}: no such file; correct the path")
    if not path.is_file():
        raise UserError(f"{path}: not a file; give the path of a video")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: empty file (0 bytes); replace the clip or remove its row")


def _picture_stream(container: Any) -> Any:
    """First video stream that isn't an audio file's cover picture, or None."""
    for stream in container.streams.video:
        if not stream.disposition & stream.disposition.attached_pic:
            return stream
    return None


def _open_decord(info: VideoInfo) -> Any:
    """decord's reader, or None if it can't open the file, counts other frames or returns another shape than PyAV.

    A wrong count must not be used: decord 0.6 never returns from a frame that isn't there (dmlc/decord issue 373).
    """
    import decord  # noqa: PLC0415

    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(str(info.path), num_threads=1)
    except Exception:  # its own error type; PyAV has already named what is wrong with an unusable file
        return None
    if len(reader) != info.frames:
        return None
    # decord 0.6 returns four channels for widths such as 48 and 72 (dmlc/decord issue 336).
    return reader if reader[0].shape == (info.height, info.width, 3) else None


def _damaged(info: VideoInfo, what: str, error: object) -> UserError:
    detail = f"{what} of {info.frames} can't be decoded ({_reason(error)})"
    return UserError(f"{info.path}: damaged video: {detail}; replace the clip or remove its row")


def _reason(error: object) -> str:
    """First line of an error, without FFmpeg's numbers and file name."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.splitlines()[0].split())[:160]
