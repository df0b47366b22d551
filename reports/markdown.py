"""The same report as Markdown that GitHub renders, with its pictures in report_files/ beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from core.files import write_text
from reports.media import link
from reports.page import Log, Page
from reports.render import Cell, Table

_SPECIAL = re.compile(r"([\\`*\[\]|~#])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
MAX_ROWS = 200


def write_markdown(page: Page, path: Path) -> Path:
    """Writes the report to ``path`` and returns it."""
    parts = [f"# {escape(page.title)}", escape(page.lead), *_facts(page), _table(page.summary, path.parent)]
    for plot in page.plots:
        target = link(page.files / f"{plot.name}.svg", path.parent)
        parts += [f"## {plot.title}", f"![{plot.title}]({target})", escape(plot.caption)]
    if page.pictures:
        parts += ["## Generated", *_pictures(page, path.parent)]
    parts += [_table(table, path.parent) for table in page.tables]
    parts += _logs(page.logs, page.log_note)
    parts += [_table(table, path.parent) for table in (page.environment, *page.comparison, page.published)]
    if page.published.more_rows:
        parts.append(f"{len(page.published.more_rows)} more published rows are in reports/published.csv.")
    write_text(path, "\n\n".join(part for part in parts if part) + "\n")
    return path


def escape(text: str) -> str:
    """``text`` as Markdown that shows it unchanged, on one line."""
    line = " ".join(text.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = _SPECIAL.sub(r"\\\g<0>", line)
    # A line that starts like a list item would become one: "- x" and "1. x".
    return re.sub(r"^([-+](?=\s)|\d+(?=[.)]\s))([.)]?)", lambda m: f"{m[1]}\\{m[2]}" if m[2] else f"\\{m[1]}", line)


def code(text: str) -> str:
    """``text`` as a code span, with a fence longer than any backticks inside."""
    line = " ".join(text.split()).replace("|", "\\|")
    if not line:
        return ""
    longest = max((len(ticks) for ticks in re.findall(r"`+", line)), default=0)
    fence = "`" * (longest + 1)
    padding = " " if "`" in line else ""
    return f"{fence}{padding}{line}{padding}{fence}"


def _cell(cell: Cell) -> str:
    shown = code(cell.text) if cell.kind == "code" else escape(cell.text)
    return f"[{shown}]({cell.href})" if cell.href else shown


def _table(table: Table, start: Path) -> str:
    if not table.rows:
        return f"## {table.title}\n\n{table.empty}."
    lines = [
        _line(escape(column) for column in table.columns),
        _line("---:" if right else "---" for right in table.numeric),
    ]
    lines += [_line(_cell(cell) for cell in row) for row in table.rows[:MAX_ROWS]]
    notes = [table.note, f"The first {MAX_ROWS} of {len(table.rows):,} rows." if len(table.rows) > MAX_ROWS else ""]
    note = "\n\n".join(escape(text) for text in notes if text)
    return f"## {table.title}\n\n" + "\n".join(lines) + (f"\n\n{note}" if note else "")


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _facts(page: Page) -> list[str]:
    return ["\n".join(f"- {label}: {_cell(cell)}" for label, cell in page.facts)] if page.facts else []


def _pictures(page: Page, start: Path) -> list[str]:
    parts = (
        [f"![contact sheet: each row is one video, left to right in time]({link(page.sheet, start)})"]
        if page.sheet
        else []
    )
    rows = [f"- [{escape(p.path.name)}]({link(p.path, start)}): {escape(p.caption)}" for p in page.pictures]
    return [*parts, "\n".join(rows), escape(page.picture_note)]


def _logs(logs: tuple[Log, ...], note: str) -> list[str]:
    parts = ["## Ends of logs"] if logs else []
    for log in logs:
        fence = "`" * max(3, 1 + max((len(t) for t in re.findall(r"`+", log.text)), default=0))
        parts.append(
            f"### {escape(log.run_name)}: {log.status}\n\n{escape(log.reason)}\n\n{fence}text\n{log.text}\n{fence}"
        )
    return [*parts, escape(note)]
