"""The recipes of the tiny world agree with each other, and the weights that come with them are those of the records."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pytest

import recipes
from core.data.shapes import BACKGROUNDS, DEFAULT_COLORS, Clip, combinations
from recipes.load import from_dict, load_recipe
from recipes.pipeline import expand_stages
from recipes.problems import RecipeErrors
from tests.recipes.helpers import minimal

FOLDER = Path(recipes.__file__).parent
WORLD = FOLDER / "tiny" / "world"


def stages(name: str) -> dict:
    return dict(expand_stages(load_recipe(FOLDER / name).data))


def captions(**choice) -> set[str]:
    return {
        Clip(shape=shape, color=color, motion=motion, background=background, size=0.3, offset=0.5).caption
        for shape, color, motion in combinations(**choice)
        for background in BACKGROUNDS
    }


@pytest.mark.parametrize("name", ["tiny/train.yaml", "tiny/world_score.yaml", "tiny/world_timesteps.yaml"])
def test_prompts_are_the_combinations_that_training_leaves_out(name: str) -> None:
    clips = stages("tiny/train.yaml")["clips"]["clips"]
    choice = {key: clips[key] for key in ("shapes", "colors", "motions", "hold_out", "hold_out_seed")}
    held_out = captions(**choice, part="held_out")
    asked = [set(stage["prompts"]) for stage in stages(name).values() if stage["kind"] == "generate"]
    assert asked
    assert all(prompts == held_out for prompts in asked)
    assert not held_out & captions(**choice, part=clips["part"])


def test_all_recipes_of_the_world_draw_shapes_of_one_size() -> None:
    names = ("tiny/world_vae.yaml", "tiny/world_reconstruction.yaml", "tiny/train.yaml", "quickstart.yaml")
    clips = [stage["clips"] for name in names for stage in stages(name).values() if stage["kind"] == "make-clips"]
    assert len(clips) == 5
    assert len({tuple(drawn["size"]) for drawn in clips}) == 1


def test_sizes_begin_with_the_smallest() -> None:
    clips = {"count": 1, "height": 32, "width": 32, "frames": 9, "size": [0.5, 0.4]}
    with pytest.raises(RecipeErrors, match=r"clips.size: got 0.5 to 0.4, need the smallest first; try \[0.4, 0.5\]"):
        from_dict(minimal("make-clips", clips=clips))


def test_scores_against_training_steps_are_of_checkpoints_that_the_run_keeps() -> None:
    found = stages("tiny/train.yaml")
    section = found["train"]["train"]
    assert found["world"]["components"]["transformer"] == "@train/transformer_ema"
    assert section.get("keep_checkpoints") is None
    judged = {name: stage for name, stage in found.items() if stage["kind"] == "judge"}
    assert len(judged) == 3 + section["steps"] // section["save_every"] - 1
    for name, stage in judged.items():
        steps, source = stage["training_steps"], found[stage["videos"].removeprefix("@")]
        where = source["model"].get("transformer")
        if where is None:
            assert source["model"]["path"] == "@world", name
            assert steps == section["steps"], name
        else:
            assert where == f"@train/checkpoint-{steps:06d}/ema", name
            assert steps % section["save_every"] == 0


def test_the_quickstart_shows_a_colour_that_only_the_vae_has_seen() -> None:
    (color,) = stages("quickstart.yaml")["clips"]["clips"]["colors"]
    assert color not in DEFAULT_COLORS
    assert color in stages("tiny/world_vae.yaml")["clips"]["clips"]["colors"]
    assert all(color in prompt for prompt in stages("quickstart.yaml")["generate"]["prompts"])


def test_committed_weights_are_those_that_the_record_lists() -> None:
    """The record's artifacts name each file with its size and SHA-256."""
    record = json.loads(gzip.decompress((WORLD / "records" / "world.json.gz").read_bytes()))
    listed = {
        "/".join(Path(artifact["path"]).parts[-2:]): artifact
        for artifact in record["artifacts"]
        if artifact["path"].endswith(".safetensors")
    }
    files = sorted((WORLD / "model").rglob("*.safetensors"))
    assert len(files) == 3
    for path in files:
        artifact = listed["/".join(path.parts[-2:])]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == artifact["sha256"]
