"""Checks of a run's cache files before its first step: there, whole, of the right size, and made by one model.

Only headers are read. Files of the original hold no identity; they pass wherever identities are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from core.data import cache
from core.data.buckets import Bucket, crop_share, fallbacks
from core.data.frames import latent_frames
from core.data.manifest import Manifest
from core.errors import UserError

_OF_A_CLIP: Final = {"text": {"tokens"}, "video": {"source", "max_frames", "frames_rule"}}
_OF_A_BUCKET: Final = {"height", "width"}
_MADE_BY: Final = {"text": ("text_encoder", "text encoder"), "video": ("vae", "VAE")}


@dataclass(frozen=True, kw_only=True)
class CachedClip:
    """One row's files; ``choices``: the buckets its latents fit, the longest first; ``crop``: share cut off or None.

    It is known where the file's identity says ``crop_resize``.
    """

    text: Path
    video: Path
    latent: tuple[int, ...]
    choices: tuple[int, ...]
    crop: float | None


@dataclass(kw_only=True)
class FileChecker:
    """Compares each file with the first of its kind; ``size`` is the latent frames of a run of one size.

    ``spatial``: pixels to a latent. ``expected``: digests of the run's own model, ``vae`` and ``text_encoder``.
    """

    size: int | None
    buckets: Sequence[Bucket] = ()
    spatial: int = 8
    expected: Mapping[str, str] = field(default_factory=dict)
    without_identity: int = 0
    _shapes: dict[str, tuple[tuple[int, ...], Path]] = field(default_factory=dict)
    _identities: dict[str, tuple[dict[str, Any], Path]] = field(default_factory=dict)

    def rows(self, manifest: Manifest, texts: Path, videos: Path) -> list[CachedClip]:
        """The files of every row; UserError names the first row that can't be used and counts the others."""
        found: list[CachedClip] = []
        problems: list[str] = []
        for row in manifest:
            try:
                found.append(self._row(cache.find_cache(texts, row.video), cache.find_cache(videos, row.video)))
            except UserError as error:
                problems.append(f"{manifest.where(row)}: {error}")
        if problems:
            more = f" (and {len(problems) - 1} more rows with problems)" if len(problems) > 1 else ""
            raise UserError(problems[0] + more)
        return found

    def text(self, path: Path) -> None:
        """UserError if a text file's shape or maker differs from the others'."""
        header = cache.read_header(path)
        self._same_shape("text_emb", _shape(path, header, "text_emb", 2), path)
        self._same_maker("text", header.identity, path)

    def _row(self, text: Path, video: Path) -> CachedClip:
        self.text(text)
        header = cache.read_header(video)
        latent = _shape(video, header, "latent_mean", 4)
        choices = self._choices(latent, video)
        self._same_shape("latent_mean", latent[1:2] if self.buckets else latent[1:], video)
        self._same_maker("video", header.identity, video)
        crop = None
        known = header.identity is not None and header.identity.get("transform") == "crop_resize"
        if known and header.ori_size is not None and min(header.ori_size) > 0:
            crop = crop_share(*header.ori_size, latent[2] * self.spatial, latent[3] * self.spatial)
        return CachedClip(text=text, video=video, latent=latent, choices=choices, crop=crop)

    def _choices(self, latent: tuple[int, ...], path: Path) -> tuple[int, ...]:
        if not self.buckets:
            assert self.size is not None
            self._long_enough(latent[0], self.size, path)
            return (0,)
        height, width = latent[2] * self.spatial, latent[3] * self.spatial
        same = [i for i, bucket in enumerate(self.buckets) if (bucket.height, bucket.width) == (height, width)]
        if not same:
            sizes = sorted({f"{bucket.height}x{bucket.width}" for bucket in self.buckets})
            raise UserError(
                f"{path}: latents of {height}x{width} pixels; no bucket has this size, they have "
                f"{', '.join(sizes)}: encode again with the run's buckets, or add this one"
            )
        self._long_enough(latent[0], min(latent_frames(self.buckets[i].frames) for i in same), path)
        held = [i for i in same if latent_frames(self.buckets[i].frames) <= latent[0]]
        return fallbacks(max(held, key=lambda i: self.buckets[i].frames), self.buckets)

    def _long_enough(self, got: int, need: int, path: Path) -> None:
        if got < need:
            raise UserError(
                f"{path}: {got} latent frames ({4 * got - 3} video frames); needs {need} "
                f"({4 * need - 3} video frames): encode longer clips or train on fewer frames"
            )

    def _same_shape(self, name: str, shape: tuple[int, ...], path: Path) -> None:
        first, where = self._shapes.setdefault(name, (shape, path))
        if shape != first:
            what = "one number of channels" if self.buckets and name == "latent_mean" else "one size"
            raise UserError(
                f"{path}: {name} is {list(shape)}, but in {where} {list(first)}; a run needs {what}: encode again"
            )

    def _same_maker(self, kind: str, identity: dict[str, Any] | None, path: Path) -> None:
        if identity is None:
            self.without_identity += 1
            return
        key, maker = _MADE_BY[kind]
        if key in identity and key in self.expected and identity[key] != self.expected[key]:
            conflict = cache.identity_conflict({key: identity[key]}, {key: self.expected[key]})
            raise UserError(
                f"{path}: made by another {maker} than this run's ({conflict}); encode again with overwrite: true, "
                f"or set model.{key} to the one that made it"
            )
        own = _OF_A_CLIP[kind] | (_OF_A_BUCKET if self.buckets else set())
        shared = {name: value for name, value in identity.items() if name not in own}
        first, where = self._identities.setdefault(kind, (shared, path))
        if conflict := cache.identity_conflict(shared, first):
            raise UserError(
                f"{path}: made with other settings than {where} ({conflict}); a run needs files of one {maker} and "
                "one setting: encode again with overwrite: true"
            )


def _shape(path: Path, header: cache.CacheHeader, name: str, rank: int) -> tuple[int, ...]:
    shapes = header.shapes
    if name not in shapes or len(shapes[name][0]) != rank:
        got = f"{name} {list(shapes[name][0])}" if name in shapes else ", ".join(shapes) or "nothing"
        raise UserError(f"{path}: holds {got}; needs {name} with {rank} axes: encode it again with overwrite: true")
    return shapes[name][0]
