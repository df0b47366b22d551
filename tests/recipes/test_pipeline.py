"""Pipelines: what goes into a stage, references between stages, stages from files, and where their errors are."""

from __future__ import annotations

from pathlib import Path

import pytest

import recipes
from recipes.load import from_dict
from recipes.pipeline import expand_stages, skipped_stages
from recipes.references import resolve_references
from recipes.schema import PipelineRecipe
from tests.recipes.helpers import load_text, places, problems_of, write
from tests.recipes.test_errors import GENERATE

PIPELINE = """\
schema: 1
kind: pipeline
name: x
seed: 5
runtime: {dtype: bf16, repeats: 3, timeout_s: 9}
common:
  model: {path: "@model"}
  video: {height: 64, width: 96, frames: 17, max_frames: 33}
  data: {csv: "@clips/a.csv", video_folder: "@clips"}
stages:
  - name: clips
    kind: make-clips
    only_if_used: true
    clips: {count: 2, height: 64, width: 96, frames: 17}
  - name: model
    kind: make-model
    only_if_used: true
    model: {preset: tiny-1.5}
  - name: video
    kind: encode-video
    video: {max_frames: 17}
  - name: generate
    kind: generate
    prompts: a cat
    runtime: {dtype: fp16}
"""


def test_common_goes_where_a_kind_has_the_key_and_the_stage_wins(tmp_path: Path) -> None:
    stages = dict(expand_stages(load_text(tmp_path, PIPELINE).data))
    assert list(stages) == ["clips", "model", "video", "generate"]
    assert stages["video"]["video"]["max_frames"] == 17
    assert "frames" not in stages["video"]["video"]
    assert stages["generate"]["video"]["frames"] == 17
    assert stages["generate"]["model"]["path"] == "@model"
    assert "path" not in stages["model"]["model"]
    assert "data" not in stages["generate"]


def test_seed_and_runtime_of_the_pipeline_are_defaults_but_limits_stay_with_it(tmp_path: Path) -> None:
    loaded = load_text(tmp_path, PIPELINE)
    stages = dict(expand_stages(loaded.data))
    assert [stage["seed"] for stage in stages.values()] == [5] * 4
    assert [stage["runtime"]["dtype"] for stage in stages.values()] == ["bf16", "bf16", "bf16", "fp16"]
    assert {stage["runtime"]["repeats"] for stage in stages.values()} == {1}
    assert {stage["runtime"]["timeout_s"] for stage in stages.values()} == {None}
    assert (loaded.data["runtime"]["repeats"], loaded.data["runtime"]["timeout_s"]) == (3, 9)


def test_stages_are_recipes_of_their_own(tmp_path: Path) -> None:
    loaded = load_text(tmp_path, PIPELINE)
    for name, stage in expand_stages(loaded.data):
        recipe = from_dict(stage)
        assert (recipe.name, recipe.kind) == (name, stage["kind"])
        assert from_dict(recipe.model_dump(mode="json", by_alias=True)) == recipe
    assert isinstance(loaded.recipe, PipelineRecipe)
    assert from_dict(loaded.data) == loaded.recipe
    assert "common" not in loaded.data


def test_origins_of_a_stage_point_to_common_or_the_stage(tmp_path: Path) -> None:
    loaded = load_text(
        tmp_path, PIPELINE, "stages.generate.sampling.steps=4", "common.video.width=32", "stages.2.video.fps=3"
    )
    file = tmp_path / "r.yaml"
    assert loaded.origins["stages.generate.video.height"] == f"{file}:8"
    assert loaded.origins["stages.video.video.max_frames"] == f"{file}:21"
    assert loaded.origins["stages.generate.seed"] == f"{file}:4"
    assert loaded.origins["stages.generate.video.width"] == "--set"
    assert loaded.origins["stages.generate.sampling.steps"] == "--set"
    assert loaded.origins["stages.video.video.fps"] == "--set"
    assert loaded.origins["stages.video.video.backend"] == "default"


def test_a_stage_that_nobody_uses_is_skipped_with_all_that_only_it_uses(tmp_path: Path) -> None:
    loaded = load_text(tmp_path, PIPELINE, "common.data={csv: a.csv, video_folder: v}", "common.model.path=m")
    assert skipped_stages(loaded.data) == ["clips", "model"]
    assert [name for name, _ in expand_stages(loaded.data)] == ["video", "generate"]
    chain = PIPELINE.replace("    video: {max_frames: 17}\n", "    video: {max_frames: 17}\n    only_if_used: true\n")
    assert skipped_stages(load_text(tmp_path, chain).data) == ["clips", "video"]


def test_a_reference_to_the_recipes_is_a_path_in_this_package(tmp_path: Path) -> None:
    loaded = load_text(tmp_path, PIPELINE, "stages.generate.model.path='@recipes/tiny/x'")
    stages = dict(expand_stages(loaded.data))
    resolved = resolve_references(stages["generate"], {})
    assert resolved["model"]["path"] == str(Path(recipes.__file__).parent / "tiny" / "x")
    assert stages["generate"]["model"]["path"] == "@recipes/tiny/x"


def test_references_become_paths_and_nothing_else_does(tmp_path: Path) -> None:
    loaded = load_text(tmp_path, PIPELINE, "stages.generate.prompts='@model'")
    stages = dict(expand_stages(loaded.data))
    folders = {"clips": "/run/1", "model": Path("/run/2")}
    video = resolve_references(stages["video"], folders)
    assert (video["data"]["csv"], video["data"]["video_folder"]) == ("/run/1/a.csv", "/run/1")
    assert stages["video"]["data"]["csv"] == "@clips/a.csv"
    generate = resolve_references(stages["generate"], folders)
    assert (generate["model"]["path"], generate["prompts"]) == ("/run/2", ["@model"])


FAULTS = {
    "no stages": (
        "stages:\n" + PIPELINE.split("stages:\n")[1],
        "",
        [(1, 1, "stages")],
        "missing, need a list of stages",
    ),
    "stages no list": (
        PIPELINE.split("stages:\n")[1],
        "  a: 1\n",
        [(11, 3, "stages")],
        "got a section, need a list of stages",
    ),
    "stages empty": (
        "stages:\n" + PIPELINE.split("stages:\n")[1],
        "stages: []\n",
        [(10, 9, "stages")],
        "need a list of stages",
    ),
    "stage no section": (
        "  - name: clips\n",
        "  - text\n  - name: clips\n",
        [(11, 5, "stages.0")],
        "got 'text', need a stage",
    ),
    "stage without kind": (
        "    kind: generate\n",
        "",
        [(22, 5, "stages.generate.kind")],
        "missing, need one of make-clips",
    ),
    "stage kind wrong": ("kind: generate", "kind: generat", [(23, 11, "stages.generate.kind")], "got 'generat'"),
    "pipeline in a pipeline": (
        "kind: generate",
        "kind: pipeline",
        [(23, 11, "stages.generate.kind")],
        "got 'pipeline'",
    ),
    "stage without name": ("name: generate\n    kind", "kind", [(22, 5, "stages.3.name")], "missing, need letters"),
    "stage name with a dot": ("name: generate", "name: a.b", [(22, 11, "stages.a.b.name")], "got 'a.b', need letters"),
    "stage name twice": ("name: generate", "name: video", [(22, 11, "stages.video.name")], "got 'video' twice"),
    "own key unknown": (
        "prompts: a cat",
        "prompts: a cat\n    promts: x",
        [(25, 5, "stages.generate.promts")],
        "unknown key",
    ),
    "own key missing": ("    prompts: a cat\n", "", [(22, 5, "stages.generate.prompts")], "got no prompt"),
    "own rule": (
        "max_frames: 17",
        "max_frames: 17, frames_rule: 64n",
        [(21, 42, "stages.video.video.frames_rule")],
        "got '64n'",
    ),
    "extends in a stage": (
        "prompts: a cat",
        "prompts: a cat\n    extends: a",
        [(25, 5, "stages.generate.extends")],
        "use recipe: and set:",
    ),
    "common value": ("frames: 17, max", "frames: 18, max", [(8, 42, "common.video.frames")], "got 18, need 8n+1"),
    "common value for several": (
        "height: 64, width: 96, frames: 17, max",
        "height: 65, width: 96, frames: 17, max",
        [(8, 19, "common.video.height")],
        "nearest: 64 or 80",
    ),
    "common section unknown": (
        "common:\n",
        "common:\n  vidio: {}\n",
        [(7, 3, "common.vidio")],
        "did you mean 'video'?",
    ),
    "common section unused": (
        "common:\n",
        "common:\n  optimizer: {}\n",
        [(7, 3, "common.optimizer")],
        "no stage of this pipeline",
    ),
    "common key unused": (
        "frames: 17, max",
        "frame: 17, max",
        [(8, 3, "common.video.frames"), (8, 34, "common.video.frame")],
        "",
    ),
    "common name": (
        "common:\n",
        "common:\n  name: x\n",
        [(7, 3, "common.name")],
        "no stage of this pipeline has this key",
    ),
    "common no section": ("common:\n", "common: 3\nx:\n", [(6, 9, "common")], "got 3, need sections"),
    "head unknown": ("seed: 5", "seed: 5\ncomon: {}", [(5, 1, "comon")], "did you mean 'common'?"),
    "head type": ("seed: 5", "seed: -5", [(4, 7, "seed")], "need an integer >= 0"),
    "reference to nothing": ("@clips/a.csv", "@clip/a.csv", [(9, 15, "common.data.csv")], "did you mean 'clips'?"),
    "reference to itself": (
        "prompts: a cat",
        "prompts_file: '@generate/p'",
        [(24, 19, "stages.generate.prompts_file")],
        "runs before it or is it itself",
    ),
    "reference to a later one": (
        "video: {max_frames: 17}",
        "video: {max_frames: 17}\n    vae: {}\n    output: {folder: '@generate/x'}",
        [(23, 22, "stages.video.output.folder")],
        "runs before it",
    ),
    "reference malformed": ("@clips/a.csv", "@/a.csv", [(9, 15, "common.data.csv")], "need @stage or @stage/path"),
    "reference upwards": ("@clips/a.csv", "@clips/../a.csv", [(9, 15, "common.data.csv")], "without '..'"),
    "duplicate in a stage": (
        "prompts: a cat",
        "prompts: a cat\n    prompts: b",
        [(25, 5, "stages.3.prompts")],
        "duplicate key",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_of_pipelines_and_their_places(case: str, tmp_path: Path) -> None:
    old, new, expected, words = FAULTS[case]
    assert old in PIPELINE
    text = PIPELINE.replace(old, new, 1)
    found = problems_of(tmp_path, text)
    if case == "common no section":
        found = [problem for problem in found if problem.key == "common"]
    assert places(found) == expected
    assert words in str(found[0])


def test_faults_of_several_stages_come_at_once(tmp_path: Path) -> None:
    text = PIPELINE.replace("count: 2", "count: 0").replace("tiny-1.5", "tiny").replace("seed: 5", "seed: x")
    text = text.replace("frames: 17, max", "frames: 18, max")
    assert places(problems_of(tmp_path, text)) == [
        (4, 7, "seed"),
        (8, 42, "common.video.frames"),
        (14, 20, "stages.clips.clips.count"),
        (18, 21, "stages.model.model.preset"),
    ]


FILE_STAGE = """\
schema: 1
kind: pipeline
name: x
common: {video: {height: 32, fps: 4}}
stages:
  - name: first
    recipe: other/g.yaml
    set: {sampling.steps: 4, prompts: [a dog]}
"""


def test_a_stage_from_a_file(tmp_path: Path) -> None:
    write(tmp_path, "extends: ../base.yaml\nname: y\noutput: {folder: o}\n", "other/g.yaml")
    base = write(tmp_path, GENERATE, "base.yaml")
    loaded = load_text(tmp_path, FILE_STAGE, "stages.first.set.seed=8")
    ((name, stage),) = expand_stages(loaded.data)
    assert (name, stage["name"], stage["kind"]) == ("first", "first", "generate")
    assert (stage["sampling"]["steps"], stage["prompts"], stage["seed"]) == (4, ["a dog"], 8)
    assert (stage["video"]["height"], stage["video"]["fps"]) == (64, 4.0)
    assert stage["output"]["folder"] is None
    assert loaded.origins["stages.first.video.height"].endswith("base.yaml:6")
    assert base.name in loaded.origins["stages.first.model.path"]
    assert loaded.origins["stages.first.sampling.steps"] == f"{tmp_path / 'r.yaml'}:8"
    assert loaded.origins["stages.first.seed"] == "--set"


FILE_FAULTS = {
    "missing file": ("other/g.yaml", "no.yaml", "r.yaml", (7, 13, "stages.first.recipe"), "there is no file"),
    "more keys": (
        "    set: {",
        "    seed: 1\n    set: {",
        "r.yaml",
        (8, 5, "stages.first.seed"),
        "has only name, recipe, set",
    ),
    "set no section": (
        "{sampling.steps: 4, prompts: [a dog]}",
        "3",
        "r.yaml",
        (8, 10, "stages.first.set"),
        "got 3, need dotted keys",
    ),
    "set of the kind": ("sampling.steps: 4", "kind: train", "r.yaml", (8, 11, "kind"), "can't be set"),
    "set wrong": (
        "sampling.steps: 4",
        "sampling.steps: 0",
        "r.yaml",
        (8, 27, "stages.first.sampling.steps"),
        "got 0, need",
    ),
    "set unknown": (
        "sampling.steps: 4",
        "sampling.step: 4",
        "r.yaml",
        (8, 11, "stages.first.sampling.step"),
        "did you mean 'steps'?",
    ),
    "itself": ("other/g.yaml", "r.yaml", "r.yaml", (7, 13, "stages.first.recipe"), "got a cycle"),
}


@pytest.mark.parametrize("case", FILE_FAULTS)
def test_faults_of_a_stage_from_a_file(case: str, tmp_path: Path) -> None:
    old, new, file, place, words = FILE_FAULTS[case]
    write(tmp_path, GENERATE, "other/g.yaml")
    (problem,) = problems_of(tmp_path, FILE_STAGE.replace(old, new, 1))
    assert Path(problem.file).name == file
    assert places([problem]) == [place]
    assert words in str(problem)


def test_a_fault_in_the_stage_file_is_shown_there(tmp_path: Path) -> None:
    write(tmp_path, GENERATE.replace("frames: 17", "frames: 18"), "other/g.yaml")
    (problem,) = problems_of(tmp_path, FILE_STAGE)
    assert (Path(problem.file).name, problem.line, problem.column) == ("g.yaml", 6, 40)


def test_set_to_a_stage_that_is_not_there_lists_the_stages(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, PIPELINE, "stages.train.seed=3")
    assert "got 'train', need an entry of 'stages': clips, model, video, generate, or its number" in str(problem)
