"""A tree of values to a validated recipe, or every problem in it with its place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from recipes.messages import (
    close,
    conversion_hint,
    describe,
    enumeration,
    got,
    kind_schema,
    properties,
    subschema,
    unknown_key,
)
from recipes.problems import Problem
from recipes.rules import broken_rules
from recipes.schema import Section
from recipes.yaml_source import Broken, Node, plain

Location = tuple[str | int, ...]
_S = TypeVar("_S", bound=Section)


def find(root: Node, keys: Iterable[str | int]) -> tuple[Node, Location]:
    """The node at ``keys`` or the deepest one on the way, and the keys that are missing there."""
    node, rest = root, tuple(keys)
    while rest:
        key = rest[0]
        child = _child(node, key)
        if child is None:
            break
        node = child
        rest = rest[1:]
    return node, rest


def _child(node: Node, key: str | int) -> Node | None:
    if isinstance(node.value, dict):
        return node.value.get(key)
    if isinstance(node.value, list) and str(key).isdecimal() and int(key) < len(node.value):
        return node.value[int(key)]
    return None


def joined(path: str, keys: Iterable[str | int]) -> str:
    """Dotted key of ``keys`` below ``path``."""
    return ".".join([*([path] if path else []), *(str(key) for key in keys)])


def kind_of(root: Node, kinds: Iterable[str], problems: list[Problem]) -> str | None:
    """The recipe's kind; None, with a problem added, if there is none that is known."""
    node = root.value.get("kind") if isinstance(root.value, dict) else None
    allowed = f"need one of {', '.join(kinds)}"
    if node is None:
        problems.append(root.named_at.problem(joined(root.path, ["kind"]), f"missing, {allowed}"))
    elif isinstance(node.value, str) and node.value in kinds:
        return node.value
    elif not isinstance(node.value, Broken):
        meant = close(node.value, kinds) if isinstance(node.value, str) else ""
        problems.append(node.at.problem(node.path, f"got {got(plain(node))}, {allowed}", meant))
    return None


def validate(root: Node, kind_class: type[_S], extra: Iterable[str] = ()) -> tuple[_S | None, list[Problem]]:
    """The recipe, or None and every problem. ``extra``: further keys that may be meant at the top level."""
    data = plain(root)
    problems: list[Problem] = []
    invalid: set[Location] = set()
    recipe: _S | None = None
    try:
        recipe = kind_class.model_validate(data)
    except ValidationError as failure:
        for error in failure.errors(include_url=False):
            location = _location(kind_class, error["loc"])
            if location and location not in invalid:
                invalid.add(location)
                problems += _problem(root, kind_class, location, error, extra)
    if recipe is None:
        kind = data["kind"] if isinstance(data.get("kind"), str) else ""
        for issue in broken_rules(kind, _usable(kind_class, data, invalid)):
            node, rest = find(root, issue.key.split("."))
            at = node.named_at if rest or isinstance(node.value, dict) else node.at
            problems.append(at.problem(joined(node.path, rest), issue.message, issue.suggestion))
    return recipe, problems


def _location(kind_class: type[Section], loc: Location) -> Location:
    """The keys of a pydantic location, without the names of union members it puts in between."""
    root, keys = kind_schema(kind_class), []
    for key in loc:
        if isinstance(key, str) and keys and not properties(root, keys):
            break
        keys.append(key)
    return tuple(keys)


def _problem(
    root: Node, kind_class: type[Section], location: Location, error: Any, extra: Iterable[str]
) -> list[Problem]:
    node, rest = find(root, location)
    if isinstance(node.value, Broken):
        return []
    schema = kind_schema(kind_class)
    part = subschema(schema, location)
    if rest and not isinstance(node.value, dict):  # a lone text that stands for a list
        location, rest = location[: -len(rest)], ()
        part = subschema(schema, location)
    if rest:
        need = describe(schema, part)
        return [node.named_at.problem(joined(node.path, rest), f"missing, need {need}")]
    if error["type"] == "extra_forbidden":
        hint = unknown_key(kind_class, location[:-1], str(location[-1]), extra if len(location) == 1 else ())
        return [node.named_at.problem(node.path, "unknown key", hint)]
    if error["type"] == "value_error":
        return [node.at.problem(node.path, str(error["ctx"]["error"]))]
    value = plain(node)
    hint = conversion_hint(value, part, schema)
    if isinstance(value, str) and not hint:
        hint = close(value, enumeration(schema, part))
    at = node.named_at if isinstance(node.value, dict) else node.at
    return [at.problem(node.path, f"got {got(value)}, need {describe(schema, part)}", hint)]


def _usable(model: type[BaseModel], data: Any, invalid: set[Location], prefix: Location = ()) -> dict[str, Any]:
    """The valid values of ``data`` with the defaults of absent keys, for rules between fields."""
    result: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        key, location = field.alias or name, (*prefix, field.alias or name)
        if location in invalid:
            continue
        if key not in data:
            if not field.is_required():
                default = field.get_default(call_default_factory=True)
                result[key] = default.model_dump(by_alias=True) if isinstance(default, BaseModel) else default
        elif isinstance(data[key], dict) and (section := section_class(field.annotation)):
            result[key] = _usable(section, data[key], invalid, location)
        elif not any(bad[: len(location)] == location for bad in invalid):
            result[key] = data[key]
    return result


def section_class(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation such as ``VAE`` or ``Tiling | None`` allows."""
    options = [annotation, *getattr(annotation, "__args__", ())]
    return next((option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), None)
