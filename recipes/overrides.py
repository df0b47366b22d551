"""``--set a.b=c`` and a stage's ``set:``: one value put into a tree at a dotted key."""

from __future__ import annotations

from dataclasses import replace

from recipes.problems import Problem, RecipeErrors
from recipes.yaml_source import Node, Position, parse

_PROTECTED = ("schema", "kind", "extends")


def parse_override(text: str) -> tuple[str, Node]:
    """The dotted key and the value of ``a.b=c``; the value is one YAML 1.2 scalar or flow list or mapping.

    Raises:
        RecipeErrors: no ``=``, a malformed key, no value, a value that is not YAML.
    """
    source = f"--set {' '.join(text.split())}"
    key, equals, value = text.partition("=")
    key = key.strip()

    def wrong(message: str) -> RecipeErrors:
        return RecipeErrors([Problem(source, 0, 0, key if equals else "", message)])

    if not equals or not key or any(not part for part in key.split(".")):
        raise wrong("need KEY=VALUE with a dotted key, such as video.frames=17")
    if not value.strip():
        raise wrong("got no value, need one; write null, or '\"\"' for an empty text")
    node, problems = parse(value, source)
    if problems:
        raise wrong(problems[0].message)
    if node is None:
        raise wrong("got no value, need one; put it in quotes")
    if isinstance(node.value, dict) and not value.lstrip().startswith("{"):
        raise wrong("got a block mapping; put a text with ': ' in quotes, or write {key: value}")
    if isinstance(node.value, list) and not value.lstrip().startswith("["):
        raise wrong("got a block list; put a text that starts with '- ' in quotes, or write [a, b]")
    return key, placed(node, Position(source))


def placed(node: Node, at: Position) -> Node:
    """The same tree with every node at one place."""
    value = node.value
    if isinstance(value, dict):
        value = {key: placed(child, at) for key, child in value.items()}
    elif isinstance(value, list):
        value = [placed(child, at) for child in value]
    return Node(value, at, at)


def put(root: Node, key: str, new: Node) -> Node:
    """``root`` with ``new`` at the dotted ``key``; absent sections are made, entries of lists must exist.

    Raises:
        RecipeErrors: the key goes through something that is no section, or to an entry that a list does not have.
    """
    if key in _PROTECTED:
        raise RecipeErrors([new.named_at.problem(key, "can't be set from outside; change it in the file")])
    return _put(root, tuple(key.split(".")), new, ())


def _put(node: Node, keys: tuple[str, ...], new: Node, done: tuple[str, ...]) -> Node:
    if not keys:
        return replace(new, key_at=new.named_at)
    head, rest = keys[0], keys[1:]
    if isinstance(node.value, dict):
        child = node.value.get(head)
        if rest and (child is None or child.value is None):
            child = Node({}, new.named_at, new.named_at)
        return replace(node, value={**node.value, head: _put(child or new, rest, new, (*done, head))})
    where = ".".join(done)
    if isinstance(node.value, list):
        index = _index(node.value, head)
        if index is None:
            names = [_name(item) or str(number) for number, item in enumerate(node.value)]
            message = f"got {head!r}, need an entry of {where!r}: {', '.join(names)}, or its number from 0"
            raise RecipeErrors([new.named_at.problem(".".join((*done, head)), message)])
        items = list(node.value)
        items[index] = _put(items[index], rest, new, (*done, head))
        return replace(node, value=items)
    raise RecipeErrors([new.named_at.problem(".".join((*done, *keys)), f"{where!r} is a value and has no keys")])


def _name(node: Node) -> str | None:
    name = node.value.get("name") if isinstance(node.value, dict) else None
    return name.value if name is not None and isinstance(name.value, str) else None


def _index(items: list[Node], head: str) -> int | None:
    for index, item in enumerate(items):
        if _name(item) == head:
            return index
    return int(head) if head.isdecimal() and int(head) < len(items) else None
