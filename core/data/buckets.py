"""Buckets of clip sizes, and which bucket a clip belongs to. Sizes are (frames, height, width) in pixels.

A clip is fitted by ``transforms.fit`` (``crop_resize``): the largest centred box of the bucket's aspect ratio is cut
out and resized, so nothing is ever stretched; what a bucket costs is the share of the picture's area that is cut off.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from core.errors import UserError

Size = tuple[int, int, int]
"""Frames, height, width in pixels."""

MAX_UPSCALE: Final = 2.0
"""Default of the largest factor by which a picture may be enlarged: beyond it a clip teaches the model blur."""


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Clips of one size; ``batch_size`` is a rank's micro-batch, ``keep_probability`` a clip's chance to stay.

    UserError for sizes below 1, frames that are not 4n+1, and a probability outside (0, 1].
    """

    frames: int
    height: int
    width: int
    batch_size: int = 1
    keep_probability: float = 1.0

    def __post_init__(self):
        if self.frames % 4 != 1 or min(self.frames, self.height, self.width) < 1:
            raise UserError(f"bucket {self}: needs 4n+1 frames (1, 5, 9, ...) and a positive height and width")
        if self.batch_size < 1 or not 0 < self.keep_probability <= 1:
            raise UserError(
                f"bucket {self}: batch_size {self.batch_size}, keep_probability {self.keep_probability}; "
                "need 1 or more, and above 0 to 1"
            )

    @property
    def size(self) -> Size:
        """Frames, height, width."""
        return self.frames, self.height, self.width

    def __str__(self) -> str:
        return size_text(self.size)


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Where a clip goes: the bucket's index and the share of its picture that is cut off, or None and the reason."""

    bucket: int | None
    crop: float
    reason: str = ""


def size_text(size: Size) -> str:
    """``frames x height x width`` without spaces, as in "77x768x1360"."""
    return "x".join(map(str, size))


def check_buckets(buckets: Sequence[Bucket]) -> tuple[Bucket, ...]:
    """The buckets; UserError if there is none or two have the same size."""
    sizes = [bucket.size for bucket in buckets]
    if not sizes or len(set(sizes)) < len(sizes):
        raise UserError(f"buckets {', '.join(map(size_text, sizes)) or 'none'}; needs one or more of different sizes")
    return tuple(buckets)


def crop_share(height: int, width: int, target_height: int, target_width: int) -> float:
    """Share in [0, 1) of a picture's area that fitting it to the target's aspect ratio cuts off."""
    one, other = width * target_height, height * target_width
    # Python divides integers with one rounding, so buckets of equal aspect ratio give equal floats.
    return 1 - min(one, other) / max(one, other)


def upscale(height: int, width: int, target_height: int, target_width: int) -> float:
    """Factor by which the cut picture is enlarged to the target; below 1 it shrinks."""
    return max(target_height / height, target_width / width)


def assign(size: Size, buckets: Sequence[Bucket], *, max_crop: float, max_upscale: float = MAX_UPSCALE) -> Assignment:
    """The bucket that cuts off least of a clip of ``size``; among equals the one with more pixels, then more frames.

    A bucket fits if the clip has its frames, at most ``max_crop`` of the picture is cut off and it is enlarged at
    most ``max_upscale`` times. If none fits, ``bucket`` is None and ``reason`` names what the nearest one lacked.
    """
    frames, height, width = size
    best: tuple[float, int, int, int] | None = None
    for index, bucket in enumerate(buckets):
        crop = crop_share(height, width, bucket.height, bucket.width)
        enlarged = upscale(height, width, bucket.height, bucket.width)
        if bucket.frames <= frames and crop <= max_crop and enlarged <= max_upscale:
            key = (crop, -bucket.height * bucket.width, -bucket.frames, index)
            best = key if best is None else min(best, key)
    if best is not None:
        return Assignment(bucket=best[3], crop=best[0])
    return Assignment(bucket=None, crop=0.0, reason=_reason(size, buckets, max_crop, max_upscale))


def fallbacks(first: int, buckets: Sequence[Bucket]) -> tuple[int, ...]:
    """``first`` and the buckets of its height and width with fewer frames, the longest first."""
    chosen = buckets[first]
    same = [
        index
        for index, bucket in enumerate(buckets)
        if (bucket.height, bucket.width) == (chosen.height, chosen.width) and bucket.frames < chosen.frames
    ]
    return (first, *sorted(same, key=lambda index: -buckets[index].frames))


def bucket_table(buckets: Sequence[Bucket], clips: Iterable[tuple[int, float | None]]) -> list[dict[str, Any]]:
    """JSON facts of each bucket: its fields, ``clips`` and their mean and largest cropped share.

    ``clips`` are (bucket, share cut off or None where it is not known); a bucket without a known share has nulls.
    """
    shares: list[list[float | None]] = [[] for _ in buckets]
    for index, crop in clips:
        shares[index].append(crop)
    rows = []
    for bucket, found in zip(buckets, shares, strict=True):
        known = [crop for crop in found if crop is not None]
        mean, most = (sum(known) / len(known), max(known)) if known else (None, None)
        rows.append(asdict(bucket) | {"clips": len(found), "crop_mean": mean, "crop_max": most})
    return rows


def _reason(size: Size, buckets: Sequence[Bucket], max_crop: float, max_upscale: float) -> str:
    """Why no bucket fits, said of the first test that leaves none."""
    frames, height, width = size
    short = [bucket for bucket in buckets if bucket.frames <= frames]
    if not short:
        fewest = min(bucket.frames for bucket in buckets)
        return f"{frames} frames, the shortest bucket has {fewest}; use a longer clip or add a bucket of fewer frames"
    small = [b for b in short if upscale(height, width, b.height, b.width) <= max_upscale]
    if not small:
        least = min(upscale(height, width, b.height, b.width) for b in short)
        return (
            f"a {height}x{width} picture would be enlarged {least:.3g} times, at most {max_upscale:g} are allowed; "
            "use a larger clip, add a smaller bucket or raise max_upscale"
        )
    nearest = min(small, key=lambda b: crop_share(height, width, b.height, b.width))
    lost = crop_share(height, width, nearest.height, nearest.width)
    return (
        f"{lost:.1%} of a {height}x{width} picture would be cut off for bucket {nearest}, at most {max_crop:.1%} may "
        "be; raise max_crop or add a bucket of its aspect ratio"
    )
