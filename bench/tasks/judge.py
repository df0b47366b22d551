"""judge: how many videos show what their captions say. Runs no model and does not load MindSpore."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from bench.context import RunContext
from bench.judge import Verdict, judge
from bench.judge_scores import ATTRIBUTES, asked_for, wilson
from core.data.manifest import Row, read_manifest
from core.data.shapes import CSV_NAME
from core.data.video import VideoReader
from core.errors import UserError
from core.files import atomic_path

_COLUMNS = ("video", "caption", *(f"{name}_{what}" for name in ATTRIBUTES for what in ("asked", "seen", "right")))


def run(recipe: Any, ctx: RunContext) -> None:
    """Writes ``judge.csv`` with a row a video, and the shares of right answers as metrics.

    A video that can't be read or whose caption names no attribute is reported with ``ctx.row_failed`` and not counted.
    """
    folder = Path(recipe.videos)
    if not folder.is_dir():
        raise UserError(f"videos: no such folder {folder}; give the output folder of make-clips or generate")
    table = Path(recipe.csv) if recipe.csv else folder / CSV_NAME
    manifest = read_manifest(table, video_folder=folder, on_row_error=ctx.row_failed)
    judged: list[tuple[Row, dict[str, str], Verdict]] = []
    with ctx.stage("judge", items=len(manifest)):
        for row in ctx.progress(manifest, "judge", total=len(manifest)):
            try:
                judged.append((row, asked_for(row.caption), judge(read_frames(folder, row.video))))
            except UserError as error:
                ctx.row_failed(row.row, row.video, str(error))
    _write(ctx, judged)
    _score(ctx, judged)


def read_frames(folder: Path, video: str) -> np.ndarray:
    """uint8 ``[T, H, W, 3]`` of a video file, an .npy file or a folder of png frames.

    Raises:
        UserError: nothing of the kind is there.
    """
    path = folder / video
    if path.is_dir():
        from PIL import Image  # noqa: PLC0415

        files = sorted(path.glob("*.png"))
        if not files:
            raise UserError(f"{path}: no png frames in this folder; give a video")
        return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    if path.suffix == ".npy" and path.is_file():
        frames = np.load(path)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise UserError(f"{path}: got {frames.dtype} {list(frames.shape)}, need uint8 [frames, height, width, 3]")
        return frames
    with VideoReader(path) as reader:
        return reader.read()


def _right(asked: dict[str, str], verdict: Verdict) -> dict[str, bool]:
    return {name: getattr(verdict, name) == word for name, word in asked.items()}


def _write(ctx: RunContext, judged: list[tuple[Row, dict[str, str], Verdict]]) -> None:
    path = ctx.out / "judge.csv"
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for row, asked, verdict in judged:
            right = _right(asked, verdict)
            cells = ((asked.get(n, ""), getattr(verdict, n), int(right[n]) if n in right else "") for n in ATTRIBUTES)
            writer.writerow((row.video, row.caption, *(cell for group in cells for cell in group)))
    ctx.artifact("table", path, rows=len(judged))


def _score(ctx: RunContext, judged: list[tuple[Row, dict[str, str], Verdict]]) -> None:
    """Metrics ``judge.<attribute>`` over the captions that name it, ``judge.all`` over those that name all three."""
    answers = [_right(asked, verdict) for _, asked, verdict in judged]
    complete = [right for right in answers if len(right) == len(ATTRIBUTES)]
    counts = {name: [right[name] for right in answers if name in right] for name in ATTRIBUTES}
    counts["all"] = [all(right.values()) for right in complete]
    note = {}
    for name, values in counts.items():
        low, high = wilson(sum(values), len(values))
        note[name] = {"right": sum(values), "of": len(values), "low": low, "high": high}
        share = sum(values) / len(values) if values else None
        ctx.metric(f"judge.{name}", share, "share", None if values else "no caption names it")
    ctx.note("judge", note)
    ctx.metric("judge.videos", len(judged), "videos")
    by_number = Counter(sum(right.values()) for right in complete)
    for number in range(len(ATTRIBUTES) + 1):
        ctx.metric(f"judge.{number}_of_{len(ATTRIBUTES)}", by_number[number], "videos")
    ctx.note("judge_confusions", _confusions(judged))


def _confusions(judged: list[tuple[Row, dict[str, str], Verdict]]) -> dict[str, int]:
    """``{"circle seen as square": 2, ...}``, the most frequent first."""
    wrong = Counter(
        f"{word} seen as {getattr(verdict, name)}"
        for _, asked, verdict in judged
        for name, word in asked.items()
        if getattr(verdict, name) != word
    )
    return dict(wrong.most_common())
