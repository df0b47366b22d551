"""Training samples encoded in the loop: mp4 to frames to latents, captions to embeddings, nothing kept on disk.

Where a clip starts and whether it is mirrored may change from step to step, which a cache can't do: its latents are of
one piece of the clip. Letters: T frames, H height, W width, t latent frames, C channels, h and w latent height and
width, L tokens, D features.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import numpy as np

from core import draws
from core.data.buckets import MAX_UPSCALE, Bucket, assign, check_buckets, crop_share, fallbacks
from core.data.clips import Sampling, TrainingClips
from core.data.frames import select_frames
from core.data.latents import draw_latents, pad_latents
from core.data.manifest import Manifest, Row, resolve_video
from core.data.transforms import fit, to_model
from core.data.video import Backend, VideoReader, probe
from core.errors import UserError

EncodeVideo = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""float32 ``[B, 3, T, H, W]`` in [-1, 1] -> mean and standard deviation, float32 ``[B, C, t, h, w]`` each."""

EncodeText = Callable[[list[str]], np.ndarray]
"""B captions -> float32 ``[B, L, D]``."""


class OnlineClips(TrainingClips):
    """Samples of a data set of video files.

    ``size`` (frames, height, width): every clip is cut to it; or ``buckets`` with ``max_crop`` and ``max_upscale``:
    each clip goes to the one that crops it least, and a clip that fits none is left out and listed in ``statistics`` as
    refused.
    ``frame_stride`` and ``fps`` choose frames as encode-video does. ``random_start``: a piece of the clip from a
    random frame on, else from its first. ``horizontal_flip``: half of the samples are mirrored; captions are not, so
    it is not for captions that say left or right. ``captions_kept``: embeddings kept in memory.

    The encoders get one clip or caption at a time: a batch's numbers then do not depend on how it is spread over
    ranks. Creating it opens every clip; UserError with the CSV file and row for what can't be used.
    """

    def __init__(
        self,
        manifest: Manifest,
        video_folder: str | os.PathLike,
        *,
        encode_video: EncodeVideo,
        encode_text: EncodeText,
        size: tuple[int, int, int] | None = None,
        buckets: Sequence[Bucket] = (),
        max_crop: float = 1.0,
        max_upscale: float = MAX_UPSCALE,
        frame_stride: int = 1,
        fps: float | None = None,
        random_start: bool = True,
        horizontal_flip: bool = False,
        backend: Backend = "auto",
        captions_kept: int = 64,
        **sampling: Unpack[Sampling],
    ):
        super().__init__(manifest, sampling)
        if (size is None) == (not buckets):
            raise UserError(f"size {size}, {len(buckets)} buckets; need one of them")
        one = Bucket(frames=size[0], height=size[1], width=size[2], batch_size=self._batch_size) if size else None
        chosen = check_buckets([one] if one else buckets)
        self._check_lengths(chosen)
        self._encode_video, self._encode_text = encode_video, encode_text
        self._folder = video_folder
        self._backend: Backend = backend
        self._stride, self._fps = frame_stride, fps
        self._random_start, self._flip, self._kept = random_start, horizontal_flip, captions_kept
        self._captions: OrderedDict[str, np.ndarray] = OrderedDict()
        choices = self._assign(chosen, None if one else {"max_crop": max_crop, "max_upscale": max_upscale})
        self._make_plan(chosen, choices, one_size=one is not None)

    def _assign(self, buckets: Sequence[Bucket], bounds: dict[str, float] | None) -> list[tuple[int, ...]]:
        """The buckets of each clip that is used; the others are noted as refused. None: one size, nothing refused."""
        items, choices, problems = [], [], []
        for item, row in enumerate(self.manifest):
            try:
                frames, height, width = self._source_size(row)
            except UserError as error:
                problems.append(f"{self.manifest.where(row)}: {error}")
                continue
            if bounds is None:
                if frames < buckets[0].frames:
                    got = f"{row.video}: {frames} frames, needs {buckets[0].frames}"
                    problems.append(f"{self.manifest.where(row)}: {got}; use a longer clip or train on fewer frames")
                    continue
                crop, fitting = crop_share(height, width, buckets[0].height, buckets[0].width), (0,)
            else:
                found = assign((frames, height, width), buckets, **bounds)
                if found.bucket is None:
                    self._refused.append({"row": row.row, "video": row.video, "reason": found.reason})
                    continue
                crop, fitting = found.crop, fallbacks(found.bucket, buckets)
            self._crops[len(items)] = crop
            items.append(item)
            choices.append(fitting)
        _raise_if_unusable(self.manifest, problems, self._refused, items)
        self._items = np.array(items, np.int64)
        return choices

    def _source_size(self, row: Row) -> tuple[int, int, int]:
        """Frames after resampling, height and width in pixels; UserError for what is no clip."""
        path = resolve_video(row, self._folder)
        info = probe(path)
        indices, _ = select_frames(info.frames, info.fps, frame_stride=self._stride, fps=self._fps)
        return len(indices), info.height, info.width

    def _read(self, step: int, i: int, item: int, bucket: int) -> dict[str, Any]:
        row, target = self.manifest.rows[item], self.buckets[bucket]
        try:
            with VideoReader(resolve_video(row, self._folder), self._backend) as reader:
                info = reader.info
                indices, fps = select_frames(info.frames, info.fps, frame_stride=self._stride, fps=self._fps)
                start = 0
                if self._random_start:
                    last = len(indices) - target.frames
                    start = int(draws.generator(self.seed, "start", step, i).integers(0, last + 1))
                frames = reader.read(indices[start : start + target.frames])
            flipped = self._flip and bool(draws.generator(self.seed, "flip", step, i).random() < 0.5)
            fitted = fit(frames, target.height, target.width)
            pixels = to_model(fitted[:, :, ::-1] if flipped else fitted)
        except UserError as error:
            raise UserError(f"{self.manifest.where(row)}: {error}") from error
        dropped = self._text_dropped(step, i)
        meta = self._item_meta(item, fps, dropped) | {"start": start, "flipped": flipped}
        return {"pixels": pixels, "caption": "" if dropped else row.caption, "step": step, "sample": i, **meta}

    def _complete(self, part: dict[str, Any]) -> dict[str, Any]:
        mean, std = (moment[0].swapaxes(0, 1) for moment in self._encode_video(part["pixels"][None]))
        latents = draw_latents(mean, std, self._scale, self.seed, part["step"], part["sample"])
        rest = {name: part[name] for name in ("fps", "item", "video", "text_dropped", "start", "flipped")}
        return {
            "latents": pad_latents(latents, self._patch, self._odd),
            "prompt_embeds": self._embeds(part["caption"]),
            "mask": None,
            **rest,
        }

    def _embeds(self, caption: str) -> np.ndarray:
        found = self._captions.get(caption)
        if found is None:
            found = self._encode_text([caption])[0]
            self._captions[caption] = found
            if len(self._captions) > max(1, self._kept):
                self._captions.popitem(last=False)
        self._captions.move_to_end(caption)
        return found


def _raise_if_unusable(
    manifest: Manifest, problems: list[str], refused: list[dict[str, Any]], items: list[int]
) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more rows with problems)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
    if not items:
        first = refused[0]
        raise UserError(
            f"{manifest.path}: no clip fits a bucket; row {first['row']}, {first['video']}: {first['reason']}"
        )
