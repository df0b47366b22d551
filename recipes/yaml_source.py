"""YAML text to a tree of values that remember their file, line and column.

A strict part of YAML 1.2: one document, mappings with text keys, no tags, anchors, aliases or merge keys. Plain
scalars follow the 1.2 core schema, so ``1e-5`` is a float and ``on`` is a string. ruamel.yaml supplies the events;
the tree is built here because positions of keys and duplicates are lost in its own constructors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from recipes.problems import Problem, RecipeErrors

MAX_DEPTH = 32
MAX_BYTES = 200_000

_NUMBERS: tuple[tuple[re.Pattern[str], Callable[[str], int | float]], ...] = (
    (re.compile(r"[-+]?[0-9]{1,300}"), int),
    (re.compile(r"0o[0-7]{1,300}"), lambda text: int(text[2:], 8)),
    (re.compile(r"0x[0-9a-fA-F]{1,300}"), lambda text: int(text[2:], 16)),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), float),
    (re.compile(r"[-+]?\.(inf|Inf|INF)"), lambda text: float(text.replace(".", ""))),
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_WORDS: dict[str, bool | float | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


class Broken:
    """Stands where a value could not be read; it has been reported already, so nothing more is said about it."""

    def __repr__(self) -> str:
        return "<unreadable>"


@dataclass(frozen=True)
class Position:
    """A place in a file, counted from 1; ``line`` 0 where there is no text."""

    file: str
    line: int = 0
    column: int = 0

    def problem(self, key: str, message: str, suggestion: str = "") -> Problem:
        """A finding at this place."""
        return Problem(self.file, self.line, self.column, key, message, suggestion)

    @property
    def origin(self) -> str:
        """``file:line``, or ``--set`` for a value from the command line."""
        if self.line:
            return f"{self.file}:{self.line}"
        return "--set" if self.file.startswith("--set") else self.file


@dataclass(frozen=True)
class Node:
    """A value with its place. ``value`` is a scalar, a dict of nodes or a list of nodes; ``path`` is its dotted key."""

    value: Any
    at: Position
    key_at: Position | None = None
    path: str = ""

    @property
    def named_at(self) -> Position:
        """Where the key stands; where the value starts if it has none."""
        return self.key_at or self.at


def resolve(text: str) -> bool | int | float | str | None:
    """The value of a plain scalar in the YAML 1.2 core schema."""
    if text in _WORDS:
        return _WORDS[text]
    for pattern, convert in _NUMBERS:
        if pattern.fullmatch(text):
            return convert(text)
    return text


def plain(node: Node) -> Any:
    """The tree as ordinary dicts, lists and scalars."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def from_python(value: Any, at: Position) -> Node:
    """The inverse of ``plain``: every node is placed at ``at``."""
    if isinstance(value, dict):
        return Node({str(key): from_python(child, at) for key, child in value.items()}, at)
    if isinstance(value, list | tuple):
        return Node([from_python(child, at) for child in value], at)
    return Node(value, at)


def with_paths(node: Node, path: str = "") -> Node:
    """The same tree with every ``path`` filled in; entries of a list are called by their ``name`` if they have one."""
    value = node.value
    prefix = f"{path}." if path else ""
    if isinstance(value, dict):
        value = {key: with_paths(child, prefix + key) for key, child in value.items()}
    elif isinstance(value, list):
        value = [with_paths(child, prefix + _label(child, index)) for index, child in enumerate(value)]
    return replace(node, value=value, path=path)


def _label(node: Node, index: int) -> str:
    name = node.value.get("name") if isinstance(node.value, dict) else None
    return name.value if name is not None and isinstance(name.value, str) else str(index)


def merge(base: Node | None, over: Node) -> Node:
    """``over`` laid on ``base``: sections merge key by key, everything else (lists too) is replaced."""
    if base is None or not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    value = {**base.value}
    for key, child in over.value.items():
        value[key] = merge(value.get(key), child)
    return replace(over, value=value)


def read_text(path: Path, shown: str) -> str:
    """The text of a recipe file.

    Raises:
        RecipeErrors: no such file, not a file, too large, binary, not UTF-8.
    """
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise _failure(shown, f"got {path.stat().st_size} bytes, need a recipe of at most {MAX_BYTES} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise _failure(shown, f"can't be read ({error.strerror}), need an existing YAML file") from None
    if b"\0" in data:
        raise _failure(shown, "got a binary file (it has zero bytes), need YAML text in UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace")
        raise _failure(
            shown, f"got byte 0x{data[error.start]:02x}, which is not UTF-8; save the file as UTF-8", _place(before)
        ) from None


def _place(before: str) -> tuple[int, int]:
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


def _failure(file: str, message: str, place: tuple[int, int] = (1, 1)) -> RecipeErrors:
    return RecipeErrors([Problem(file, *place, "", message)])


def parse(text: str, file: str) -> tuple[Node | None, list[Problem]]:
    """The tree of one YAML document and what is wrong with it; no tree if the text is empty or broken off.

    A duplicate key, tag, anchor or alias is reported and reading goes on; a syntax error ends it.
    """
    builder = _Builder(file)
    try:
        return builder.document(YAML(typ="rt", pure=True).parse(text)), builder.problems
    except _TooDeepError:
        return None, builder.problems
    except ReaderError as error:
        position = error.position if isinstance(error.position, int) else 0
        code = error.character if isinstance(error.character, int) else ord(str(error.character)[0])
        message = f"got the character U+{code:04X}, which YAML does not allow; remove it"
        place = _place(text[:position])
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        message = _syntax_message(error)
    except (YAMLError, ValueError) as error:
        place, message = (1, 1), " ".join(str(error).split())
    return None, [*builder.problems, Problem(file, *place, "", message)]


def _syntax_message(error: MarkedYAMLError) -> str:
    problem = " ".join((error.problem or "").split())
    context = f" ({' '.join(error.context.split())})" if error.context else ""
    if r"\t" in problem:
        return "got a tab, need spaces: YAML does not allow tabs in indentation"
    if "cannot start any token" in problem:
        return f"{problem}; put the value in quotes"
    if "mapping values are not allowed" in problem:
        return "got a ':' that starts no new key here; put the value in quotes or correct the indentation"
    return f"YAML syntax: {problem}{context}"


class _TooDeepError(Exception):
    pass


class _Builder:
    """Builds nodes from parser events and collects what can be reported without stopping."""

    def __init__(self, file: str):
        self.file = file
        self.problems: list[Problem] = []

    def document(self, events: Iterator[Event]) -> Node | None:
        root: Node | None = None
        started = False
        for event in events:
            if isinstance(event, DocumentStartEvent):
                if started:
                    self._say(event, "", "got a second YAML document, need one document a file")
                    break
                started = True
                if event.version not in (None, (1, 2)):
                    self._say(event, "", f"got %YAML {event.version[0]}.{event.version[1]}, need YAML 1.2")
            elif isinstance(event, ScalarEvent | MappingStartEvent | SequenceStartEvent | AliasEvent):
                root = self._node(event, events, "", 1)
        return root

    def _at(self, event: Event) -> Position:
        return Position(self.file, event.start_mark.line + 1, event.start_mark.column + 1)

    def _say(self, event: Event, path: str, message: str) -> None:
        self.problems.append(self._at(event).problem(path, message))

    def _node(self, event: Any, events: Iterator[Event], path: str, depth: int) -> Node:
        at = self._at(event)
        if isinstance(event, AliasEvent):
            self._say(event, path, f"got the alias *{event.anchor}, need the value itself (or `extends`)")
            return Node(Broken(), at, path=path)
        if depth > MAX_DEPTH:
            self._say(event, path[:60], f"got more than {MAX_DEPTH} levels of nesting")
            raise _TooDeepError
        if event.anchor is not None:
            self._say(event, path, f"got the anchor &{event.anchor}; anchors are not allowed, use `extends`")
        if event.tag is not None:
            self._say(event, path, f"got the tag {event.tag}; tags are not allowed, write a plain value")
        if isinstance(event, MappingStartEvent):
            return Node(self._mapping(events, path, depth), at, path=path)
        if isinstance(event, SequenceStartEvent):
            return Node(self._sequence(events, path, depth), at, path=path)
        if _SURROGATE.search(event.value):
            self._say(event, path, "got half of a surrogate pair; write the character itself or one \\U escape")
            return Node(Broken(), at, path=path)
        value = resolve(event.value) if event.style is None else event.value
        return Node(value, at, path=path)

    def _sequence(self, events: Iterator[Event], path: str, depth: int) -> list[Node]:
        items: list[Node] = []
        for event in events:
            if isinstance(event, SequenceEndEvent):
                break
            items.append(self._node(event, events, f"{path}.{len(items)}".lstrip("."), depth + 1))
        return items

    def _mapping(self, events: Iterator[Event], path: str, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        for event in events:
            if isinstance(event, MappingEndEvent):
                break
            key = self._node(event, events, path, depth + 1)
            name = key.value if isinstance(key.value, str) else None
            child_path = f"{path}.{name}".lstrip(".") if name is not None else path
            child = replace(self._node(next(events), events, child_path, depth + 1), key_at=key.at)
            if (
                child.value is None and child.at.line != key.at.line
            ):  # nothing written: ruamel says where the next key is
                child = replace(child, at=key.at)
            if name == "<<":
                self._say(event, path, "got the merge key <<; merging is not allowed, use `extends`")
            elif name is None:
                if not isinstance(key.value, Broken):
                    self._say(event, path, "got a key that is not text, need text; put it in quotes")
            elif name in entries:
                first = entries[name].named_at
                self._say(event, child_path, f"duplicate key, first given in line {first.line}; keep one of them")
            else:
                entries[name] = child
        return entries
