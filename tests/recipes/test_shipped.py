"""The recipes in the repository: valid, supported where they say so, and true to the original's commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast, get_args

import pytest

import recipes
from core.presets import PRESETS
from recipes.jsonschema import SCHEMA_FILE, export, main, text
from recipes.load import load_recipe, show
from recipes.pipeline import expand_stages, skipped_stages
from recipes.schema import KINDS, STAGE_KINDS, Model
from recipes.schema.pipeline import AnyStage
from recipes.support import unsupported
from tests.recipes.helpers import minimal

FOLDER = Path(recipes.__file__).parent
NO_RECIPES = {"sweeps", "profiles"}  # folders of other files
SHIPPED = sorted(p.relative_to(FOLDER).as_posix() for p in FOLDER.rglob("*.yaml") if p.parent.name not in NO_RECIPES)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_valid(name: str) -> None:
    loaded = load_recipe(FOLDER / name)
    assert len(loaded.digest) == 64
    assert show(loaded)
    if not name.startswith("ascend910/"):
        assert unsupported(loaded.recipe) == []


def test_recipes_have_different_names_and_digests() -> None:
    loaded = [load_recipe(FOLDER / name) for name in SHIPPED]
    assert len({item.recipe.name for item in loaded}) == len({item.digest for item in loaded}) == len(SHIPPED)


def test_quickstart_takes_own_clips() -> None:
    loaded = load_recipe(FOLDER / "quickstart.yaml")
    assert [name for name, _ in expand_stages(loaded.data)] == [
        "clips", "before", "text", "video", "train", "generate", "judge-before", "judge-after"
    ]  # fmt: skip
    own = ["common.data.csv=my/a.csv", "common.data.video_folder=my", "stages.train.train.steps=2"]
    loaded = load_recipe(FOLDER / "quickstart.yaml", own)
    assert skipped_stages(loaded.data) == ["clips"]
    stages = dict(expand_stages(loaded.data))
    assert {stage["data"]["csv"] for stage in stages.values() if "data" in stage} == {"my/a.csv"}


def values(name: str) -> dict[str, Any]:
    """Every effective value of a shipped recipe by dotted key."""
    return {key: value for key, value, _ in show(load_recipe(FOLDER / name))}


def test_sft_has_the_values_of_the_original() -> None:
    found = values("ascend910/sft_768x1360x77_8p.yaml")
    expected = {
        "runtime.workers": 8,
        "runtime.mode": "graph",
        "runtime.jit_level": "O1",
        "runtime.dtype": "bf16",
        "runtime.max_device_memory": "59GB",
        "video.height": 768,
        "video.width": 1360,
        "video.frames": 77,
        "video.latent_frames": 20,
        "text.max_length": 224,
        "train.batch_size": 1,
        "train.text_drop_prob": 0.1,
        "train.max_grad_norm": 1.0,
        "train.recompute": "all",
        "optimizer.name": "came",
        "optimizer.lr": 1e-4,
        "optimizer.betas": [0.9, 0.95, 0.99],
        "optimizer.eps": [1e-8, 1e-8],
        "optimizer.weight_decay": 1e-4,
        "lr_schedule.warmup_steps": 1000,
        "parallel.sequence_parallel": 8,
        "parallel.zero_stage": 2,
    }
    assert {key: found[key] for key in expected} == expected


def test_caches_and_inference_have_the_values_of_the_original() -> None:
    text_cache = values("ascend910/encode_text.yaml")
    assert (text_cache["text.max_length"], text_cache["runtime.dtype"], text_cache["text.empty_text"]) == (
        224,
        "fp32",
        True,
    )
    video = values("ascend910/encode_video_8p.yaml")
    keys = ("video.height", "video.width", "video.max_frames", "video.transform", "runtime.dtype", "runtime.workers")
    assert [video[key] for key in keys] == [768, 1360, 85, "crop_resize", "fp32", 8]
    generate = values("ascend910/generate_768x1360x81.yaml")
    assert [generate[f"video.{key}"] for key in ("height", "width", "frames", "fps")] == [768, 1360, 81, 16.0]


def test_the_caches_of_the_bucket_recipes_are_made_for_their_training() -> None:
    names = ("encode_video_buckets_8p", "sft_buckets_8p")
    encoded, trained = (cast(Any, load_recipe(FOLDER / f"ascend910/{name}.yaml").recipe).video for name in names)
    sizes = [[(b.frames, b.height, b.width) for b in video.buckets] for video in (encoded, trained)]
    assert sizes[0] == sizes[1]
    assert (encoded.max_crop, encoded.max_upscale) == (trained.max_crop, trained.max_upscale)


def test_all_layouts_of_training_are_supported() -> None:
    for path in sorted((FOLDER / "ascend910").glob("sft_*.yaml")):
        assert unsupported(load_recipe(path).recipe) == []


def test_unsupported_names_what_this_version_can_not_run() -> None:
    path = FOLDER / "ascend910/generate_768x1360x81_8p.yaml"
    assert unsupported(load_recipe(path).recipe) == []
    recipe = load_recipe(path, ["parallel.zero_stage=3"]).recipe
    assert unsupported(recipe) == ["parallel.zero_stage: got 3, this version supports 0"]


def test_rows_are_dealt_to_several_processes_but_a_model_is_made_by_one() -> None:
    assert unsupported(load_recipe(FOLDER / "ascend910/encode_video_8p.yaml").recipe) == []
    recipe = load_recipe(FOLDER / "tiny/make_model.yaml", ["runtime.workers=2"]).recipe
    assert unsupported(recipe) == ["runtime.workers: got 2, kind make-model runs 1 process in this version"]


@pytest.mark.parametrize(("name", "shards"), [("sp8", 8), ("sp4_dp2", 4), ("sp2_dp4", 2), ("dp8", 1)])
def test_the_layouts_of_eight_cards_differ_from_the_original_in_nothing_else(name: str, shards: int) -> None:
    base, layout = (values(f"ascend910/sft_768x1360x77_8p{suffix}.yaml") for suffix in ("", f"_{name}"))
    assert layout["parallel.sequence_parallel"] == shards
    assert layout["parallel.zero_stage"] == 3
    changed = {key for key in base if base[key] != layout[key]}
    assert changed <= {"name", "description", "parallel.sequence_parallel", "parallel.zero_stage"}


def test_two_machines_differ_from_one_in_workers_and_where_zero_ends() -> None:
    base, layout = (values(f"ascend910/sft_768x1360x77_{cards}.yaml") for cards in ("8p", "2x8p"))
    changed = {key: layout[key] for key in base if base[key] != layout[key] and key not in ("name", "description")}
    assert changed == {"runtime.workers": 16, "parallel.zero_ranks": 8}


def test_unsupported_names_the_stage() -> None:
    recipe = load_recipe(FOLDER / "quickstart.yaml", ["stages.generate.parallel.zero_stage=1"]).recipe
    assert unsupported(recipe) == ["stages.generate.parallel.zero_stage: got 1, this version supports 0"]


def test_preset_names_are_those_of_core() -> None:
    options = Model.model_json_schema()["properties"]["preset"]["anyOf"][0]["enum"]
    assert options == list(PRESETS)


def test_every_kind_has_a_stage_class_with_the_same_keys() -> None:
    assert list(STAGE_KINDS.values()) == list(get_args(get_args(AnyStage)[0]))
    for name, stage in STAGE_KINDS.items():
        assert issubclass(stage, KINDS[name])
        assert set(stage.model_fields) - set(KINDS[name].model_fields) == {"only_if_used"}


def test_every_field_has_a_description() -> None:
    def undescribed(model: Any, prefix: str) -> list[str]:
        from recipes.validate import section_class

        found = []
        for name, field in model.model_fields.items():
            section = section_class(field.annotation)
            if section:
                found += undescribed(section, f"{prefix}.{name}")
            elif not field.description and name not in ("kind", "stages"):
                found.append(f"{prefix}.{name}")
        return found

    assert [key for name, kind in KINDS.items() for key in undescribed(kind, name)] == []


def test_the_schema_file_is_current() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == text(), "run python -m recipes.jsonschema --write"


def test_a_stale_schema_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("recipes.jsonschema.SCHEMA_FILE", tmp_path / "recipe.schema.json")
    assert main(["--check"]) == 1
    assert "--write" in capsys.readouterr().err
    assert main(["--write"]) == 0
    assert main(["--check"]) == 0
    (tmp_path / "recipe.schema.json").write_text("{}")
    assert main(["--check"]) == 1


def test_the_schema_knows_every_key_of_every_kind() -> None:
    schema = export()
    by_kind = {rule["if"]["properties"]["kind"]["const"]: rule["then"]["properties"] for rule in schema["allOf"]}
    for name, kind in KINDS.items():
        keys = {field.alias or key for key, field in kind.model_fields.items()}
        assert keys <= set(by_kind[name])
    assert {"common", "stages", "extends"} <= set(by_kind["pipeline"])
    assert "max_frames" in by_kind["pipeline"]["common"]["properties"]["video"]["properties"]


def test_every_reference_of_the_schema_leads_somewhere() -> None:
    schema = export()

    def check(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                assert node["$ref"].removeprefix("#/$defs/") in schema["$defs"]
            for value in node.values():
                check(value)
        elif isinstance(node, list):
            for value in node:
                check(value)

    check(schema)


START = """
import sys
import recipes.load, recipes.render, recipes.support, recipes.pipeline, recipes.jsonschema
recipes.load.load_recipe(sys.argv[1])
heavy = {"mindspore", "numpy", "torch", "transformers", "pandas", "matplotlib", "av", "decord", "PIL"}
print(sorted(heavy & set(sys.modules)))
"""


def test_reading_a_recipe_imports_neither_mindspore_nor_anything_heavy() -> None:
    root = str(FOLDER.parent)
    result = subprocess.run(
        [sys.executable, "-c", START, str(FOLDER / "quickstart.yaml")],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "[]"


def test_recipes_are_immutable() -> None:
    from recipes.load import from_dict

    recipe = from_dict(minimal("train"))
    with pytest.raises(ValueError, match="frozen"):
        recipe.runtime.workers = 3
