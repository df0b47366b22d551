"""A broken rule between fields, and how rules read the plain values of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Issue:
    """A broken rule: the dotted key it is shown at, what was got and what is needed."""

    key: str
    message: str
    suggestion: str = ""

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" + (f"; {self.suggestion}" if self.suggestion else "")


Data = dict[str, Any]
Rule = Callable[[Data], Iterator[Issue]]


def get(data: Data, key: str) -> Any:
    """The value at a dotted key; None if any part of it is absent or null."""
    value: Any = data
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def present(data: Data, section: str, *keys: str) -> bool:
    """Whether the section and all these keys were read (a null counts as read)."""
    return isinstance(data.get(section), dict) and all(key in data[section] for key in keys)


def nearest(value: int, step: int, offset: int = 1) -> str:
    """The legal numbers ``step * n + offset`` around ``value``, as words."""
    low = max(0, (value - offset) // step) * step + offset
    return f"nearest: {low}" if low >= value else f"nearest: {low} or {low + step}"
