"""``python -m bench.loader``: how long the loader needs for one training sample from caches.

It writes caches of the given size into a temporary folder (random numbers: reading costs the same whatever they say),
reads every sample as a training run does, first with the files dropped from the system's memory, then again with them
in it, and deletes the folder. docs/design/008 has the table.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.operators import write_between_markers
from core.data import cache
from core.data.loader import CachedClips
from core.data.manifest import read_manifest

CHANNELS, COMPRESSION = 16, 8
# The fastest published step of 768x1360x77 on 8 cards of this kind: mindone's cogvideox_factory, see published.csv.
PUBLISHED_STEP_SECONDS = 5.16


@dataclass(frozen=True, kw_only=True)
class Size:
    """A clip's pixels and frames, and its text: ``tokens`` of ``width_text`` numbers."""

    frames: int
    height: int
    width: int
    tokens: int
    width_text: int

    @property
    def latent(self) -> tuple[int, int, int, int]:
        """Shape ``[t, C, h, w]`` of the cached moments."""
        return (self.frames - 1) // 4 + 1, CHANNELS, self.height // COMPRESSION, self.width // COMPRESSION


PUBLISHED = Size(frames=77, height=768, width=1360, tokens=224, width_text=4096)
TINY = Size(frames=17, height=64, width=96, tokens=224, width_text=64)


def write_caches(folder: Path, size: Size, clips: int) -> None:
    """``c.csv``, ``text/`` and ``video/`` of ``clips`` clips under ``folder``."""
    rng = np.random.default_rng(0)
    for index in range(clips):
        mean = rng.standard_normal(size.latent, np.float32)
        video = cache.VideoCache(latent_mean=mean, latent_std=np.abs(mean) * 0.1, fps=8.0, ori_size=(1, 1))
        cache.write_video_cache(folder / "video" / f"clip{index}.npz", video)
        embedding = rng.standard_normal((size.tokens, size.width_text), np.float32)
        text = cache.TextCache(text_emb=embedding, mask=np.ones(size.tokens, np.uint8))
        cache.write_text_cache(folder / "text" / f"clip{index}.npz", text)
    names = "".join(f"clip{index}.mp4\n" for index in range(clips))
    (folder / "c.csv").write_text("video\n" + names)


def forget(folder: Path) -> None:
    """Asks the system to drop the files' pages, so that the next read comes from the disk."""
    for path in folder.rglob("*.npz"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(size: Size, clips: int) -> dict[str, Any]:
    """Median seconds per sample, ``from_disk`` and ``from_memory``, and the bytes of one sample's files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_caches(folder, size, clips)
        manifest = read_manifest(folder / "c.csv", caption_column=None)
        loader = CachedClips(
            manifest, folder / "text", folder / "video", latent_frames=size.latent[0], seed=0, batch_size=1,
            scaling_factor=0.7, odd_latents="pad_first", patch_size_t=2,
        )  # fmt: skip
        stored = sum(path.stat().st_size for path in folder.rglob("*.npz")) // clips
        forget(folder)
        times = {way: _read_all(loader, clips) for way in ("from_disk", "from_memory")}
    medians = {way: statistics.median(seconds) for way, seconds in times.items()}
    return {"size": f"{size.frames}x{size.height}x{size.width}", "clips": clips, "sample_bytes": stored, **medians}


def _read_all(loader: CachedClips, clips: int) -> list[float]:
    """Seconds of each sample of one epoch, which reads every file once."""
    seconds = []
    for step in range(clips):
        begin = time.perf_counter()
        (samples,) = loader.micro_batches(step)
        loader.batch(step, samples)
        seconds.append(time.perf_counter() - begin)
    return seconds


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown with one line a size."""
    lines = [
        "| clip | bytes of a sample | seconds from disk | seconds from memory | from disk, MB/s |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        rate = row["sample_bytes"] / row["from_disk"] / 1e6
        cells = [row["size"], f"{row['sample_bytes']:,}", f"{row['from_disk']:.4f}", f"{row['from_memory']:.4f}"]
        lines.append("| " + " | ".join([*cells, f"{rate:.0f}"]) + " |")
    largest = max(rows, key=lambda row: row["sample_bytes"])
    share = largest["from_disk"] / PUBLISHED_STEP_SECONDS
    lines += ["", f"One reader thread needs {share:.1%} of the fastest published step ({PUBLISHED_STEP_SECONDS} s) for "
              f"one sample of {largest['size']} read from disk."]  # fmt: skip
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.loader", description="Times the loader of cached clips.")
    parser.add_argument("--clips", type=int, default=16, help="clips of each size (default 16; 47 MB each)")
    parser.add_argument("--doc", type=Path, help="rewrite the table between the markers of this file")
    options = parser.parse_args(arguments)
    if options.clips < 1:
        parser.error(f"--clips: got {options.clips}, need 1 or more")
    text = table([measure(size, options.clips) for size in (PUBLISHED, TINY)])
    print(text)
    if options.doc:
        write_between_markers(options.doc, text, "loader")
    return 0


if __name__ == "__main__":
    sys.exit(main())
