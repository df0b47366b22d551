"""Task encode-video: clips of a CSV file to VAE cache files."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.context import RunContext, synchronize
from bench.flops_vae import vae_encode
from bench.tasks import work
from bench.tasks.models import Models, tiling_of
from bench.tasks.processes import agreed, clip_processes, share_vae
from core.data import cache
from core.data.buckets import Bucket, Size, assign, bucket_table
from core.data.frames import legal_frames, select_frames
from core.data.manifest import Row, read_manifest, resolve_video
from core.data.transforms import INTERPOLATION, fit, to_model
from core.data.video import VideoInfo, VideoReader, choose_backend, probe
from core.errors import UserError

_CHUNK_FRAMES = 2  # whole frames in memory while their tiles are cut out


def run(recipe: Any, ctx: RunContext) -> None:
    """Writes ``<out>/<video path>.npz`` for every row of the CSV file; existing files are kept.

    A clip that can't be used is reported with ``ctx.row_failed`` and the rest goes on; a full disk ends the run.
    """
    data = recipe.data
    if not Path(data.video_folder).is_dir():
        raise UserError(f"data.video_folder: no such folder {data.video_folder}; correct the path")
    manifest = read_manifest(
        data.csv,
        video_column=data.video_column,
        caption_column=None,
        video_folder=data.video_folder,
        on_row_error=ctx.row_failed,
    )
    models = Models(recipe, ctx)  # before decord loads: the other way round MindSpore's start aborts the process
    ctx.note("decoder", choose_backend(recipe.video.backend))
    with ctx.stage("load"):
        processes = clip_processes(recipe)
        vae = models.vae(recipe.vae.dtype, "encoder")
        share_vae(vae, processes, recipe.vae)
        encoder = _Encoder(recipe, ctx, vae, processes.world)
    with ctx.stage("vae_encode", items=len(manifest)):
        rows = list(enumerate(manifest))
        mine = rows if processes.world.size > 1 else ctx.mine(rows)
        for index, row in ctx.progress(mine, "clips", total=len(mine)):
            try:
                encoder.encode_row(index, row)
            except cache.OutputError:
                raise
            except UserError as error:
                ctx.row_failed(row.row, row.video, str(error))
    ctx.note("clips", {"total": len(manifest), "encoded": encoder.encoded, "kept": encoder.kept})
    ctx.note("decoded_by", encoder.backends)
    if processes.world.size > 1:
        ctx.note("traffic", {"clips": encoder.encoded, "sent": processes.traffic.table()})
    if (statistics := encoder.statistics()) is not None:
        ctx.note("buckets", statistics)


class _Work(NamedTuple):
    """What is to be done for one row; ``size``: frames, height, width; ``kept``: its file is there."""

    source: Path
    target: Path
    info: VideoInfo
    indices: np.ndarray
    fps: float
    size: Size
    identity: dict[str, Any]
    kept: bool


class _Encoder:
    """The VAE and the settings that go into every file's identity; ``group``: the processes that share each clip."""

    def __init__(self, recipe: Any, ctx: RunContext, vae: Any, group: Any):
        from core.weights import parameter_digest  # noqa: PLC0415

        self._recipe, self._ctx, self._vae, self._group = recipe, ctx, vae, group
        self._tiling = tiling_of(recipe.vae)
        video = recipe.video.model_dump(exclude={"backend", "buckets", "max_crop", "max_upscale"})
        self._base = {
            "kind": "video",
            "vae": parameter_digest(vae),
            "dtype": str(vae.param_dtype),
            "tiling": recipe.vae.tiling.model_dump() if recipe.vae.tiling else None,
            "interpolation": INTERPOLATION,
            **video,
        }
        self._buckets = tuple(Bucket(**bucket.model_dump()) for bucket in recipe.video.buckets or ())
        self._assigned: list[tuple[int, float | None]] = []
        self._refused: list[dict[str, Any]] = []
        self._sizes: set[Size] = set()
        self.encoded = self.kept = 0
        self.backends: dict[str, int] = {}

    def encode_row(self, index: int, row: Row) -> None:
        """Encodes one clip unless its file is there; UserError says why the clip can't be used."""
        video = self._recipe.video
        todo = agreed(self._group, lambda: self._work(row))
        # One that does not see the file yet, on another machine, is waited for.
        if self._group.agree(todo.kept):
            self.kept += 1
            return
        source, target, info, indices, fps = todo.source, todo.target, todo.info, todo.indices, todo.fps
        count, height, width = todo.size
        with VideoReader(source, video.backend) as reader:
            begin = time.perf_counter()
            mean, std = self._moments(reader, indices[:count], (height, width))
            synchronize()
            seconds = time.perf_counter() - begin
            self.backends[reader.backend] = self.backends.get(reader.backend, 0) + 1
        tags = () if (count, height, width) in self._sizes else ("compile",)
        self._sizes.add((count, height, width))
        products = vae_encode(self._vae.config, batch=1, frames=count, height=height, width=width, tiling=self._tiling)
        extra = {"video": row.video} | work.inference(self._ctx, products)
        self._ctx.step(index, seconds, samples=1, frames=count, tags=tags, extra=extra)
        if self._group.index == 0:
            cache.write_video_cache(
                target,
                cache.VideoCache(
                    latent_mean=mean, latent_std=std, fps=fps, ori_size=(info.height, info.width),
                    identity=todo.identity,
                ),
            )  # fmt: skip
            self._ctx.artifact("latents", target, frames=count)
        for name, array in (("latent_mean", mean), ("latent_std", std)):
            self._ctx.tensor(name, row.video, array)
        self.encoded += 1

    def _work(self, row: Row) -> _Work:
        source = resolve_video(row, self._recipe.data.video_folder)
        target = cache.cache_path(self._ctx.out, row.video)
        info = probe(source)
        indices, fps, (count, height, width) = self._fitted(info, row)
        # A bucket's size is stored as a single size is: the latents are the same.
        size = {"height": height, "width": width, "max_frames": count} if self._buckets else {}
        identity = {**self._base, **size, "source": _sha256(source)}
        kept = target.exists() and not self._recipe.overwrite
        if kept and (conflict := cache.identity_conflict(cache.read_identity(target), identity)):
            raise UserError(f"{target}: made with other settings ({conflict}); set overwrite: true")
        return _Work(source, target, info, indices, fps, (count, height, width), identity, kept)

    def _fitted(self, info: VideoInfo, row: Row) -> tuple[np.ndarray, float, Size]:
        """Frame numbers, their rate, and frames, height and width to encode; UserError if the clip can't give them."""
        video = self._recipe.video
        try:
            indices, fps = select_frames(info.frames, info.fps, frame_stride=video.frame_stride, fps=video.fps)
            if not self._buckets:
                count = legal_frames(len(indices), video.max_frames, video.frames_rule)
                return indices, fps, (count, video.height, video.width)
            bounds = {"max_crop": video.max_crop, "max_upscale": video.max_upscale}
            found = assign((len(indices), info.height, info.width), self._buckets, **bounds)
            if found.bucket is None:
                self._refused.append({"row": row.row, "video": row.video, "reason": found.reason})
                raise UserError(f"no bucket fits: {found.reason}")
        except UserError as error:
            detail = f"{info.frames} frames at {info.fps:g} fps, frame_stride {video.frame_stride}"
            raise UserError(f"{info.path} ({detail}): {error}") from error
        self._assigned.append((found.bucket, found.crop))
        return indices, fps, self._buckets[found.bucket].size

    def statistics(self) -> dict[str, Any] | None:
        """JSON facts for the note "buckets": clips and cropped share of each, refused rows; None without buckets."""
        if not self._buckets:
            return None
        rows = bucket_table(self._buckets, self._assigned)
        for row in rows:  # they say how to train, not how to encode
            del row["batch_size"], row["keep_probability"]
        return {"clips": len(self._assigned), "buckets": rows, "refused": self._refused}

    def _moments(
        self, reader: VideoReader, indices: np.ndarray, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and std float32 ``[t, C, h, w]`` of the frames at ``indices``."""
        from core.vae.streaming import encode_pieces  # noqa: PLC0415

        # With tiles the clip is read again for each group of them: pixels of the whole clip are never in memory.
        mean, std = encode_pieces(
            self._vae, lambda: self._pixels(reader, indices, size), len(indices), size, self._tiling
        )
        return np.ascontiguousarray(mean.transpose(1, 0, 2, 3)), np.ascontiguousarray(std.transpose(1, 0, 2, 3))

    def _pixels(self, reader: VideoReader, indices: np.ndarray, size: tuple[int, int]) -> Iterator[np.ndarray]:
        """float32 ``[3, <= 8, H, W]`` in [-1, 1], cropped and resized."""
        for frames in reader.chunks(indices, _CHUNK_FRAMES):
            yield to_model(fit(frames, *size, self._recipe.video.transform))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
