"""A data set and a model so small that a training run takes a second: one block, random caches, no VAE, no T5."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from core.data import cache
from core.presets import PRESETS

TEXT_LENGTH, TEXT_DIM = 3, 8
# Latents of 9 x 32 x 32 and 5 x 32 x 48 pixels: two buckets of different batch sizes.
SIZES = {"square": (3, 4, 4), "wide": (2, 4, 6)}
BUCKETS = [
    {"frames": 9, "height": 32, "width": 32, "batch_size": 1},
    {"frames": 5, "height": 32, "width": 48, "batch_size": 2},
]


def make_model(folder: Path) -> None:
    """A transformer folder in diffusers layout."""
    from core import weights
    from core.transformer.model import CogVideoXTransformer3DModel

    config = replace(
        PRESETS["tiny-1.5"].transformer,
        num_layers=1, text_embed_dim=TEXT_DIM, num_attention_heads=2, attention_head_dim=16, time_embed_dim=16,
    )  # fmt: skip
    weights.save_transformer(CogVideoXTransformer3DModel(config).initialize(0), folder)


def make_caches(root: Path, shapes: list[str], *, huge: int | None = None, name: str = "all") -> None:
    """Caches of one clip for each entry of ``shapes`` and ``<name>.csv``; clip ``huge`` has latents near overflow."""
    rows = ["video,caption"]
    for index, shape in enumerate(shapes):
        video = f"{name}/clip{index}.mp4"
        frames, height, width = SIZES[shape]
        rng = np.random.default_rng(index)
        mean = rng.standard_normal((frames, 16, height, width), np.float32)
        mean *= 1e30 if index == huge else 1.0
        clip = cache.VideoCache(
            latent_mean=mean.astype(np.float32), latent_std=np.full_like(mean, 0.1), fps=8.0, ori_size=(32, 32)
        )
        cache.write_video_cache(cache.cache_path(root / "video", video), clip)
        _text(cache.cache_path(root / "text", video), rng)
        rows.append(f"{video},a clip")
    _text(root / "text" / cache.EMPTY_TEXT, np.random.default_rng(99))
    (root / f"{name}.csv").write_text("\n".join(rows) + "\n")


def _text(path: Path, rng: np.random.Generator) -> None:
    emb = rng.standard_normal((TEXT_LENGTH, TEXT_DIM), np.float32)
    cache.write_text_cache(path, cache.TextCache(text_emb=emb, mask=np.ones(TEXT_LENGTH, np.uint8)))


def make_world(root: Path) -> Path:
    """Model, square clips in ``all.csv``, square and wide ones in ``mixed.csv``, one broken one in ``huge.csv``."""
    make_model(root / "model")
    make_caches(root, ["square"] * 5)
    make_caches(root, ["square", "wide", "wide", "square", "wide"], name="mixed")
    make_caches(root, ["square"] * 3, huge=1, name="huge")
    make_caches(root, ["square"] * 3, name="held")
    return root


def recipe(root: Path, csv: str = "all", **sections: Any) -> dict[str, Any]:
    """A train recipe of six steps with accumulation 2 and checkpoints every two; ``sections`` are merged in."""
    size = {"height": 32, "width": 32, "frames": 9}
    data: dict[str, Any] = {
        "schema": 1,
        "kind": "train",
        "name": "tiny",
        "runtime": {"mode": "pynative"},
        "model": {"transformer": str(root / "model")},
        "data": {
            "csv": str(root / f"{csv}.csv"),
            "text_embed_folder": str(root / "text"),
            "video_embed_folder": str(root / "video"),
        },
        "video": {"buckets": BUCKETS, "max_crop": 0.5} if csv == "mixed" else size,
        "train": {"steps": 6, "gradient_accumulation_steps": 2, "save_every": 2},
        "optimizer": {"lr": 1e-2},
    }
    for section, values in sections.items():
        old = data.get(section)
        data[section] = {**old, **values} if isinstance(old, dict) and isinstance(values, dict) else values
    return data


def held_out(root: Path, **more: Any) -> dict[str, Any]:
    """A ``validation`` section."""
    caches = {"text_embed_folder": str(root / "text"), "video_embed_folder": str(root / "video")}
    return {"csv": str(root / "held.csv"), **caches, "every": 3, "timesteps": [200, 800], **more}


def events(path: Path, kind: str) -> list[dict]:
    """The events of one kind in a log."""
    return [e for e in map(json.loads, path.read_text().splitlines()) if e["type"] == kind]
