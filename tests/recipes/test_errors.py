"""Every kind of error of a single recipe: its exact place, its words, its suggestion, and all of them at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from recipes.load import from_dict
from recipes.problems import Problem, RecipeErrors
from tests.recipes.helpers import minimal, places, problems_of

TRAIN = """\
schema: 1
kind: train
name: x
model: {path: m}
data:
  csv: a.csv
  text_embed_folder: t
  video_embed_folder: v
video: {height: 64, width: 96, frames: 17}
train:
  steps: 3
"""
GENERATE = """\
schema: 1
kind: generate
name: x
model: {path: m}
prompts: a cat
video: {height: 64, width: 96, frames: 17}
"""
ENCODE = """\
schema: 1
kind: encode-video
name: x
model: {path: m}
data: {csv: a.csv, video_folder: v}
video: {height: 64, width: 96, max_frames: 17}
"""
TEXT = "schema: 1\nkind: encode-text\nname: x\nmodel: {path: m}\ndata: {csv: a.csv}\n"
KIND_LIST = (
    "make-clips, make-model, encode-text, encode-video, train, train-vae, generate, decode-latents, judge, paired, "
    "pipeline"
)
CLIPS = "schema: 1\nkind: make-clips\nname: x\nclips: {count: 2, height: 64, width: 64, frames: 9}\n"
VAE = """\
schema: 1
kind: train-vae
name: x
model: {preset: tiny-1.5}
data: {csv: a.csv, video_folder: v}
video: {height: 64, width: 64, frames: 9}
train: {steps: 3}
"""

RECIPES = {
    "CLIPS": CLIPS,
    "VAE": VAE,
    "TRAIN": TRAIN,
    "TINY_TRAIN": TRAIN.replace("{path: m}", "{preset: tiny-1.5}"),
    "GENERATE": GENERATE,
    "ENCODE": ENCODE,
    "TEXT": TEXT,
}


@dataclass(frozen=True)
class Case:
    """One fault: the recipe with it, and what is to be said about it."""

    text: str
    place: tuple[int, int, str]
    words: str
    suggestion: str


def _fields(line: str) -> list[str]:
    fields = [field.strip(" ") for field in f"{line} ".split(" |")]
    return [field.replace("\\n", "\n") for field in [*fields, "", ""][:3]]


def _cases() -> dict[str, Case]:
    lines = Path(__file__).with_name("error_cases.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line.strip() and not line.startswith("#")]
    cases = {}
    for name, fault, expected in zip(lines[0::3], lines[1::3], lines[2::3], strict=True):
        recipe, old, new = _fields(fault)
        where, words, suggestion = _fields(expected)
        place, key = where.split(" ")
        line, column = place.split(":")
        assert old in RECIPES[recipe], name
        text = RECIPES[recipe].replace(old, new, 1)
        cases[name] = Case(text, (int(line), int(column), key), words.replace("KINDS", KIND_LIST), suggestion)
    return cases


CASES = _cases()


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_error_with_its_place(case: str, tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, CASES[case].text)
    assert places([problem]) == [CASES[case].place]
    assert CASES[case].words in problem.message
    assert problem.suggestion == CASES[case].suggestion
    assert str(problem).isprintable()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_recipes_of_these_tests_are_valid_before_the_fault(recipe: str, tmp_path: Path) -> None:
    from tests.recipes.helpers import load_text

    assert load_text(tmp_path, recipe).data["name"] == "x"


def test_all_errors_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = TRAIN.replace("name: x", "name: x y").replace("{path: m}", "{path: m, preset: tiny-1.5}")
    text = (
        text.replace("  csv: a.csv\n", "  cvs: a.csv\n")
        .replace("frames: 17", "frames: 78")
        .replace("steps: 3", "steps: 0")
    )
    text += "optimizer: {name: came, lr: fast}\nruntime: {workers: none}\n"
    assert places(problems_of(tmp_path, text)) == [
        (3, 7, "name"),
        (4, 15, "model.path"),
        (5, 1, "data.csv"),
        (6, 3, "data.cvs"),
        (9, 40, "video.frames"),
        (11, 10, "train.steps"),
        (12, 1, "optimizer.betas"),
        (12, 1, "optimizer.eps"),
        (12, 29, "optimizer.lr"),
        (13, 20, "runtime.workers"),
    ]


def test_the_text_has_a_line_for_each_problem(tmp_path: Path) -> None:
    with pytest.raises(RecipeErrors) as caught:
        raise RecipeErrors(
            [Problem("f", 2, 1, "b", "got 2, need 1"), Problem("f", 1, 3, "a", "unknown key", "did you mean 'b'?")] * 2
        )
    assert str(caught.value) == "f:1:3: a: unknown key; did you mean 'b'?\nf:2:1: b: got 2, need 1"


def test_from_dict_names_the_key_without_a_line() -> None:
    data = minimal("train")
    data["train"]["steps"] = 0
    data["video"]["frames"] = 18
    with pytest.raises(RecipeErrors) as caught:
        from_dict(data)
    assert [str(problem).split(", ")[0] for problem in caught.value.problems] == [
        "recipe: train.steps: got 0",
        "recipe: video.frames: got 18",
    ]


def test_a_recipe_built_in_python_obeys_the_rules() -> None:
    from recipes.schema import TrainRecipe

    data = minimal("train")
    data["video"]["frames"] = 18
    with pytest.raises(ValueError, match=r"video\.frames: got 18, need 4n"):
        TrainRecipe.model_validate(data)
