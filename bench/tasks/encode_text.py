"""Task encode-text: captions of a CSV file, or a list of prompts, to T5 cache files."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.context import RunContext, synchronize
from bench.flops import t5_encoder
from bench.tasks import work
from bench.tasks.inputs import read_prompts
from bench.tasks.models import Models
from core.data import cache
from core.data.manifest import read_manifest
from core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One text and the file it goes to; ``row`` is the CSV row, ``with_tokens`` the format of prompt lists."""

    text: str
    path: Path
    item: str
    row: int | None = None
    with_tokens: bool = False


def run(recipe: Any, ctx: RunContext) -> None:
    """Writes ``<out>/<video path>.npz``, ``NNN-prompt.npz`` and ``empty_text.npz``; existing files are kept.

    A row without caption, or a file made by other settings, is reported with ``ctx.row_failed`` and the rest goes on.
    """
    jobs = ctx.mine(_jobs(recipe, ctx))
    models = Models(recipe, ctx)
    with ctx.stage("load"):
        encoder, tokenizer = models.text_encoder()
        from core.weights import parameter_digest  # noqa: PLC0415

        base = {"kind": "text", "text_encoder": parameter_digest(encoder), "dtype": models.dtype}
    encoded = [(job, tokenizer.encode(job.text, max_length=recipe.text.max_length)) for job in jobs]
    cut = [f"{job.item}: {warning}" for job, tokens in encoded for warning in tokens.warnings]
    work = []
    for job, tokens in encoded:
        identity = base | {"max_length": recipe.text.max_length, "tokens": _sha256(tokens.input_ids)}
        if _wanted(job, identity, recipe.overwrite, ctx):
            work.append((job, tokens, identity))
    ctx.note("texts", {"total": len(jobs), "encoded": len(work), "too_long": len(cut), "too_long_first": cut[:20]})
    size = recipe.text.batch_size
    batches = [work[start : start + size] for start in range(0, len(work), size)]
    with ctx.stage("text_encode", items=len(work)):
        for index, batch in enumerate(ctx.progress(batches, "texts", total=len(batches))):
            # Numbers of other ranks' batches lie between.
            number = index * ctx.rank.of + ctx.rank.index
            _encode(number, batch, encoder, ctx, first=len(batch) not in {len(done) for done in batches[:index]})


def _encode(index: int, batch: list, encoder: Any, ctx: RunContext, *, first: bool) -> None:
    import mindspore as ms  # noqa: PLC0415

    ids = np.concatenate([tokens.input_ids for _, tokens, _ in batch])
    begin = time.perf_counter()
    # No attention mask: CogVideoX lets the encoder see the padding.
    embeds = encoder(ms.Tensor(ids)).astype(ms.float32).asnumpy()
    synchronize()
    seconds = time.perf_counter() - begin
    config = getattr(encoder, "config", None)
    extra = work.inference(ctx, t5_encoder(config, *ids.shape)) if config else None
    ctx.step(index, seconds, samples=len(batch), tokens=ids.size, tags=("compile",) if first else (), extra=extra)
    for (job, tokens, identity), text_emb in zip(batch, embeds, strict=True):
        entry = cache.TextCache(
            text_emb=text_emb,
            mask=tokens.mask[0],
            tokens=tokens.input_ids[0] if job.with_tokens else None,
            identity=identity,
        )
        ctx.tensor("text_emb", job.item, text_emb)
        try:
            cache.write_text_cache(job.path, entry)
        except cache.OutputError:
            raise
        except UserError as error:
            ctx.row_failed(job.row, job.item, str(error))
        else:
            ctx.artifact("embeds", job.path)


def _jobs(recipe: Any, ctx: RunContext) -> list[_Job]:
    jobs = []
    if recipe.data is not None:
        manifest = read_manifest(
            recipe.data.csv,
            video_column=recipe.data.video_column,
            caption_column=recipe.data.caption_column,
            on_row_error=ctx.row_failed,
        )
        jobs += [
            _Job(text=row.caption, path=cache.cache_path(ctx.out, row.video), item=row.video, row=row.row)
            for row in manifest
        ]
    for index, prompt in enumerate(read_prompts(recipe)):
        path = ctx.out / cache.prompt_name(index, prompt)
        jobs.append(_Job(text=prompt, path=path, item=path.name, with_tokens=True))
    if not jobs and not ctx.failures:
        raise UserError("encode-text: nothing to encode; set data.csv, prompts or prompts_file")
    if recipe.text.empty_text:
        jobs.append(_Job(text="", path=ctx.out / cache.EMPTY_TEXT, item=cache.EMPTY_TEXT))
    return jobs


def _wanted(job: _Job, identity: dict[str, Any], overwrite: bool, ctx: RunContext) -> bool:
    """Whether the job's file must be made; a file of other settings is reported and left alone."""
    if overwrite or not job.path.exists():
        return True
    try:
        conflict = cache.identity_conflict(cache.read_identity(job.path), identity)
    except UserError as error:
        ctx.row_failed(job.row, job.item, str(error))
        return False
    if conflict:
        ctx.row_failed(job.row, job.item, f"{job.path}: made with other settings ({conflict}); set overwrite: true")
    return False


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()
