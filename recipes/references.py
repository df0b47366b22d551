"""``@stage/rest``: a path in the output folder of an earlier stage of the same pipeline.

``@recipes/rest`` is a path in this package, wherever it is installed: the weights that come with the recipes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from recipes.messages import close
from recipes.problems import Problem
from recipes.schema import STAGE_KINDS
from recipes.schema.common import PathMark
from recipes.validate import section_class
from recipes.yaml_source import Node

PACKAGED = "recipes"
_PACKAGE = Path(__file__).parent
_REFERENCE = re.compile(r"@([A-Za-z][A-Za-z0-9_-]*)(?:/(.*))?", re.DOTALL)


def _is_path(annotation: Any, metadata: list[Any]) -> bool:
    if any(isinstance(mark, PathMark) for mark in metadata):
        return True
    return any(_is_path(part, list(getattr(part, "__metadata__", ()))) for part in get_args(annotation))


def path_keys(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Keys of every field of a kind that holds a path."""
    for name, field in model.model_fields.items():
        key = (*prefix, field.alias or name)
        if section := section_class(field.annotation):
            yield from path_keys(section, key)
        elif _is_path(field.annotation, field.metadata):
            yield key


def path_nodes(model: type[BaseModel], root: Node) -> Iterator[Node]:
    """The given values of these fields."""
    for keys in path_keys(model):
        node: Node | None = root
        for key in keys:
            node = node.value.get(key) if node is not None and isinstance(node.value, dict) else None
        if node is not None:
            yield node


def check_references(stage: Node, kind: str, earlier: list[str], names: list[str]) -> list[Problem]:
    """What is wrong with the references of one stage, given the stages before it and all stages."""
    problems: list[Problem] = []
    for node in path_nodes(STAGE_KINDS[kind], stage):
        if not isinstance(node.value, str) or not node.value.startswith("@"):
            continue
        match = _REFERENCE.fullmatch(node.value)
        if match is None or ".." in (match[2] or "").split("/"):
            message = f"got '{node.value}', need @stage or @stage/path without '..'"
            problems.append(node.at.problem(node.path, message))
        elif match[1] not in (PACKAGED, *earlier):
            if match[1] in names:
                why, hint = "this stage runs before it or is it itself; order the stages", ""
            else:
                why, hint = "there is no stage of this name", close(match[1], earlier)
            known = f"need an earlier stage ({', '.join(earlier) or 'there is none'})"
            problems.append(node.at.problem(node.path, f"got '{node.value}', {known}: {why}", hint))
    return problems


def stage_references(data: Mapping[str, Any]) -> set[str]:
    """Names of the stages that an effective stage refers to."""
    values = (_value(data, keys) for keys in path_keys(STAGE_KINDS[data["kind"]]))
    matches = (_REFERENCE.fullmatch(value) for value in values if isinstance(value, str))
    return {match[1] for match in matches if match} - {PACKAGED}


def resolve_references(data: dict[str, Any], folders: Mapping[str, str | PathLike[str]]) -> dict[str, Any]:
    """An effective stage with ``@name/rest`` replaced by ``folders[name]/rest``; the argument is left as it is."""
    result, folders = data, {PACKAGED: _PACKAGE, **folders}
    for keys in path_keys(STAGE_KINDS[data["kind"]]):
        value = _value(data, keys)
        if isinstance(value, str) and (match := _REFERENCE.fullmatch(value)):
            result = _replaced(result, keys, str(Path(folders[match[1]]) / (match[2] or "")))
    return result


def packaged(path: str) -> str | None:
    """Where ``@recipes/rest`` lies; the path itself without a reference; None for what another stage will write."""
    match = _REFERENCE.fullmatch(path)
    if match is None:
        return path
    return str(_PACKAGE / (match[2] or "")) if match[1] == PACKAGED else None


def _value(data: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    value: Any = data
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _replaced(data: dict[str, Any], keys: tuple[str, ...], value: str) -> dict[str, Any]:
    return {**data, keys[0]: value if len(keys) == 1 else _replaced(data[keys[0]], keys[1:], value)}
