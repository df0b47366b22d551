"""Rules between the fields of the tiny world's kinds: make-clips, make-model, train-vae."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from recipes.issues import Data, Issue, get, nearest


def held_out(data: Data) -> Iterator[Issue]:
    """Fewer combinations are held out than there are, and some are if only they are asked for."""
    count, part = get(data, "clips.hold_out"), get(data, "clips.part")
    lists = [get(data, f"clips.{key}") for key in ("shapes", "colors", "motions")]
    if count is None or not all(lists):
        return
    total = prod(len(set(values)) for values in lists)
    if count >= total:
        yield Issue("clips.hold_out", f"got {count}, need less than the {total} combinations of the lists")
    elif part == "held_out" and not count:
        yield Issue("clips.part", "got held_out with hold_out 0: no combination is held out", "set clips.hold_out")


def shape_sizes(data: Data) -> Iterator[Issue]:
    """The smallest extent comes first."""
    size = get(data, "clips.size")
    if size and size[0] > size[1]:
        yield Issue("clips.size", f"got {size[0]} to {size[1]}, need the smallest first", f"try {[size[1], size[0]]}")


def vae_frames(data: Data) -> Iterator[Issue]:
    """The autoencoder decodes as many frames as it encodes only for 8n+1 of them."""
    frames = get(data, "video.frames")
    if frames is not None and frames % 8 != 1:
        need = "8n+1 frames, which the VAE decodes to as many"
        yield Issue("video.frames", f"got {frames}, need {need}", nearest(frames, 8))
