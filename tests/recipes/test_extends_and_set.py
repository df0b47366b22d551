"""``extends`` and ``--set``: what wins, where values came from, and what goes wrong where."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.load import load_recipe, show
from recipes.problems import RecipeErrors
from tests.recipes.helpers import load_text, places, problems_of, write
from tests.recipes.test_errors import GENERATE, TRAIN


def test_the_child_wins_key_by_key_and_lists_are_replaced(tmp_path: Path) -> None:
    write(tmp_path, TRAIN + "optimizer: {lr: 1e-3, betas: [0.5, 0.6]}\n", "base/parent.yaml")
    write(tmp_path, "extends: parent.yaml\noptimizer: {betas: [0.7, 0.8]}\n", "base/middle.yaml")
    loaded = load_text(tmp_path, "extends: base/middle.yaml\nname: child\ntrain: {batch_size: 2}\n")
    assert loaded.data["name"] == "child"
    assert loaded.data["optimizer"]["lr"] == 1e-3
    assert loaded.data["optimizer"]["betas"] == [0.7, 0.8]
    assert (loaded.data["train"]["steps"], loaded.data["train"]["batch_size"]) == (3, 2)
    assert "extends" not in loaded.data


def test_every_value_knows_its_origin(tmp_path: Path) -> None:
    parent = write(tmp_path, TRAIN, "parent.yaml")
    child = write(tmp_path, "extends: parent.yaml\n\nseed: 3\n")
    loaded = load_recipe(child, ["train.steps=9"])
    assert loaded.origins["seed"] == f"{child}:3"
    assert loaded.origins["data.csv"] == f"{parent}:6"
    assert loaded.origins["train.steps"] == "--set"
    assert loaded.origins["train.batch_size"] == "default"
    rows = show(loaded)
    assert ("train.steps", 9, "--set") in rows
    assert ("optimizer.betas", [0.9, 0.95], "default") in rows
    assert [key for key, _, _ in rows] == list(loaded.origins)
    assert loaded.path == child


def test_an_error_in_the_parent_is_shown_there(tmp_path: Path) -> None:
    parent = write(tmp_path, TRAIN.replace("steps: 3", "steps: 0"), "parent.yaml")
    (problem,) = problems_of(tmp_path, "extends: parent.yaml\n")
    assert (problem.file, problem.line, problem.column) == (str(parent), 11, 10)


EXTENDS = {
    "missing file": ("name: x\nextends: no.yaml\n", 2, 10, "there is no file"),
    "a folder": ("extends: .\n", 1, 10, "there is no file"),
    "itself": ("extends: r.yaml\n", 1, 10, "got a cycle: r.yaml -> r.yaml"),
    "two parents": ("extends: [a.yaml, b.yaml]\n", 1, 10, "need the path of one recipe file"),
    "null": ("extends:\n", 1, 1, "got null, need the path"),
}


@pytest.mark.parametrize("case", EXTENDS)
def test_extends_that_can_not_be_followed(case: str, tmp_path: Path) -> None:
    text, line, column, words = EXTENDS[case]
    (problem,) = problems_of(tmp_path, text)
    assert (problem.line, problem.column, problem.key) == (line, column, "extends")
    assert words in problem.message


def test_a_longer_cycle_is_shown_where_it_closes(tmp_path: Path) -> None:
    write(tmp_path, "extends: b.yaml\n", "a.yaml")
    last = write(tmp_path, "name: x\nextends: r.yaml\n", "b.yaml")
    (problem,) = problems_of(tmp_path, "extends: a.yaml\n")
    assert (problem.file, problem.line, problem.column) == (str(last), 2, 10)
    assert "r.yaml -> a.yaml -> b.yaml -> r.yaml" in problem.message


def test_an_empty_parent_is_an_error_of_the_parent(tmp_path: Path) -> None:
    parent = write(tmp_path, "", "parent.yaml")
    (problem,) = problems_of(tmp_path, "extends: parent.yaml\n")
    assert problem.file == str(parent)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("video.frames=25", "video.frames", 25),
        ("video.frames = 25", "video.frames", 25),
        ("sampling.guidance_scale=1e0", "sampling.guidance_scale", 1.0),
        ("sampling={steps: 4, guidance_scale: 0.5}", "sampling.steps", 4),
        ("prompts=[a, 'b: c']", "prompts", ["a", "b: c"]),
        ("prompts=a=b", "prompts", ["a=b"]),
        ("negative_prompt=''", "negative_prompt", ""),
        ("vae.tiling.tile_height=64", None, None),
        ("runtime.timeout_s=null", "runtime.timeout_s", None),
        ("name=on", "name", "on"),
    ],
)
def test_set_takes_scalars_and_flow_values(override: str, key: str | None, value: object, tmp_path: Path) -> None:
    if key is None:
        found = problems_of(tmp_path, GENERATE, override)
        assert {problem.key for problem in found} == {
            f"vae.tiling.{k}" for k in ("tile_width", "overlap_height", "overlap_width")
        }
        assert {problem.file for problem in found} == {f"--set {override}"}
        return
    loaded = load_text(tmp_path, GENERATE, override)
    assert {k: v for k, v, _ in show(loaded)}[key] == value
    assert loaded.origins[key] == "--set"


def test_the_last_set_wins_and_can_reach_into_lists(tmp_path: Path) -> None:
    loaded = load_text(
        tmp_path, TRAIN + "optimizer: {betas: [0.1, 0.2]}\n", "optimizer.betas.1=0.3", "seed=1", "seed=2"
    )
    assert (loaded.data["optimizer"]["betas"], loaded.data["seed"]) == ([0.1, 0.3], 2)


SET_ERRORS = {
    "no equals sign": ("seed", "--set seed: need KEY=VALUE"),
    "no key": ("=3", "--set =3: need KEY=VALUE"),
    "empty part": ("video..frames=3", "--set video..frames=3: video..frames: need KEY=VALUE"),
    "no value": ("seed=", "--set seed=: seed: got no value"),
    "comment": ("prompts=#x", "--set prompts=#x: prompts: got no value"),
    "syntax": ("prompts=[a", "--set prompts=[a: prompts: YAML syntax"),
    "reference without quotes": ("model.path=@x", "--set model.path=@x: model.path: found character '@'"),
    "block mapping": ("prompts=a: b", "--set prompts=a: b: prompts: got a block mapping"),
    "block list": ("prompts=- a", "--set prompts=- a: prompts: got a block list"),
    "wrong type": ("seed=x", "--set seed=x: seed: got 'x', need an integer >= 0 and < 4294967296"),
    "frames rule": ("video.frames=18", "--set video.frames=18: video.frames: got 18, need 8n+1"),
    "unknown key": ("vidio.frames=9", "--set vidio.frames=9: vidio: unknown key; did you mean 'video'?"),
    "through a value": ("name.a=1", "--set name.a=1: name.a: 'name' is a value and has no keys"),
    "list entry": ("model=[a]", "--set model=[a]: model: got [a], need a section"),
    "kind": ("kind=train", "--set kind=train: kind: can't be set from outside"),
    "extends": ("extends=a.yaml", "--set extends=a.yaml: extends: can't be set from outside"),
    "anchor": ("seed=&a 1", "--set seed=&a 1: seed: got the anchor"),
}


@pytest.mark.parametrize("case", SET_ERRORS)
def test_errors_of_set_name_the_argument(case: str, tmp_path: Path) -> None:
    override, start = SET_ERRORS[case]
    (problem,) = problems_of(tmp_path, GENERATE, override)
    assert str(problem).startswith(start)


def test_an_entry_that_a_list_does_not_have(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, GENERATE.replace("a cat", "[a, b]"), "prompts.2=c")
    assert "got '2', need an entry of 'prompts': 0, 1" in problem.message


def test_bad_overrides_and_a_bad_file_are_reported_together(tmp_path: Path) -> None:
    found = problems_of(tmp_path, GENERATE.replace("frames: 17", "frames: 18"), "seed", "seed=x")
    assert len(found) == 3
    assert (6, 40, "video.frames") in places(found)


def test_errors_are_user_errors() -> None:
    from core.errors import UserError

    assert issubclass(RecipeErrors, UserError)
