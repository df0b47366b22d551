"""Reading recipes: ``load_recipe`` for files, ``from_dict`` for effective recipes, ``show`` for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from recipes import pipeline
from recipes.digest import digest
from recipes.problems import Problem, RecipeErrors
from recipes.references import path_nodes
from recipes.schema import KINDS, PipelineHead, PipelineRecipe, Recipe
from recipes.sources import apply_overrides, read_tree
from recipes.validate import kind_of, validate
from recipes.yaml_source import Node, Position, from_python, plain, with_paths


@dataclass(frozen=True)
class Loaded:
    """A valid recipe and where it came from.

    ``data``: every effective value as JSON types, defaults and a pipeline's stages spelled out.
    ``origins``: dotted key (stages by name) -> ``file:line``, ``--set`` or ``default``.
    ``digest``: identity of the experiment (``recipes.digest``). ``path``: the file.
    """

    recipe: Recipe
    data: dict[str, Any]
    origins: dict[str, str]
    digest: str
    path: Path


def load_recipe(path: str | PathLike[str], overrides: Sequence[str] = ()) -> Loaded:
    """Reads a recipe file, its ``extends`` chain and ``--set`` values (``["video.frames=17"]``).

    Raises:
        RecipeErrors: every problem of the recipe, each with file, line and column.
    """
    file = Path(path)
    problems: list[Problem] = []
    return load_tree(apply_overrides(read_tree(file, problems), overrides, problems), file, problems)


def load_tree(root: Node, file: Path, problems: list[Problem]) -> Loaded:
    """The recipe of a tree that was read from ``file`` and perhaps changed; ``problems`` were found on the way.

    Raises:
        RecipeErrors: every problem, each where it stands.
    """
    root = with_paths(root)
    recipe, tree = _validated(root, problems, (file,))
    if not isinstance(recipe, PipelineRecipe):
        for node in path_nodes(type(recipe), root):
            if isinstance(node.value, str) and node.value.startswith("@"):
                message = f"got '{node.value}', but only a pipeline has stages to refer to"
                problems.append(node.at.problem(node.path, message))
    if problems:
        raise RecipeErrors(problems)
    data = recipe.model_dump(mode="json", by_alias=True)
    places = dict(_places(tree))
    origins = {key: _origin(places, key) for key, _ in flatten(data)}
    return Loaded(recipe, data, origins, digest(data), file)


def from_dict(data: dict[str, Any]) -> Recipe:
    """The recipe of effective data (``Loaded.data``, a record's ``recipe``, a stage of ``expand_stages``).

    Raises:
        RecipeErrors: every problem, without lines.
    """
    problems: list[Problem] = []
    root = with_paths(from_python(data, Position("recipe")))
    recipe, _ = _validated(root, problems, ())
    return recipe


def _validated(root: Node, problems: list[Problem], chain: tuple[Path, ...]) -> tuple[Recipe, Node]:
    kind = kind_of(root, KINDS, problems)
    if kind is None:
        raise RecipeErrors(problems)
    if kind != "pipeline":
        recipe, found = validate(root, KINDS[kind], ("extends",))
        problems += found
    else:
        head = Node({k: v for k, v in root.value.items() if k not in ("stages", "common")}, root.at, root.key_at)
        valid, found = validate(head, PipelineHead, ("stages", "common", "extends"))
        problems += found
        stages = pipeline.stage_nodes(root, problems, chain)
        root = Node({**head.value, "stages": Node(stages, root.at, path="stages")}, root.at)
        recipe = None
        if valid is not None and not problems:
            recipe = PipelineRecipe.model_validate(plain(root))
    if problems or recipe is None:
        raise RecipeErrors(problems)
    return recipe, root


def flatten(data: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted keys and values; lists are values, but a pipeline's stages are opened and called by name."""
    for key, value in data.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        elif key == "stages" and isinstance(value, list):
            for stage in value:
                yield from flatten(stage, f"{prefix}stages.{stage['name']}.")
        else:
            yield f"{prefix}{key}", value


def show(loaded: Loaded) -> list[tuple[str, Any, str]]:
    """Every effective value as (dotted key, value, origin)."""
    return [(key, value, loaded.origins[key]) for key, value in flatten(loaded.data)]


def _places(node: Node, prefix: str = "") -> Iterable[tuple[str, str]]:
    yield prefix.rstrip("."), node.at.origin
    if isinstance(node.value, dict):
        for key, child in node.value.items():
            yield from _places(child, f"{prefix}{key}.")
    elif isinstance(node.value, list):
        for child in node.value:
            if isinstance(child.value, dict) and "name" in child.value:
                yield from _places(child, f"{prefix}{child.value['name'].value}.")


def _origin(places: dict[str, str], key: str) -> str:
    return places.get(key, "default")
