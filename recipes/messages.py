"""Words for what pydantic finds: what was got, what is needed, what was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from recipes.render import scalar
from recipes.schema import KINDS, Section

# Flags of the original's scripts whose key here has another name (efficient_cogvideox.md, args_train.py).
_ORIGINAL = {
    "csv_path": "data.csv",
    "image_size": "video.height and video.width",
    "model_max_length": "text.max_length",
    "num_frames": "video.frames",
    "num_latent_frames": "video.latent_frames",
    "vae_latent_folder": "data.video_embed_folder",
    "transform_name": "video.transform",
    "output_path": "output.folder",
    "optim": "optimizer.name",
    "optim_eps": "optimizer.eps",
    "start_learning_rate": "optimizer.lr",
    "learning_rate": "optimizer.lr",
    "sequence_parallel_shards": "parallel.sequence_parallel",
    "use_recompute": "train.recompute",
    "train_steps": "train.steps",
    "sampling_steps": "sampling.steps",
    "num_inference_steps": "sampling.steps",
    "sampling": "sampling.sampler",
    "captions": "prompts",
    "prompt": "prompts",
    "save_format": "save.format",
    "allow_overwrite": "overwrite",
    "worker_num": "runtime.workers",
}


@cache
def kind_schema(kind_class: type[Section]) -> dict[str, Any]:
    """The JSON Schema of one kind."""
    return kind_class.model_json_schema(by_alias=True)


def subschema(root: dict[str, Any], keys: Iterable[str | int]) -> dict[str, Any]:
    """The part of ``root`` that describes the value at ``keys``; empty if there is none."""
    node = root
    for key in keys:
        node = _without_null(root, node)
        node = node.get("items", {}) if isinstance(key, int) else node.get("properties", {}).get(key, {})
    return node


def _resolved(root: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = root["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return node


def _without_null(root: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    node = _resolved(root, node)
    options = [option for option in node.get("anyOf", []) if option.get("type") != "null"]
    return _resolved(root, options[0]) if len(options) == 1 else node


def properties(root: dict[str, Any], keys: Iterable[str | int]) -> list[str]:
    """Keys allowed in the section at ``keys``."""
    return list(_without_null(root, subschema(root, keys)).get("properties", {}))


def enumeration(root: dict[str, Any], node: dict[str, Any]) -> list[str]:
    """The words allowed at ``node``, of all its alternatives."""
    node = _resolved(root, node)
    words = [word for option in node.get("anyOf", []) for word in enumeration(root, option)]
    words += [word for word in [*node.get("enum", []), node.get("const")] if isinstance(word, str)]
    return words


def describe(root: dict[str, Any], node: dict[str, Any]) -> str:
    """What is allowed at ``node``, to follow the word "need"."""
    node = {**_resolved(root, node), **{k: v for k, v in node.items() if k == "x-need"}}
    kind = node.get("type")
    if "x-need" in node:
        words = node["x-need"]
    elif "anyOf" in node:
        words = " or ".join(dict.fromkeys(describe(root, option) for option in node["anyOf"]))
    elif "enum" in node:
        words = f"one of {', '.join(str(word) for word in node['enum'])}"
    elif "const" in node:
        words = scalar(node["const"])
    elif kind in ("integer", "number"):
        words = ("an integer" if kind == "integer" else "a number") + _bounds(node)
    elif kind == "array":
        words = f"a list of entries, each {describe(root, node.get('items', {}))}"
    elif kind == "object":
        words = f"a section with {', '.join(node.get('properties', {}))}"
    else:
        words = {"boolean": "true or false", "string": "text", "null": "null"}.get(str(kind), "another value")
    return words


def _bounds(node: dict[str, Any]) -> str:
    words = []
    if "multipleOf" in node:
        words.append(f"divisible by {node['multipleOf']}")
    for key, sign in (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<")):
        if key in node:
            words.append(f"{sign} {node[key]:g}" if abs(node[key]) < 1e6 else f"{sign} {node[key]}")
    return f" {' and '.join(words)}" if words else ""


def got(value: Any) -> str:
    """A value as it is shown in an error: short, on one line, with its kind where the text alone would mislead."""
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list | tuple):
        text = scalar([item if not isinstance(item, dict) else "..." for item in value])
    elif isinstance(value, str):
        text = f"'{value}'" if value.isprintable() and "'" not in value else scalar(value)
    else:
        text = scalar(value)
    return text if len(text) <= 80 else text[:77] + "..."


def close(word: str, words: Iterable[str], cutoff: float = 0.6) -> str:
    """``did you mean 'x'?`` for the most similar of ``words``, or nothing."""
    folded = {other.lower().replace("-", "_"): other for other in words}
    near = difflib.get_close_matches(word.lower().replace("-", "_"), folded, 1, cutoff=cutoff)
    return f"did you mean {folded[near[0]]!r}?" if near else ""


def conversion_hint(value: Any, node: dict[str, Any], root: dict[str, Any]) -> str:
    """How to write the value so that it has the needed type, where one can tell."""
    node = _without_null(root, node)
    kind = node.get("type")
    hint = ""
    if kind == "string" and "enum" not in node and isinstance(value, bool | int | float):
        hint = "put it in quotes" if re.search(node.get("pattern", ""), scalar(value)) else ""
    elif kind == "integer" and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        hint = f"write {int(value)}"
    elif kind == "boolean" and isinstance(value, str) and value.lower() in ("yes", "no", "on", "off"):
        hint = f"write {'true' if value.lower() in ('yes', 'on') else 'false'} (YAML 1.2)"
    elif kind == "integer" and "multipleOf" in node and isinstance(value, int) and not isinstance(value, bool):
        step = node["multipleOf"]
        low = max(value // step * step, -(-node.get("minimum", step) // step) * step)
        hint = f"nearest: {low} or {low + step}" if value > low else f"nearest: {low}"
    return hint


def unknown_key(kind_class: type[Section], parent: tuple[str | int, ...], key: str, extra: Iterable[str] = ()) -> str:
    """Where an unknown key probably belongs: a similar sibling, a section that has it, another kind, the full list."""
    siblings = [*properties(kind_schema(kind_class), parent), *extra]
    if key in _ORIGINAL and key not in siblings:
        return f"did you mean {_ORIGINAL[key]!r}?"
    hint = close(key, siblings) or _belongs(kind_class, parent, key)
    return hint or f"allowed: {', '.join(siblings)}"


def _belongs(kind_class: type[Section], parent: tuple[str | int, ...], key: str) -> str:
    """Where else ``key`` or a very similar one is known: another section of the kind, then other kinds."""
    root = kind_schema(kind_class)
    if homes := [home for home in _homes(kind_class, key) if home != (str(parent[-1]) if parent else "")]:
        return f"{key!r} belongs to {' or '.join(repr(home) for home in homes)}"
    if owners := [name for name, other in KINDS.items() if key in properties(kind_schema(other), parent)]:
        shown = ".".join([*map(str, parent), key])
        return f"'{shown}' is a key of the kind{'s' if len(owners) > 1 else ''} {', '.join(owners)}"
    inside = {word: home for home in _sections(kind_class) for word in properties(root, (home,))}
    near = close(key, inside, 0.75)
    word = near.split("'")[1] if near else ""
    return f"did you mean '{inside[word]}.{word}'?" if near else ""


def _sections(kind_class: type[Section]) -> list[str]:
    root = kind_schema(kind_class)
    return [name for name in root["properties"] if properties(root, (name,))]


def _homes(kind_class: type[Section], key: str) -> list[str]:
    root = kind_schema(kind_class)
    homes = [name for name in _sections(kind_class) if key in properties(root, (name,))]
    return homes or (["the top level"] if key in root["properties"] else [])
