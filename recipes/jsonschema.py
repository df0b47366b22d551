"""The recipe format as JSON Schema, for editors; ``python -m recipes.jsonschema --write`` refreshes the file.

It knows keys, types and ranges. Required keys are left out, because a file may take them from ``extends`` or
``common``; they and the rules between fields are what ``cogbench check`` is for.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from core.files import write_text
from recipes.schema import KINDS, STAGE_KINDS

SCHEMA_FILE = Path(__file__).with_name("recipe.schema.json")
_NOT_COMMON = ("schema", "kind", "name", "description", "output", "only_if_used")


def export() -> dict[str, Any]:
    """The schema (draft 2020-12) of a recipe file of any kind."""
    definitions: dict[str, Any] = {}
    kinds = {name: _kind(kind, definitions) for name, kind in KINDS.items() if name != "pipeline"}
    stages = {name: _kind(kind, definitions) for name, kind in STAGE_KINDS.items()}
    pipeline = _relaxed(KINDS["pipeline"].model_json_schema())
    definitions |= {key: value for key, value in pipeline.pop("$defs").items() if key in ("Runtime", "Output")}
    pipeline["properties"] |= {"stages": {"type": "array", "minItems": 1, "items": _stage(stages)}}
    pipeline["properties"] |= {"common": _common(list(stages.values()), definitions)}
    kinds["pipeline"] = pipeline
    for schema in kinds.values():
        schema["properties"]["extends"] = {"type": "string", "description": "Parent file, relative to this one."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "CogBench recipe",
        "type": "object",
        "properties": {"schema": {"const": 1}, "kind": {"enum": list(kinds)}},
        "allOf": _by_kind(kinds),
        "$defs": definitions,
    }


def text() -> str:
    """The schema as it is checked in."""
    return json.dumps(export(), indent=1, ensure_ascii=False) + "\n"


def _kind(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    schema = _relaxed(kind.model_json_schema())
    definitions |= schema.pop("$defs", {})
    return schema


def _relaxed(schema: Any) -> Any:
    if isinstance(schema, dict):
        kept = {key: _relaxed(value) for key, value in schema.items() if key != "x-need"}
        if "properties" in kept:
            kept.pop("required", None)
        return kept
    return [_relaxed(item) for item in schema] if isinstance(schema, list) else schema


def _by_kind(kinds: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"if": {"properties": {"kind": {"const": name}}, "required": ["kind"]}, "then": schema}
        for name, schema in kinds.items()
    ]


def _stage(stages: dict[str, Any]) -> dict[str, Any]:
    from_file = {
        "properties": {
            "name": {"type": "string"},
            "recipe": {"type": "string", "description": "Recipe file, relative to this one."},
            "set": {"type": "object", "description": "Dotted keys of that recipe and their values."},
            "only_if_used": {"type": "boolean"},
        },
        "additionalProperties": False,
    }
    recipe = {"if": {"required": ["recipe"]}, "then": from_file}
    return {"type": "object", "properties": {"kind": {"enum": list(stages)}}, "allOf": [recipe, *_by_kind(stages)]}


def _common(stages: list[dict[str, Any]], definitions: dict[str, Any]) -> dict[str, Any]:
    """Keys of any stage; a section has the keys that it has in any kind."""
    options: dict[str, list[Any]] = {}
    for stage in stages:
        for key, value in stage["properties"].items():
            if key not in _NOT_COMMON and value not in options.setdefault(key, []):
                options[key].append(value)
    return {
        "type": "object",
        "description": "Defaults; a key goes to every stage whose kind has it.",
        "properties": {key: _union(values, definitions) for key, values in options.items()},
        "additionalProperties": False,
    }


def _union(values: list[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    sections = [_section(value, definitions) for value in values]
    if len(values) == 1 or not all(sections):
        return values[0] if len(values) == 1 else {"anyOf": values}
    merged: dict[str, Any] = {}
    for section in sections:
        for key, value in section.items():
            merged[key] = {} if key in merged and merged[key] != value else value
    return {"type": "object", "properties": merged, "additionalProperties": False}


def _section(value: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    for option in [value, *value.get("anyOf", [])]:
        if "$ref" in option:
            return definitions[option["$ref"].rsplit("/", 1)[1]].get("properties", {})
    return {}


def main(arguments: list[str] | None = None) -> int:
    """Prints the schema, or writes it with ``--write``; 1 with ``--check`` if the checked-in file is stale."""
    parser = argparse.ArgumentParser(prog="python -m recipes.jsonschema", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {SCHEMA_FILE.name}")
    parser.add_argument("--check", action="store_true", help=f"compare with {SCHEMA_FILE.name}")
    options = parser.parse_args(arguments)
    if options.write:
        write_text(SCHEMA_FILE, text())
    elif options.check:
        if not SCHEMA_FILE.is_file() or SCHEMA_FILE.read_text(encoding="utf-8") != text():
            sys.stderr.write(f"{SCHEMA_FILE} is stale: run python -m recipes.jsonschema --write\n")
            return 1
    else:
        sys.stdout.write(text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
