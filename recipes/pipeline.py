"""A pipeline's stages, complete: ``common``, the pipeline's ``seed`` and ``runtime``, and stages from files merged in.

From weak to strong: the pipeline's ``seed`` and ``runtime`` (not ``repeats`` and ``timeout_s``), ``common``, the
stage (or the file it names), the stage's ``set``. A key of ``common`` goes to every stage whose kind has it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from recipes.messages import close, got
from recipes.overrides import put
from recipes.problems import Problem, RecipeErrors
from recipes.references import check_references, stage_references
from recipes.schema import STAGE_KINDS, Recipe
from recipes.sources import read_parent
from recipes.validate import kind_of, section_class, validate
from recipes.yaml_source import Broken, Node, merge, plain, with_paths

_NOT_COMMON = frozenset({"schema", "kind", "name", "description", "extends", "output", "only_if_used"})
_FILE_STAGE = ("name", "recipe", "set", "only_if_used")
_WHOLE_RUN = ("repeats", "timeout_s")


def stage_nodes(root: Node, problems: list[Problem], chain: tuple[Path, ...]) -> list[Node]:
    """The complete stages of a pipeline's tree; what is wrong with them is added to ``problems``."""
    listed = root.value.get("stages")
    if listed is None or not isinstance(listed.value, list) or not listed.value:
        if listed is None:
            problems.append(root.named_at.problem("stages", "missing, need a list of stages"))
        elif not isinstance(listed.value, Broken):
            problems.append(listed.at.problem("stages", f"got {got(plain(listed))}, need a list of stages"))
        return []
    common = _common(root, problems)
    stages = [_stage(root, common, entry, problems, chain) for entry in listed.value]
    found = [(node, kind) for node, kind in stages if node is not None]
    if all(kind is not None for _, kind in stages) and len(found) == len(stages):
        problems += _unused_common(common, [STAGE_KINDS[kind] for _, kind in found if kind])
    names = [_name(node) for node, _ in found]
    for index, (node, kind) in enumerate(found):
        if names[index] and names[index] in names[:index]:
            at = node.value["name"].at
            problems.append(at.problem(node.value["name"].path, f"got '{names[index]}' twice, need different names"))
        if kind is not None:
            problems += validate(node, STAGE_KINDS[kind])[1]
            problems += check_references(node, kind, names[:index], names)
    return [node for node, _ in found]


def _name(node: Node) -> str:
    name = node.value.get("name")
    return name.value if name is not None and isinstance(name.value, str) else ""


def _common(root: Node, problems: list[Problem]) -> Node:
    common = root.value.get("common")
    if common is None or common.value is None or isinstance(common.value, Broken):
        common = Node({}, root.at, path="common")
    elif not isinstance(common.value, dict):
        message = f"got {got(plain(common))}, need sections such as runtime and model"
        problems.append(common.at.problem("common", message))
        common = Node({}, root.at, path="common")
    inherited: dict[str, Node] = {}
    if "seed" in root.value:
        inherited["seed"] = root.value["seed"]
    runtime = root.value.get("runtime")
    if runtime is not None and isinstance(runtime.value, dict):
        values = {key: child for key, child in runtime.value.items() if key not in _WHOLE_RUN}
        inherited["runtime"] = replace(runtime, value=values)
    return merge(Node(inherited, common.at, path="common"), common)


def _stage(
    root: Node, common: Node, entry: Node, problems: list[Problem], chain: tuple[Path, ...]
) -> tuple[Node | None, str | None]:
    if isinstance(entry.value, Broken):
        return None, None
    if not isinstance(entry.value, dict):
        message = f"got {got(plain(entry))}, need a stage with name and kind or recipe"
        problems.append(entry.at.problem(entry.path, message))
        return None, None
    own = _from_file(entry, problems, chain) if "recipe" in entry.value else entry
    if own is None:
        return None, None
    kind = kind_of(own, STAGE_KINDS, problems)
    if kind is None:
        return own, None
    if "extends" in own.value:
        at = own.value["extends"].named_at
        problems.append(at.problem(own.value["extends"].path, "a stage can't extend a file; use recipe: and set:"))
        own = replace(own, value={key: child for key, child in own.value.items() if key != "extends"})
    complete = merge(_applicable(common, STAGE_KINDS[kind]), own)
    if "schema" in root.value:
        complete = replace(complete, value={"schema": root.value["schema"], **complete.value})
    return complete, kind


def _applicable(common: Node, kind_class: type[Recipe]) -> Node:
    kept: dict[str, Node] = {}
    for key, child in common.value.items():
        field = kind_class.model_fields.get(key)
        if field is None or key in _NOT_COMMON:
            continue
        section = section_class(field.annotation)
        if section is None or not isinstance(child.value, dict):
            kept[key] = child
        elif values := {name: value for name, value in child.value.items() if name in section.model_fields}:
            kept[key] = replace(child, value=values)
    return replace(common, value=kept)


def _unused_common(common: Node, kinds: list[type[Recipe]]) -> list[Problem]:
    """Keys of ``common`` that no stage of the pipeline has."""
    problems: list[Problem] = []
    for key, child in common.value.items():
        fields = [kind.model_fields[key] for kind in kinds if key in kind.model_fields and key not in _NOT_COMMON]
        if not fields:
            allowed = {name for kind in kinds for name in kind.model_fields} - _NOT_COMMON - {"schema_version"}
            hint = close(key, sorted(allowed)) or f"allowed: {', '.join(sorted(allowed))}"
            problems.append(child.named_at.problem(child.path, "no stage of this pipeline has this key", hint))
            continue
        sections = [section for field in fields if (section := section_class(field.annotation))]
        if not isinstance(child.value, dict) or len(sections) < len(fields):
            continue
        allowed = list(dict.fromkeys(name for section in sections for name in section.model_fields))
        for name, value in child.value.items():
            if name not in allowed:
                hint = close(name, allowed) or f"allowed: {', '.join(allowed)}"
                problems.append(value.named_at.problem(value.path, "no stage of this pipeline has this key", hint))
    return problems


def _from_file(entry: Node, problems: list[Problem], chain: tuple[Path, ...]) -> Node | None:
    for key, child in entry.value.items():
        if key not in _FILE_STAGE:
            hint = "put changes of the file's values under set:"
            message = f"a stage with recipe has only {', '.join(_FILE_STAGE)}"
            problems.append(child.named_at.problem(child.path, message, hint))
    try:
        tree = read_parent(entry.value["recipe"], chain, problems)
    except RecipeErrors as error:
        problems += [problem for problem in error.problems if problem not in problems]
        return None
    dropped = ("schema", "name", "description", "output")
    tree = replace(tree, value={key: child for key, child in tree.value.items() if key not in dropped})
    changes = entry.value.get("set")
    if changes is not None and not isinstance(changes.value, dict):
        problems.append(changes.at.problem(changes.path, f"got {got(plain(changes))}, need dotted keys and values"))
        changes = None
    for key, child in changes.value.items() if changes is not None else ():
        try:
            tree = put(tree, key, child)
        except RecipeErrors as error:
            problems += error.problems
    tree = with_paths(tree, entry.path)
    kept = {key: entry.value[key] for key in ("name", "only_if_used") if key in entry.value}
    return replace(tree, value={**kept, **tree.value}, at=entry.at, key_at=entry.key_at)


def expand_stages(data: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(name, effective recipe) of every stage that runs, in order; ``@name`` references are still in them.

    ``data`` is the effective data of a pipeline. Stages with ``only_if_used`` that no running stage refers to are left
    out: see ``skipped_stages``. Each recipe is complete and suits ``load.from_dict``.
    """
    running = _running(data)
    return [
        (stage["name"], {key: value for key, value in stage.items() if key != "only_if_used"})
        for stage in data["stages"]
        if stage["name"] in running
    ]


def skipped_stages(data: dict[str, Any]) -> list[str]:
    """Names of the ``only_if_used`` stages that no running stage refers to."""
    running = _running(data)
    return [stage["name"] for stage in data["stages"] if stage["name"] not in running]


def _running(data: dict[str, Any]) -> set[str]:
    used: set[str] = set()
    running: set[str] = set()
    for stage in reversed(data["stages"]):  # references point backwards, so users are seen before what they use
        if not stage["only_if_used"] or stage["name"] in used:
            running.add(stage["name"])
            used |= stage_references(stage)
    return running
