"""Files to one tree: reading, ``extends`` and overrides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from recipes.messages import got
from recipes.overrides import parse_override, put
from recipes.problems import Problem, RecipeErrors
from recipes.yaml_source import Broken, Node, merge, parse, plain, read_text

MAX_CHAIN = 16


def read_tree(path: Path, problems: list[Problem], chain: tuple[Path, ...] = ()) -> Node:
    """The tree of a recipe file laid on the tree of the file it ``extends``; ``extends`` itself is gone.

    Findings that do not stop the reading are added to ``problems``.

    Raises:
        RecipeErrors: a file that gives no mapping, or a chain that can't be followed.
    """
    shown = str(path)
    node, found = parse(read_text(path, shown), shown)
    problems += found
    if node is None:
        raise RecipeErrors(problems or [Problem(shown, 1, 1, "", "got an empty file, need a recipe")])
    if not isinstance(node.value, dict):
        if isinstance(node.value, Broken) or found:
            raise RecipeErrors(problems)
        kind = "a list" if isinstance(node.value, list) else got(plain(node))
        raise RecipeErrors([*problems, node.at.problem("", f"got {kind}, need a mapping of keys to values")])
    extends = node.value.get("extends")
    own = replace(node, value={key: child for key, child in node.value.items() if key != "extends"})
    if extends is None or isinstance(extends.value, Broken):
        return own
    return merge(read_parent(extends, (*chain, path), problems), own)


def read_parent(reference: Node, chain: tuple[Path, ...], problems: list[Problem]) -> Node:
    """The tree of the file that ``reference`` (``extends`` or a stage's ``recipe``) names, relative to its own file."""
    name = reference.value
    if not isinstance(name, str) or not name:
        message = f"got {got(plain(reference))}, need the path of one recipe file"
        raise RecipeErrors([*problems, reference.at.problem(reference.path, message)])
    # A value from --set has no file: such paths are relative to the current directory, as all other paths are.
    parent = (Path(reference.at.file).parent if reference.at.line else Path()) / name
    if parent.resolve() in [file.resolve() for file in chain]:
        way = " -> ".join([*(file.name for file in chain), parent.name])
        raise RecipeErrors([*problems, reference.at.problem(reference.path, f"got a cycle: {way}; remove one link")])
    if len(chain) > MAX_CHAIN:
        message = f"got more than {MAX_CHAIN} files in a row, need fewer"
        raise RecipeErrors([*problems, reference.at.problem(reference.path, message)])
    if not parent.is_file():
        message = f"got {name!r}, but there is no file {parent}; paths are relative to the file that names them"
        raise RecipeErrors([*problems, reference.at.problem(reference.path, message)])
    return read_tree(parent, problems, chain)


def apply_overrides(root: Node, overrides: Iterable[str], problems: list[Problem]) -> Node:
    """``root`` with every ``--set``; a malformed one is added to ``problems`` and left out."""
    for text in overrides:
        try:
            root = put(root, *parse_override(text))
        except RecipeErrors as error:
            problems += error.problems
    return root
