"""Training samples from cache files; every random choice depends on (seed, step, sample) only, never on a rank.

Letters: B samples, L tokens, D features, t latent frames, C channels, h and w latent height and width.
``step`` counts optimizer steps from 0 and ``sample`` the samples of one step over all ranks, so runs with another
number of cards see the same clips and the same noise, and a run can start at any step without reading earlier ones.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from core import draws
from core.data import cache
from core.data.manifest import Manifest
from core.errors import UserError

ODD_LATENTS: Final = ("pad_first", "pad_last", "refuse")
_T = TypeVar("_T")


class CachedClips:
    """Samples of a data set whose text and clips are cached; ``sample(step, i)`` is a pure function of its arguments.

    ``latent_frames``: frames taken from the beginning of each cache. ``scaling_factor``: the VAE's.
    ``samples_per_step``: over all ranks and accumulation steps. ``odd_latents``: what happens to an odd number of
    latent frames where ``patch_size_t`` is 2, see ``pad_latents``. Creating it checks every cache file's header and
    raises UserError with the CSV file and row for what is missing, too short or of another size.
    """

    def __init__(
        self,
        manifest: Manifest,
        text_folder: str | os.PathLike,
        video_folder: str | os.PathLike,
        *,
        latent_frames: int,
        scaling_factor: float,
        seed: int,
        samples_per_step: int,
        text_drop_prob: float = 0.0,
        odd_latents: str = "refuse",
        patch_size_t: int = 1,
        latent_start: int = 0,
        shuffle: bool = True,
    ):
        if latent_start != 0:
            raise UserError(
                f"latent start {latent_start}; must be 0: the causal VAE's first latent stands for 1 frame and the "
                "others for 4, so a clip can only be cut from its beginning; encode the video again from that frame on"
            )
        if odd_latents not in ODD_LATENTS:
            raise UserError(f"odd_latents {odd_latents!r}; needs one of {', '.join(ODD_LATENTS)}")
        if latent_frames < 1 or samples_per_step < 1 or not 0 <= text_drop_prob <= 1 or seed < 0:
            raise UserError(
                f"latent_frames {latent_frames}, samples_per_step {samples_per_step}, text_drop_prob {text_drop_prob}, "
                f"seed {seed}; need 1 or more, 1 or more, 0 to 1, 0 or more"
            )
        _padding(latent_frames, patch_size_t, odd_latents)
        self.manifest, self.seed, self.samples_per_step = manifest, seed, samples_per_step
        self._frames, self._scale, self._drop = latent_frames, scaling_factor, text_drop_prob
        self._odd, self._patch, self._shuffle = odd_latents, patch_size_t, shuffle
        self._files = _check_files(manifest, Path(text_folder), Path(video_folder), latent_frames)
        self._empty = cache.read_text_cache(_empty_text(Path(text_folder))) if text_drop_prob > 0 else None
        self._epoch: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        """Number of clips: the samples of one epoch."""
        return len(self.manifest)

    def order(self, epoch: int) -> np.ndarray:
        """Clip numbers int64 ``[len]`` in the order of ``epoch``: a permutation drawn from (seed, epoch)."""
        if not self._shuffle:
            return np.arange(len(self))
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, draws.generator(self.seed, "order", epoch).permutation(len(self)))
        return self._epoch[1]

    def sample(self, step: int, i: int) -> dict[str, Any]:
        """Sample ``i`` of ``step``: latents f32 ``[t, C, h, w]`` (scaled), prompt_embeds f32 ``[L, D]``, mask ``[L]``.

        Also ``item`` (clip number), ``video``, ``fps`` and ``text_dropped``. UserError for a damaged cache file.
        """
        epoch, place = divmod(step * self.samples_per_step + i, len(self))
        item = int(self.order(epoch)[place])
        text_path, video_path = self._files[item]
        clip = cache.read_video_cache(video_path)
        mean, std = clip.latent_mean[: self._frames], clip.latent_std[: self._frames]
        noise = draws.normal(mean.shape, self.seed, "posterior", step, i)
        latents = (mean + std * noise) * np.float32(self._scale)
        dropped = bool(draws.generator(self.seed, "text drop", step, i).random() < self._drop)
        text = self._empty if dropped and self._empty is not None else cache.read_text_cache(text_path)
        return {
            "latents": pad_latents(latents, self._patch, self._odd),
            "prompt_embeds": text.text_emb,
            "mask": text.mask,
            "fps": clip.fps,
            "item": item,
            "video": self.manifest.rows[item].video,
            "text_dropped": dropped,
        }

    def batch(self, step: int, samples: Sequence[int] | None = None) -> dict[str, Any]:
        """Samples of ``step`` (all, or a rank's) stacked: latents ``[B, t, C, h, w]``, prompt_embeds ``[B, L, D]``."""
        wanted = range(self.samples_per_step) if samples is None else samples
        parts = [self.sample(step, i) for i in wanted]
        stacked = {name: np.stack([part[name] for part in parts]) for name in ("latents", "prompt_embeds", "mask")}
        rest = {name: [part[name] for part in parts] for name in ("fps", "item", "video", "text_dropped")}
        return {**stacked, **rest, "step": step}

    def batches(
        self, start: int, stop: int, samples: Sequence[int] | None = None, *, depth: int = 2
    ) -> Generator[dict[str, Any], None, None]:
        """Batches of steps ``start`` to ``stop`` - 1, up to ``depth`` read ahead by a thread; resume with ``start``."""
        return prefetch((self.batch(step, samples) for step in range(start, stop)), depth)


def pad_latents(latents: np.ndarray, patch_size_t: int, odd: str) -> np.ndarray:
    """``[t, ...]`` -> ``[t', ...]``, t' the next multiple of ``patch_size_t``.

    ``pad_first`` repeats the first latent before it, as THUDM's trainer does (and as the pipelines, which drop the
    extra frames at the front after sampling, expect); ``pad_last`` repeats the last, as finetrainers did; ``refuse``
    raises UserError.
    """
    extra = _padding(len(latents), patch_size_t, odd)
    if not extra:
        return latents
    if odd == "pad_first":
        return np.concatenate([np.repeat(latents[:1], extra, axis=0), latents])
    return np.concatenate([latents, np.repeat(latents[-1:], extra, axis=0)])


def prefetch(items: Iterable[_T], depth: int = 2) -> Generator[_T, None, None]:
    """The same items, computed up to ``depth`` ahead by one thread; its errors are raised here.

    The thread ends when the iterator is exhausted, closed or collected.
    """
    if depth < 1:
        yield from items
        return
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:  # raised again in the consumer
            put("error", error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "item":
                yield value
            elif kind == "error":
                raise value
            else:
                return
    finally:
        stop.set()
        thread.join()


def _padding(frames: int, patch_size_t: int, odd: str) -> int:
    extra = -frames % patch_size_t
    if extra and odd == "refuse":
        raise UserError(
            f"{frames} latent frames; patch_size_t {patch_size_t} needs a multiple of {patch_size_t}: use "
            f"{frames - frames % patch_size_t or patch_size_t} or {frames + extra} (77 frames make 20, 85 make 22), "
            "or odd_latents: pad_first"
        )
    return extra


def _empty_text(folder: Path) -> Path:
    path = folder / cache.EMPTY_TEXT
    if not path.is_file():
        raise UserError(f"{path}: missing, and text_drop_prob > 0 needs it; run encode-text with text.empty_text: true")
    return path


def _check_files(manifest: Manifest, texts: Path, videos: Path, frames: int) -> list[tuple[Path, Path]]:
    """(text file, latent file) of each row, after a look at their headers."""
    files: list[tuple[Path, Path]] = []
    problems: list[str] = []
    seen: dict[str, tuple[tuple[int, ...], str]] = {}
    for row in manifest:
        try:
            text, video = cache.find_cache(texts, row.video), cache.find_cache(videos, row.video)
            _same_shape(seen, "text_emb", _shape(text, "text_emb", 2), text)
            latent = _shape(video, "latent_mean", 4)
            if latent[0] < frames:
                raise UserError(
                    f"{video}: {latent[0]} latent frames ({4 * latent[0] - 3} video frames); needs {frames} "
                    f"({4 * frames - 3} video frames): encode longer clips or train on fewer frames"
                )
            _same_shape(seen, "latent_mean", latent[1:], video)
            files.append((text, video))
        except UserError as error:
            problems.append(f"{manifest.where(row)}: {error}")
    if problems:
        more = f" (and {len(problems) - 1} more rows with problems)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
    return files


def _shape(path: Path, name: str, rank: int) -> tuple[int, ...]:
    shapes = cache.read_shapes(path)
    if name not in shapes or len(shapes[name][0]) != rank:
        got = f"{name} {list(shapes[name][0])}" if name in shapes else ", ".join(shapes) or "nothing"
        raise UserError(f"{path}: holds {got}; needs {name} with {rank} axes: encode it again with overwrite: true")
    return shapes[name][0]


def _same_shape(seen: dict[str, tuple[tuple[int, ...], str]], name: str, shape: tuple[int, ...], path: Path) -> None:
    first, where = seen.setdefault(name, (shape, str(path)))
    if shape != first:
        raise UserError(
            f"{path}: {name} is {list(shape)}, but in {where} {list(first)}; a run needs one size: encode again"
        )
