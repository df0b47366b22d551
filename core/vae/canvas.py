"""The pixels of a clip in a file while its tiles are added up one after the other."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np


class Canvas:
    """fp32 pixels ``[T, C, H, W]`` in an unnamed file, all zero at first. Plain reads and writes: pages of a memory
    map would count as the process's memory."""

    def __init__(self, shape: tuple[int, int, int, int], folder: str | Path | None):
        self.shape = shape
        self._file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115 (closed in __exit__)
        self._file.truncate(4 * int(np.prod(shape)))

    def __enter__(self) -> Canvas:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _offset(self, frame: int, channel: int, row: int) -> int:
        _, channels, height, width = self.shape
        return 4 * (((frame * channels + channel) * height + row) * width)

    def _read(self, offset: int, into: np.ndarray) -> None:
        """Fills ``into``, which is contiguous, without a copy between."""
        self._file.seek(offset)
        view = into.data.cast("B")
        while len(view):
            count = self._file.readinto(view)
            assert count, "the file is as long as the canvas"
            view = view[count:]

    def _write(self, offset: int, values: np.ndarray) -> None:
        self._file.seek(offset)
        view = values.data.cast("B")
        while len(view):
            view = view[self._file.write(view) :]

    def add(self, start: int, top: int, left: int, pixels_CTHW: np.ndarray) -> None:
        """Adds ``[C, t, rows, columns]`` at frame ``start`` and pixel ``top, left``."""
        channels, frames, rows, columns = pixels_CTHW.shape
        band = np.empty((rows, self.shape[3]), np.float32)
        for frame in range(frames):
            for channel in range(channels):
                offset = self._offset(start + frame, channel, top)
                self._read(offset, band)
                band[:, left : left + columns] += pixels_CTHW[channel, frame]
                self._write(offset, band)

    def read(self, start: int, count: int) -> np.ndarray:
        """Frames ``start`` to ``start + count`` as ``[C, count, H, W]``."""
        _, channels, height, width = self.shape
        frames = np.empty((channels, count, height, width), np.float32)
        for frame in range(count):
            for channel in range(channels):
                self._read(self._offset(start + frame, channel, 0), frames[channel, frame])
        return frames
