"""What training asks of a data set, whether its clips are cached or encoded as they are needed.

Letters: B samples, L tokens, D features, t latent frames, C channels, h and w latent height and width.
``step`` counts optimizer steps from 0 and ``sample`` the samples of one step over all ranks and micro-batches, so runs
with another number of cards see the same clips and the same noise, and a run can start at any step without reading
earlier ones. Every random choice depends on (seed, step, sample) or (seed, epoch, clip), never on a rank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Required, TypedDict

import numpy as np

from core import draws
from core.data.buckets import Bucket, bucket_table, check_buckets
from core.data.frames import latent_frames
from core.data.latents import padding
from core.data.manifest import Manifest
from core.data.plan import BucketPlan, ContinuousPlan, rank_samples
from core.errors import UserError


class Sampling(TypedDict, total=False):
    """What every kind of ``TrainingClips`` takes as keywords.

    ``scaling_factor``: the VAE's. ``batch_size``: a rank's micro-batch (with buckets, each bucket has its own).
    ``accumulation``: micro-batches of a step. ``data_ranks``: ranks that see different samples.
    ``odd_latents``: what happens to an odd number of latent frames where ``patch_size_t`` is 2, see
    ``latents.pad_latents``.
    """

    scaling_factor: Required[float]
    seed: Required[int]
    batch_size: int
    accumulation: int
    data_ranks: int
    text_drop_prob: float
    odd_latents: str
    patch_size_t: int
    shuffle: bool


_DEFAULTS: dict[str, Any] = {
    "batch_size": 1, "accumulation": 1, "data_ranks": 1, "text_drop_prob": 0.0, "odd_latents": "refuse",
    "patch_size_t": 1, "shuffle": True,
}  # fmt: skip


class TrainingClips(ABC):
    """Batches of a data set as a pure function of (seed, step); every rank gets the same bucket in a step.

    ``buckets`` has one entry for a run of one size; a batch's ``bucket`` counts in it.
    """

    def __init__(self, manifest: Manifest, sampling: Sampling):
        given: dict[str, Any] = {**_DEFAULTS, **sampling}
        if unknown := given.keys() - Sampling.__annotations__.keys():
            raise TypeError(f"unknown arguments {', '.join(sorted(unknown))}")
        self.manifest = manifest
        self.seed: int = given["seed"]
        self._scale: float = given["scaling_factor"]
        self._drop: float = given["text_drop_prob"]
        self._odd: str = given["odd_latents"]
        self._patch: int = given["patch_size_t"]
        self._shuffle: bool = given["shuffle"]
        self._batch_size: int = given["batch_size"]
        self._accumulation: int = given["accumulation"]
        self._ranks: int = given["data_ranks"]
        counts = {"batch_size": self._batch_size, "accumulation": self._accumulation, "data_ranks": self._ranks}
        if min(counts.values()) < 1 or not 0 <= self._drop <= 1 or self.seed < 0:
            shown = ", ".join(f"{name} {value}" for name, value in counts.items())
            raise UserError(
                f"{shown}, text_drop_prob {self._drop}, seed {self.seed}; need 1 or more, 0 to 1, 0 or more"
            )
        if not len(manifest):
            raise UserError(f"{manifest.path}: no usable row; training needs one clip or more")
        self.buckets: tuple[Bucket, ...] = ()
        self._items: np.ndarray = np.arange(len(manifest))
        self._crops: dict[int, float] = {}
        self._refused: list[dict[str, Any]] = []
        self._plan: ContinuousPlan | BucketPlan

    def _check_lengths(self, buckets: Sequence[Bucket]) -> None:
        """UserError if the model's patches refuse a length."""
        for bucket in buckets:
            padding(latent_frames(bucket.frames), self._patch, self._odd)

    def _make_plan(self, buckets: Sequence[Bucket], choices: Sequence[Sequence[int]], *, one_size: bool) -> None:
        """Sets the plan. ``choices``: the buckets that each clip of ``self._items`` fits."""
        self.buckets = check_buckets(buckets)
        per_step = [bucket.batch_size * self._accumulation * self._ranks for bucket in self.buckets]
        self._choices = choices
        if one_size:
            self._plan = ContinuousPlan(len(choices), per_step[0], seed=self.seed, shuffle=self._shuffle)
        else:
            self._plan = BucketPlan(choices, self.buckets, per_step, seed=self.seed, shuffle=self._shuffle)

    def __len__(self) -> int:
        """Number of clips that can be drawn."""
        return len(self._items)

    def samples(self, step: int) -> int:
        """Samples of ``step`` over all ranks and micro-batches."""
        return len(self._plan.step(step)[1])

    def micro_batches(self, step: int, rank: int = 0) -> list[list[int]]:
        """Sample numbers of data-parallel ``rank`` for each micro-batch of ``step``."""
        assert 0 <= rank < self._ranks
        size = self.buckets[self._plan.step(step)[0]].batch_size
        return rank_samples(rank, batch_size=size, accumulation=self._accumulation, ranks=self._ranks)

    def load(self, step: int, samples: Sequence[int] | None = None) -> dict[str, Any]:
        """What ``finish`` makes the batch of: reads files and computes with NumPy only, so a thread may run ahead."""
        bucket, items = self._plan.step(step)
        wanted = range(len(items)) if samples is None else samples
        parts = [self._read(step, i, int(self._items[items[i]]), bucket) for i in wanted]
        return {"step": step, "bucket": bucket, "parts": parts}

    def finish(self, loaded: dict[str, Any]) -> dict[str, Any]:
        """The batch of a ``load``; runs the encoders where clips are encoded in the loop, so call it in one thread."""
        parts = [self._complete(part) for part in loaded["parts"]]
        stacked: dict[str, Any] = {
            name: np.stack([part[name] for part in parts]) for name in ("latents", "prompt_embeds")
        }
        masks = [part["mask"] for part in parts]
        stacked["mask"] = None if masks[0] is None else np.stack(masks)
        rest = {name: [part[name] for part in parts] for name in ("fps", "item", "video", "text_dropped")}
        return {**stacked, **rest, "step": loaded["step"], "bucket": loaded["bucket"]}

    def batch(self, step: int, samples: Sequence[int] | None = None) -> dict[str, Any]:
        """Samples of ``step`` (all, or those of a micro-batch) as one dict.

        ``latents`` f32 ``[B, t, C, h, w]`` scaled and padded, ``prompt_embeds`` f32 ``[B, L, D]``, ``mask`` u8
        ``[B, L]`` or None, lists ``fps``, ``item`` (the clip's place in the CSV file), ``video``, ``text_dropped``, and
        the numbers ``step`` and ``bucket``. UserError for a damaged file.
        """
        return self.finish(self.load(step, samples))

    def sample(self, step: int, i: int) -> dict[str, Any]:
        """Sample ``i`` of ``step`` alone, without the batch axis."""
        bucket, items = self._plan.step(step)
        return self._complete(self._read(step, i, int(self._items[items[i]]), bucket)) | {"bucket": bucket}

    @abstractmethod
    def _read(self, step: int, i: int, item: int, bucket: int) -> dict[str, Any]: ...

    def _complete(self, part: dict[str, Any]) -> dict[str, Any]:
        return part

    def _text_dropped(self, step: int, i: int) -> bool:
        return bool(draws.generator(self.seed, "text drop", step, i).random() < self._drop)

    def _item_meta(self, item: int, fps: float, dropped: bool) -> dict[str, Any]:
        return {"fps": fps, "item": item, "video": self.manifest.rows[item].video, "text_dropped": dropped}

    def statistics(self) -> dict[str, Any]:
        """JSON facts: clips and cropped share of each bucket, refused rows with reasons, steps of the first epoch.

        ``left_out`` and ``repeated`` are those of the first epoch too: clips that no bucket kept, and samples that
        fill last batches. ``clips`` of a bucket counts where clips fit first, before keep probabilities.
        """
        plan = self._plan
        first = plan.epoch(0) if isinstance(plan, BucketPlan) else None
        rows = bucket_table(self.buckets, ((row[0], self._crops.get(i)) for i, row in enumerate(self._choices)))
        for index, row in enumerate(rows):
            row["steps"] = int((first.buckets == index).sum()) if first else plan.epoch_steps()
        return {
            "clips": len(self),
            "buckets": rows,
            "refused": self._refused,
            "steps_per_epoch": plan.epoch_steps(),
            "repeated": first.repeated if first else 0,
            "left_out": int((first.members < 0).sum()) if first else 0,
        }


def flip_refused(video_folder: Path) -> UserError:
    """Why a cache can't be flipped."""
    return UserError(
        f"horizontal flip with the cached latents of {video_folder}: they were made of unflipped frames, and a "
        "mirrored latent is not the latent of the mirrored frame; encode in the loop or switch the flip off"
    )
