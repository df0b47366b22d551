"""Sweep files: every cell is checked, and what is wrong is shown where it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

import recipes
from recipes.problems import RecipeErrors
from recipes.sweep import load_sweep

FOLDER = Path(recipes.__file__).parent
SWEEP = """schema: 1
kind: sweep
name: s
recipe: gen.yaml
axes:
  video.frames: [9, 17]
  video.height: [32, 64]
"""
RECIPE = """schema: 1
kind: generate
name: g
model: {path: somewhere}
prompts: a circle
video: {height: 32, width: 32, frames: 9}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "gen.yaml").write_text(RECIPE)
    return tmp_path


def problems(folder: Path, text: str) -> list[str]:
    (folder / "s.yaml").write_text(text)
    with pytest.raises(RecipeErrors) as caught:
        load_sweep(folder / "s.yaml")
    return [str(problem).removeprefix(f"{folder}/") for problem in caught.value.problems]


@pytest.mark.parametrize("name", sorted(path.name for path in (FOLDER / "sweeps").glob("*.yaml")))
def test_every_shipped_sweep_is_valid(name):
    sweep = load_sweep(FOLDER / "sweeps" / name)
    assert len({cell.loaded.digest for cell in sweep.cells}) == len(sweep.cells) > 1


def test_cells_are_all_combinations_and_recipes_of_their_own(folder):
    (folder / "s.yaml").write_text(SWEEP + "set: {sampling.steps: 3}\ntimeout_s: 60\n")
    sweep = load_sweep(folder / "s.yaml")
    assert [tuple(cell.values.values()) for cell in sweep.cells] == [(9, 32), (9, 64), (17, 32), (17, 64)]
    last = sweep.cells[-1].loaded
    assert (last.data["video"]["frames"], last.data["video"]["height"]) == (17, 64)
    assert (last.data["sampling"]["steps"], last.data["runtime"]["timeout_s"]) == (3, 60)
    assert last.origins["video.frames"].endswith("s.yaml:6")
    assert len({cell.loaded.digest for cell in sweep.cells}) == 4


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: s", "name: s\nrepeat: 3", "s.yaml:4:1: repeat: unknown key; did you mean 'repeats'?"),
        ("[9, 17]", "[9, 18]", "s.yaml:6:21: video.frames: got 18, need 8n+1 frames"),
        ("video.height", "video.hight", "s.yaml:7:17: video.hight: unknown key; did you mean 'height'?"),
        ("[9, 17]", "[]", "s.yaml:6:17: axes.video.frames: got []"),
        ("[9, 17]", "9", "s.yaml:6:17: axes.video.frames: got 9"),
        ("name: s", "name: s\norder: sorted", "s.yaml:4:8: order: got 'sorted', need one of listed"),
        ("name: s", "name: s\nmemory_cap: 4GB", "s.yaml:4:13: memory_cap: got '4GB', need text such as 4GiB"),
        ("gen.yaml", "gone.yaml", "there is no file"),
        ("[32, 64]", "[32, 32]", "the same experiment as video.frames=9, video.height=32"),
        ("kind: sweep", "kind: train", "need sweep"),
    ],
)
def test_what_is_wrong_is_shown_with_its_place(folder, old, new, expected):
    assert any(expected in line for line in problems(folder, SWEEP.replace(old, new)))


def test_problems_of_several_values_come_together(folder):
    found = problems(folder, SWEEP.replace("[9, 17]", "[9, 18, 20]"))
    assert [line.split(" ")[0] for line in found] == ["s.yaml:6:21:", "s.yaml:6:25:"]


def test_too_many_cells_are_refused(folder):
    many = f"[{', '.join(str(8 * n + 1) for n in range(1, 6000))}]"
    assert any("combinations, need at most" in line for line in problems(folder, SWEEP.replace("[9, 17]", many)))
