"""Training samples from cache files. Reading ahead is ``core.data.prefetch``; both are imported from here.

Letters: B samples, L tokens, D features, t latent frames, C channels, h and w latent height and width.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from core.data import cache
from core.data.buckets import Bucket
from core.data.cached_files import FileChecker
from core.data.clips import Sampling, TrainingClips, flip_refused
from core.data.frames import latent_frames as latent_frames_of
from core.data.held import Held
from core.data.latents import ODD_LATENTS, draw_latents, pad_latents, padding
from core.data.manifest import Manifest
from core.data.plan import ContinuousPlan
from core.data.prefetch import prefetch
from core.errors import UserError

__all__ = ["ODD_LATENTS", "CachedClips", "Sampling", "TrainingClips", "pad_latents", "prefetch"]


class CachedClips(TrainingClips):
    """Samples of a data set whose text and clips are cached.

    ``latent_frames``: frames taken from the beginning of each cache; or ``buckets``: each clip goes to the bucket of
    its latents' height and width with the most frames that its cache holds. ``spatial_compression``: pixels to a
    latent. ``expected``: digests of the run's own ``vae`` and ``text_encoder``, where they are known. ``memory``: bytes
    of files that stay in memory once they were read; opening a small file costs more than reading it.

    Creating it checks every cache file's header and raises UserError with the CSV file and row for what is missing,
    too short, of another size or made by another model than the rest. Files without identity, such as the
    original's, are taken as they are and counted in ``statistics``.
    """

    def __init__(
        self,
        manifest: Manifest,
        text_folder: str | os.PathLike,
        video_folder: str | os.PathLike,
        *,
        latent_frames: int | None = None,
        buckets: Sequence[Bucket] = (),
        latent_start: int = 0,
        horizontal_flip: bool = False,
        spatial_compression: int = 8,
        expected: Mapping[str, str] | None = None,
        memory: int = 0,
        **sampling: Unpack[Sampling],
    ):
        super().__init__(manifest, sampling)
        self._held = Held(memory)
        if latent_start != 0:
            raise UserError(
                f"latent start {latent_start}; must be 0: the causal VAE's first latent stands for 1 frame and the "
                "others for 4, so a clip can only be cut from its beginning; encode the video again from that frame on"
            )
        if horizontal_flip:
            raise flip_refused(Path(video_folder))
        if (latent_frames is None) == (not buckets) or (latent_frames is not None and latent_frames < 1):
            raise UserError(f"latent_frames {latent_frames}, {len(buckets)} buckets; need 1 or more of one of them")
        if latent_frames is not None:
            padding(latent_frames, self._patch, self._odd)
        self._check_lengths(buckets)
        texts, ratio = Path(text_folder), spatial_compression
        checker = FileChecker(size=latent_frames, buckets=buckets, spatial=ratio, expected=expected or {})
        one_size = latent_frames is not None
        self._files = checker.rows(manifest, texts, Path(video_folder))
        self._empty = self._empty_text(texts, checker) if self._drop > 0 else None
        if latent_frames is not None:
            _, _, height, width = self._files[0].latent
            frames, size = 4 * latent_frames - 3, self._batch_size
            buckets = [Bucket(frames=frames, height=height * ratio, width=width * ratio, batch_size=size)]
        self._crops = {place: file.crop for place, file in enumerate(self._files) if file.crop is not None}
        self._make_plan(buckets, [file.choices for file in self._files], one_size=one_size)
        self._without_identity = checker.without_identity

    def order(self, epoch: int) -> np.ndarray:
        """Clip numbers int64 ``[len]`` in the order of ``epoch``, for runs of one size."""
        assert isinstance(self._plan, ContinuousPlan)
        return self._plan.order(epoch)

    def statistics(self) -> dict[str, Any]:
        """As the base class; ``without_identity`` counts cache files that do not say what made them."""
        return {**super().statistics(), "without_identity": self._without_identity}

    def _read(self, step: int, i: int, item: int, bucket: int) -> dict[str, Any]:
        files, frames = self._files[item], latent_frames_of(self.buckets[bucket].frames)
        try:
            clip = self._held(cache.read_video_cache, files.video)
            dropped = self._text_dropped(step, i)
            empty = self._empty if dropped else None
            text = self._held(cache.read_text_cache, files.text) if empty is None else empty
        except UserError as error:
            raise UserError(f"{self.manifest.where(self.manifest.rows[item])}: {error}") from error
        mean, std = clip.latent_mean[:frames], clip.latent_std[:frames]
        latents = draw_latents(mean, std, self._scale, self.seed, step, i)
        return {
            "latents": pad_latents(latents, self._patch, self._odd),
            "prompt_embeds": text.text_emb,
            "mask": text.mask,
            **self._item_meta(item, clip.fps, dropped),
        }

    def _empty_text(self, folder: Path, checker: FileChecker) -> cache.TextCache:
        path = folder / cache.EMPTY_TEXT
        if not path.is_file():
            raise UserError(
                f"{path}: missing, and text_drop_prob > 0 needs it; run encode-text with text.empty_text: true"
            )
        checker.text(path)
        return cache.read_text_cache(path)
