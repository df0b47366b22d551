"""Valid recipes of every kind and hypothesis strategies for their values."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from recipes.load import Loaded, load_recipe
from recipes.problems import Problem, RecipeErrors

_MODEL = {"path": "m"}
_SIZE = {"height": 64, "width": 96}
MINIMAL: dict[str, dict[str, Any]] = {
    "make-clips": {"clips": {**_SIZE, "count": 2, "frames": 9}},
    "make-model": {"model": {"preset": "tiny-1.5"}},
    "encode-text": {"model": _MODEL, "data": {"csv": "a.csv"}},
    "encode-video": {
        "model": _MODEL,
        "data": {"csv": "a.csv", "video_folder": "v"},
        "video": {**_SIZE, "max_frames": 17},
    },
    "train": {
        "model": _MODEL,
        "data": {"csv": "a.csv", "text_embed_folder": "t", "video_embed_folder": "v"},
        "video": {**_SIZE, "frames": 17},
        "train": {"steps": 3},
    },
    "generate": {"model": _MODEL, "prompts": "a cat", "video": {**_SIZE, "frames": 17}},
    "decode-latents": {"model": _MODEL, "latents": "l"},
    "train-vae": {
        "model": {"preset": "tiny-1.5"},
        "data": {"csv": "a.csv", "video_folder": "v"},
        "video": {"height": 64, "width": 64, "frames": 9},
        "train": {"steps": 3},
    },
    "judge": {"videos": "v"},
}

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(lambda s: s[0] != "@")
sizes = st.integers(1, 100).map(lambda n: 16 * n)
small = st.integers(1, 10**9)
positive = st.floats(1e-300, 1e300)
rates = st.one_of(positive, st.integers(1, 1000))
booleans = st.booleans()
dtypes = st.sampled_from(["fp32", "bf16", "fp16"])

_COMMON = {
    "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    "description": st.none() | text,
    "seed": st.integers(0, 2**32 - 1),
    "runtime.device": st.sampled_from(["cpu", "ascend"]),
    "runtime.mode": st.sampled_from(["graph", "pynative"]),
    "runtime.dtype": dtypes,
    "runtime.deterministic": booleans,
    "runtime.max_device_memory": st.none() | st.sampled_from(["59GB", "30.5GB"]),
    "runtime.timeout_s": st.none() | rates,
    "runtime.repeats": small,
    "output.folder": st.none() | words,
}
_MODEL_VALUES = {"model.path": words, "model.vae": st.none() | words}
_VAE = {
    "vae.dtype": st.none() | dtypes,
    "vae.parallel": st.just("auto"),
    "vae.tiling": st.none()
    | st.fixed_dictionaries(
        {
            "tile_height": st.integers(10, 90).map(lambda n: 8 * n),
            "tile_width": st.integers(10, 90).map(lambda n: 8 * n),
            "overlap_height": st.integers(0, 5).map(lambda n: 8 * n),
            "overlap_width": st.integers(0, 5).map(lambda n: 8 * n),
        }
    ),
}
VALUES: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "make-clips": {
        "clips.count": small,
        "clips.fps": rates,
        "clips.shapes": st.permutations(["circle", "square"]),
        "clips.colors": st.permutations(["red", "orange", "cyan"]),
        "clips.size": st.lists(st.floats(0.1, 1.0), min_size=2, max_size=2).map(sorted),
        "clips.hold_out": st.integers(1, 11),
        "clips.hold_out_seed": st.integers(0, 9),
        "clips.part": st.sampled_from(["train", "all"]),
    },
    "make-model": {
        "model.preset": st.sampled_from(["tiny-1.5", "1.5-5b"]),
        "model.init_seed": st.integers(0, 9),
        "components.vae": st.none() | words,
    },
    "encode-text": {
        **_MODEL_VALUES,
        "data.caption_column": words,
        "prompts": st.none() | words | st.lists(words, min_size=1, max_size=3),
        "text.max_length": small,
        "text.empty_text": booleans,
        "overwrite": booleans,
    },
    "encode-video": {
        **_MODEL_VALUES,
        **_VAE,
        "data.video_folder": words,
        "video.height": sizes,
        "video.max_frames": st.integers(17, 999),
        "video.fps": st.none() | rates,
        "video.frames_rule": st.sampled_from(["4n+1", "8n+1", "16n+1"]),
    },
    "train": {
        **_MODEL_VALUES,
        "video.width": sizes,
        "video.frames": st.integers(0, 99).map(lambda n: 4 * n + 1),
        "train.steps": small,
        "train.text_drop_prob": st.floats(0, 1),
        "train.max_grad_norm": st.none() | rates,
        "optimizer.lr": positive,
        "optimizer.betas": st.lists(st.floats(0, 0.999), min_size=2, max_size=2),
        "optimizer.eps": positive,
        "lr_schedule.name": st.sampled_from(["constant", "linear", "cosine"]),
    },
    "generate": {
        **_MODEL_VALUES,
        **_VAE,
        "prompts": words | st.lists(words, min_size=1, max_size=3),
        "negative_prompt": text,
        "video.fps": rates,
        "video.frames": st.integers(0, 20).map(lambda n: 8 * n + 1),
        "sampling.timesteps": st.sampled_from(["trailing", "linear-quadratic", list(range(980, -1, -20))]),
        "sampling.guidance_scale": st.floats(0, 100),
        "save.latents": booleans,
        "inputs.latents": st.none() | words,
    },
    "train-vae": {
        "model.init_seed": st.integers(0, 9),
        "validation": st.none() | st.fixed_dictionaries({"csv": words, "video_folder": words}),
        "video.height": st.integers(1, 40).map(lambda n: 8 * n),
        "video.frames": st.integers(0, 9).map(lambda n: 8 * n + 1),
        "train.reconstruction": st.sampled_from(["l1", "l2"]),
        "train.kl_weight": st.floats(0, 1),
        "optimizer.lr": positive,
        "lr_schedule.name": st.sampled_from(["constant", "cosine"]),
    },
    "judge": {"csv": st.none() | words, "training_steps": st.none() | small},
    "decode-latents": {**_MODEL_VALUES, **_VAE, "latents": words, "video.fps": st.none() | rates},
}


def minimal(kind: str, **more: Any) -> dict[str, Any]:
    """A recipe of this kind with only what it needs."""
    return {"schema": 1, "kind": kind, "name": "x", **copy.deepcopy(MINIMAL[kind]), **more}


def assign(data: dict[str, Any], key: str, value: Any) -> None:
    """Puts ``value`` at a dotted key."""
    *sections, last = key.split(".")
    for section in sections:
        data = data.setdefault(section, {})
    data[last] = value


@st.composite
def recipe_data(draw: Any, kinds: tuple[str, ...] = tuple(MINIMAL)) -> dict[str, Any]:
    """A random valid recipe as plain data."""
    kind = draw(st.sampled_from(kinds))
    data = minimal(kind)
    table = {**_COMMON, **VALUES[kind]}
    for key in draw(st.lists(st.sampled_from(sorted(table)), unique=True, max_size=8)):
        assign(data, key, draw(table[key]))
    return data


def write(folder: Path, content: str | bytes, name: str = "r.yaml") -> Path:
    """A file with this content."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def load_text(folder: Path, content: str | bytes, *overrides: str) -> Loaded:
    """The recipe of this text."""
    return load_recipe(write(folder, content), list(overrides))


def problems_of(folder: Path, content: str | bytes, *overrides: str) -> list[Problem]:
    """What is wrong with this text."""
    with pytest.raises(RecipeErrors) as caught:
        load_text(folder, content, *overrides)
    return caught.value.problems


def places(problems: list[Problem]) -> list[tuple[int, int, str]]:
    """Line, column and key of each problem."""
    return [(problem.line, problem.column, problem.key) for problem in problems]
