"""A recipe as YAML text that reads back as the same recipe."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel

from recipes.yaml_source import resolve

# Plain only what no YAML rule can read differently; everything else is double-quoted.
_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./+-]*")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def render(recipe: BaseModel | dict[str, Any]) -> str:
    """The effective recipe, every default spelled out, as YAML 1.2: ``parse(render(recipe)) == recipe``."""
    data = recipe.model_dump(mode="json", by_alias=True) if isinstance(recipe, BaseModel) else recipe
    return "\n".join(_mapping(data, 0)) + "\n"


def scalar(value: Any) -> str:
    """One value on one line: a scalar or a flow list."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and resolve(value) == value else _quoted(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{scalar(k)}: {scalar(v)}" for k, v in value.items()) + "}"
    return "[" + ", ".join(scalar(item) for item in value) + "]"


def _quoted(text: str) -> str:
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    code = ord(character)
    if code > 0xFFFF:
        return f"\\U{code:08X}"
    return character if character == " " or character.isprintable() else f"\\u{code:04X}"


def _mapping(data: dict[str, Any], indent: int) -> list[str]:
    lines: list[str] = []
    for key, value in data.items():
        start = " " * indent + f"{scalar(key)}:"
        if isinstance(value, dict) and value:
            lines += [start, *_mapping(value, indent + 2)]
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            lines += [start, *(line for item in value for line in _item(item, indent + 2))]
        else:
            lines.append(f"{start} {scalar(value)}")
    return lines


def _item(item: dict[str, Any], indent: int) -> list[str]:
    first, *rest = _mapping(item, indent + 2)
    return [" " * indent + "- " + first.lstrip(), *rest]
