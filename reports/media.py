"""Generated videos and pictures of runs: found, checked against the record, read as frames, linked or embedded."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import av
from PIL import Image

from reports.collect import Notice, Run
from reports.render import clean

MIME = {
    ".mp4": "video/mp4", ".webm": "video/webm", ".gif": "image/gif", ".png": "image/png",
    ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp",
}  # fmt: skip
EMBED_BYTES = 4 * 2**20
EMBED_TOTAL_BYTES = 48 * 2**20
GENERATING = ("generate", "decode-latents")
_SHOWN_KINDS = ("video", "image")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One generated video or picture: its file, its caption and the run it came from."""

    path: Path
    caption: str
    run_name: str
    mime: str

    @property
    def moving(self) -> bool:
        """Whether a <video> element plays it (a GIF is an <img> that moves by itself)."""
        return self.mime.startswith("video/")


def find_pictures(runs: Iterable[Run], limit: int) -> tuple[list[Picture], list[Notice], int]:
    """The first ``limit`` videos and pictures the runs wrote, what is wrong with others, and how many there are."""
    pictures: list[Picture] = []
    notices: list[Notice] = []
    total = 0
    every = [run for run in runs if run.data["artifacts"]]
    # Clips made as training data are shown only where no model has generated anything.
    generated = [run for run in every if run.kind in GENERATING]
    for run in generated or every:
        for artifact in run.rows("artifacts"):
            name = artifact.get("path")
            if artifact.get("kind") not in _SHOWN_KINDS or not isinstance(name, str) or "\0" in name:
                continue
            if name.lower().endswith((".npy", ".npz")):
                continue
            total += 1
            if len(pictures) >= limit:
                continue
            path = _locate(run, name)
            problem = _problem(path, name, artifact.get("sha256"))
            if path is None or problem:
                notices.append(Notice(path=str(run.path), message=problem))
                continue
            mime = MIME[path.suffix.lower()]
            pictures.append(Picture(path=path, caption=_caption(artifact, name), run_name=run.label, mime=mime))
    return pictures, notices, total


def _locate(run: Run, name: str) -> Path | None:
    candidates = (run.folder / name, run.folder / "out" / name)
    return next((path for path in candidates if path.is_file()), None)


def _problem(path: Path | None, name: str, digest: object) -> str:
    if path is None:
        return f"{name} is named by the record and missing"
    if path.suffix.lower() not in MIME:
        return f"{name} can't be shown, only {', '.join(MIME)} can"
    if isinstance(digest, str) and digest and hashlib.sha256(path.read_bytes()).hexdigest() != digest.lower():
        return f"{name} has changed since the record was written (another sha256), so it is not shown"
    return ""


def _caption(artifact: dict, name: str) -> str:
    meta = artifact.get("meta")
    for key in ("prompt", "caption", "text"):
        if isinstance(meta, dict) and isinstance(meta.get(key), str) and meta[key].strip():
            return clean(meta[key]).strip()
    return clean(Path(name).name)


def link(path: Path, start: Path) -> str:
    """A relative, percent-encoded link from the folder ``start`` to ``path``; a colon in a name makes no scheme."""
    return quote(os.path.relpath(path.resolve(), start.resolve()).replace(os.sep, "/"), errors="replace")


def data_uri(path: Path, mime: str) -> str:
    """The file as a data URI."""
    return f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def read_frames(path: Path, count: int) -> list[Image.Image]:
    """Up to ``count`` evenly spaced RGB frames of a video or picture, first and last included.

    Raises ValueError when the file has no frame that can be decoded.
    """
    if MIME.get(path.suffix.lower(), "").startswith("image/"):
        with Image.open(path) as image:
            total = getattr(image, "n_frames", 1)
            frames = []
            for index in evenly_spaced(total, count):
                image.seek(index)
                frames.append(image.convert("RGB"))
            return frames
    return _video_frames(path, count)


def _video_frames(path: Path, count: int) -> list[Image.Image]:
    with av.open(str(path)) as container:
        total = sum(1 for _ in container.decode(video=0))
    wanted = set(evenly_spaced(total, count))
    with av.open(str(path)) as container:
        frames = [frame.to_image() for index, frame in enumerate(container.decode(video=0)) if index in wanted]
    if not frames:
        raise ValueError("the video has no frames")
    return frames


def evenly_spaced(total: int, count: int) -> list[int]:
    """At most ``count`` different indices in [0, total), first and last included: (9, 3) gives 0, 4, 8."""
    if total <= count:
        return list(range(total))
    if count == 1:
        return [0]
    return [round(i * (total - 1) / (count - 1)) for i in range(count)]
