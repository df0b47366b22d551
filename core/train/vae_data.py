"""The autoencoder's training clips: which one a sample of a step is, and its pixels. No MindSpore here.

T frames, H height, W width.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from core import draws
from core.data.manifest import Manifest, Row, resolve_video
from core.data.transforms import fit, to_model
from core.data.video import VideoReader
from core.errors import UserError

MEMORY_BYTES = 512 * 2**20


class PixelClips:
    """The clips of a manifest at one size, cropped and resized.

    Each is decoded once and kept as uint8 as long as all kept clips need no more than ``memory_bytes``; the rest is
    decoded whenever it is asked for.

    Args:
        manifest, video_folder: the data set.
        frames, height, width: what a sample has; a longer clip is cut.
        seed: of the order and of where longer clips are cut.
        batch_size: samples of a step.
        memory_bytes: bound of what is kept.

    Raises:
        UserError: a clip that can't be read or has fewer frames, when it is first read.
    """

    def __init__(
        self,
        manifest: Manifest,
        video_folder: str | os.PathLike,
        *,
        frames: int,
        height: int,
        width: int,
        seed: int,
        batch_size: int = 1,
        memory_bytes: int = MEMORY_BYTES,
    ):
        self.manifest, self._folder = manifest, video_folder
        self._frames, self._height, self._width = frames, height, width
        self._seed, self._batch_size, self._free_bytes = seed, batch_size, memory_bytes
        self._kept: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.manifest)

    @property
    def kept(self) -> int:
        """Number of clips in memory."""
        return len(self._kept)

    def item(self, step: int, sample: int) -> int:
        """The clip that is sample ``sample`` of step ``step``: a new order each epoch, every clip once in it."""
        epoch, place = divmod(step * self._batch_size + sample, len(self))
        return int(draws.generator(self._seed, "vae_order", epoch).permutation(len(self))[place])

    def batch(self, step: int, samples: Sequence[int]) -> tuple[np.ndarray, list[str]]:
        """Pixels float32 ``[B, 3, T, H, W]`` in [-1, 1] of these samples, and their files."""
        items = [self.item(step, sample) for sample in samples]
        clips = [self._cut(self._clip(item), step, sample) for item, sample in zip(items, samples, strict=True)]
        return np.stack([to_model(clip) for clip in clips]), [self.manifest.rows[item].video for item in items]

    def clip(self, item: int) -> np.ndarray:
        """uint8 ``[T, H, W, 3]``: the first frames of clip ``item``."""
        return self._clip(item)[: self._frames]

    def spread(self, count: int) -> list[int]:
        """At most ``count`` clips, evenly spaced over the manifest."""
        count = min(count, len(self))
        return [len(self) * n // count for n in range(count)]

    def _cut(self, clip: np.ndarray, step: int, sample: int) -> np.ndarray:
        spare = len(clip) - self._frames
        start = int(draws.generator(self._seed, "vae_start", step, sample).integers(spare + 1)) if spare else 0
        return clip[start : start + self._frames]

    def _clip(self, item: int) -> np.ndarray:
        if item in self._kept:
            return self._kept[item]
        clip = self._read(self.manifest.rows[item])
        if clip.nbytes <= self._free_bytes:
            self._kept[item] = clip
            self._free_bytes -= clip.nbytes
        return clip

    def _read(self, row: Row) -> np.ndarray:
        with VideoReader(resolve_video(row, self._folder)) as reader:
            if reader.info.frames < self._frames:
                raise UserError(
                    f"{self.manifest.where(row)}: {row.video} has {reader.info.frames} frames, need {self._frames}; "
                    "lower video.frames or remove the row"
                )
            chunks = reader.chunks(np.arange(reader.info.frames), self._frames)
            return np.concatenate([fit(chunk, self._height, self._width) for chunk in chunks])
