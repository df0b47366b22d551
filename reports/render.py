"""How a value of a record becomes text: SI in, GiB and significant digits out, and a missing value keeps its reason."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass
from typing import Any

GIB = 2**30
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_PROTECTED_DECIMALS = 6


@dataclass(frozen=True, slots=True)
class Cell:
    """One table cell: the text to show, the value to sort by, its style, and where it links to.

    ``kind``: "" text, "number", "missing", "code", "status". ``source``: the field of the record that it shows.
    """

    text: str
    sort: float | str | None = None
    kind: str = ""
    href: str | None = None
    source: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells below column titles; ``more_rows`` are hidden until the reader asks for ``more_label``."""

    id: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    empty: str = "nothing to show"
    more_rows: tuple[tuple[Cell, ...], ...] = ()
    rows_label: str = ""
    more_label: str = ""

    @property
    def numeric(self) -> tuple[bool, ...]:
        """For each column whether it holds a number."""
        rows = (*self.rows, *self.more_rows)
        return tuple(any(row[i].kind == "number" for row in rows) for i in range(len(self.columns)))


def clean(text: Any) -> str:
    """``text`` without terminal colours and characters that neither XML nor a browser can show."""
    return _CONTROL.sub("", str(text).replace("\r\n", "\n").replace("\r", "\n"))


def number_text(value: float, digits: int = 3) -> str:
    """A number with at least ``digits`` significant digits and no exponent between 1e-6 and 1e15; never a false 0."""
    if value == 0:
        return "0"
    if isinstance(value, int):
        return f"{value:,}"
    size = math.floor(math.log10(abs(value)))
    if size < -_PROTECTED_DECIMALS or size > 15:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(digits - 1 - size, 0)}f}"


def text_cell(value: Any) -> Cell:
    """A cell of plain text."""
    shown = clean(value)
    return Cell(shown, shown.lower())


def number_cell(value: float, unit: str = "", *, scale: float = 1.0) -> Cell:
    """A number divided by ``scale``, with ``unit`` behind it."""
    shown = number_text(value if scale == 1.0 else value / scale)
    return Cell(f"{shown} {unit}".rstrip(), float(value), "number")


def missing_cell(reason: str, *, applies: bool = True) -> Cell:
    """What stands for a missing value: "not measured (why)" where it could exist, "n/a (why)" where it can't."""
    label = "not measured" if applies else "n/a"
    return Cell(f"{label} ({clean(reason).strip() or 'the record gives no reason'})", None, "missing")


def code_cell(value: str) -> Cell:
    """Text in a fixed-width font: commands, digests, paths."""
    return Cell(clean(value), clean(value), "code")


def command_text(command: Any) -> str | None:
    """A command line as a shell takes it, from the text or argument list of a record; None where there is none."""
    if isinstance(command, list) and command:
        return shlex.join(str(part) for part in command)
    return command if isinstance(command, str) and command.strip() else None


def short_digest(digest: Any) -> str:
    """The first twelve characters of a digest, enough to tell two apart."""
    return clean(digest)[:12] if isinstance(digest, str) and digest else ""


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested objects as {dotted key: value}; lists of plain values stay one value."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat.update(flatten(inner, f"{prefix}.{key}" if prefix else str(key)))
    return flat
