"""Reading a sweep file: every cell a valid recipe, or every problem at its place in the sweep or the recipe."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from os import PathLike
from pathlib import Path
from typing import Any

from recipes.load import Loaded, load_tree
from recipes.messages import got
from recipes.overrides import put
from recipes.problems import Problem, RecipeErrors
from recipes.schema.sweep import SweepFile
from recipes.sources import read_parent, read_tree
from recipes.validate import validate
from recipes.yaml_source import Node, plain, with_paths

MAX_CELLS = 10_000


@dataclass(frozen=True)
class Cell:
    """One combination: the value of each axis, and the recipe with these values."""

    values: dict[str, Any]
    loaded: Loaded


@dataclass(frozen=True)
class Sweep:
    """A valid sweep; ``cells`` in the order of the file, the last axis fastest."""

    file: SweepFile
    cells: tuple[Cell, ...]
    path: Path


def load_sweep(path: str | PathLike[str]) -> Sweep:
    """Reads a sweep file and its recipe.

    Raises:
        RecipeErrors: every problem of the sweep; if it has none, every problem of its cells, those that an axis
            causes at the axis' value.
    """
    file = Path(path)
    problems: list[Problem] = []
    root = with_paths(read_tree(file, problems))
    sweep, found = validate(root, SweepFile, ("extends",))
    found += _not_lists(root.value.get("axes"))
    if sweep is None or problems or found:
        raise RecipeErrors([*problems, *found])
    count = 1
    for values in sweep.axes.values():
        count *= len(values)
    if count > MAX_CELLS:
        at = root.value["axes"].named_at
        raise RecipeErrors([at.problem("axes", f"got {count} combinations, need at most {MAX_CELLS}")])
    return Sweep(sweep, _cells(root, file), file)


def _not_lists(axes: Node | None) -> list[Problem]:
    """Axes without a list of values, each at its place."""
    if axes is None or not isinstance(axes.value, dict):
        return []
    wrong = [node for node in axes.value.values() if not isinstance(node.value, list) or not node.value]
    return [node.at.problem(node.path, f"got {got(plain(node))}, need a list of values") for node in wrong]


def _cells(root: Node, file: Path) -> tuple[Cell, ...]:
    problems: list[Problem] = []
    base = read_parent(root.value["recipe"], (file,), problems)
    changes = root.value.get("set")
    try:
        for key, value in ((changes.value if changes else None) or {}).items():
            base = put(base, key, value)
        if "timeout_s" in root.value:
            base = put(base, "runtime.timeout_s", root.value["timeout_s"])
    except RecipeErrors as error:
        raise RecipeErrors([*problems, *error.problems]) from None
    axes: dict[str, Node] = root.value["axes"].value
    cells: list[Cell] = []
    seen: dict[str, dict[str, Any]] = {}
    for chosen in product(*(axis.value for axis in axes.values())):
        values = {key: plain(node) for key, node in zip(axes, chosen, strict=True)}
        try:
            loaded = _cell(base, list(zip(axes, chosen, strict=True)), file)
        except RecipeErrors as error:
            problems += error.problems
            continue
        if loaded.digest in seen:
            message = f"got {_shown(values)}, the same experiment as {_shown(seen[loaded.digest])}; remove one"
            problems.append(chosen[-1].at.problem(f"axes.{list(axes)[-1]}", message))
        seen[loaded.digest] = values
        cells.append(Cell(values, loaded))
    if problems:
        raise RecipeErrors(problems)
    return tuple(cells)


def _cell(base: Node, chosen: list[tuple[str, Node]], file: Path) -> Loaded:
    for key, node in chosen:
        base = put(base, key, node)
    return load_tree(base, file, [])


def _shown(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())
