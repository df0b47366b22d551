"""Finds the figures of a Markdown text: those between claim markers, and those that stand without.

A figure is a number with a unit of something measured: seconds, bytes, rates, decibels, percent, or "x" and "times".
Sizes, counts, versions, dates and tolerances are no figures. Code (fenced or in backticks), link targets and comments
are not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

BYTES = ("[KMGT]i?B", "kB", "bytes")
UNITS = (
    "ms", "s", "seconds?", "min", "minutes?", "h", "hours?", "[GTP]FLOPs?", "[GTP]FLOP/s",
    r"(?:videos?|samples?|frames?|tokens?|steps?|images?|bytes|[KMG]i?B)/s", "dB", "%", "x", "times",
)  # fmt: skip
_NUMBER = r"(?<![\w.,/-])~?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?"
_INLINE = re.compile(r"<!-- claim ([\w.-]+) -->(.*?)<!-- /claim -->")
_BLOCK = re.compile(r"^<!-- claims ([\w.-]+) -->\n(.*?)^<!-- /claims -->$", re.MULTILINE | re.DOTALL)
_MARKER = re.compile(r"<!--\s*/?claims?\b[^>]*-->")
_UNREAD = (
    re.compile(r"^(```+|~~~+)[^\n]*\n.*?^\1[^\n]*$", re.MULTILINE | re.DOTALL),
    re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL),
    re.compile(r"<!--.*?-->", re.DOTALL),
    re.compile(r"\]\([^)\s]*\)"),
)
# A page of decisions names the command that printed its figures; it is bound to that as a whole.
_COMMAND = re.compile(r"`[^`]*\b(?:python3? -m|cogbench|pytest|tox)\b[^`]*`")


@dataclass(frozen=True, kw_only=True)
class Marked:
    """What stands between markers: characters ``start`` to ``end`` of the text, beginning on ``line`` (from 1)."""

    id: str
    text: str
    start: int
    end: int
    line: int
    block: bool


@dataclass(frozen=True, kw_only=True)
class Unbound:
    """A figure without markers, or a marker that has no partner."""

    text: str
    line: int


def marked(text: str) -> list[Marked]:
    """Everything between markers, in the order of the text."""
    found = []
    hidden = _blank(text, _UNREAD[:2])  # a page may show what a marker looks like
    for pattern, block in ((_INLINE, False), (_BLOCK, True)):
        for match in pattern.finditer(text):
            if hidden[match.start()] == text[match.start()]:
                start, end = match.span(2)
                found.append(
                    Marked(id=match[1], text=match[2], start=start, end=end, line=_line(text, start), block=block)
                )
    return sorted(found, key=lambda item: item.start)


def unbound(text: str, *, strict: bool) -> list[Unbound]:
    """Figures outside of markers and broken markers; without ``strict`` a page that names a command may have figures.

    ``strict`` is for the README, whose every figure has a claim of its own.
    """
    broken = _broken_markers(text)
    if not strict and _COMMAND.search(text):
        return broken
    left = text
    for item in marked(text):
        left = left[: item.start] + _spaces(item.text) + left[item.end :]
    left = _blank(left, _UNREAD)
    # On a page of decisions bytes are arithmetic from shapes, and limits, far more often than readings.
    units = (*UNITS, *BYTES) if strict else UNITS
    figure = re.compile(rf"{_NUMBER}\s?(?:{'|'.join(units)})(?![\w/]|\s?\d)")
    figures = [Unbound(text=match[0], line=_line(text, match.start())) for match in figure.finditer(left)]
    return sorted([*broken, *figures], key=lambda item: item.line)


def _broken_markers(text: str) -> list[Unbound]:
    left = _blank(text, _UNREAD[:2])
    for pattern in (_INLINE, _BLOCK):
        left = pattern.sub(lambda match: _spaces(match[0]), left)
    return [Unbound(text=match[0], line=_line(text, match.start())) for match in _MARKER.finditer(left)]


def _blank(text: str, patterns: tuple[re.Pattern[str], ...]) -> str:
    """``text`` with what the patterns match replaced by spaces, so that places stay."""
    for pattern in patterns:
        text = pattern.sub(lambda match: _spaces(match[0]), text)
    return text


def _spaces(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def replaced(text: str, new: dict[int, str]) -> str:
    """``text`` with the marked parts that start at the keys replaced."""

    def parts() -> Iterator[str]:
        at = 0
        for item in marked(text):
            yield text[at : item.start]
            yield new.get(item.start, item.text)
            at = item.end
        yield text[at:]

    return "".join(parts())
