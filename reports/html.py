"""One self-contained page: styles, script, plots and small videos inside, nothing fetched from anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path

import jinja2
from markupsafe import Markup

from core.files import write_text
from reports.media import EMBED_BYTES, EMBED_TOTAL_BYTES, data_uri, link
from reports.page import Page
from reports.plots import PALETTE
from reports.render import Cell, Table

# Texts longer than this many characters get a wider column.
_LONG_REASON, _LONG_CODE, _LONG_TEXT = 44, 24, 60
_TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One playable video or picture of the page; ``embedded`` is false where ``source`` is a relative link."""

    source: str
    href: str
    caption: str
    run_name: str
    moving: bool
    embedded: bool


def write_html(page: Page, path: Path) -> Path:
    """Writes the page to ``path`` and returns it."""
    plots = [(plot, Markup(plot.svg)) for plot in page.plots]
    template = environment().get_template("report.html.j2")
    text = template.render(
        page=page,
        plots=plots,
        videos=_videos(page, path.parent),
        sheet=data_uri(page.sheet, "image/png") if page.sheet else None,
        palette=PALETTE,
    )
    write_text(path, text)
    return path


@lru_cache(maxsize=1)
def environment() -> jinja2.Environment:
    """The templates, with every value escaped and an unknown name an error."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["rows_html"] = rows_html
    return made


def rows_html(table: Table) -> Markup:
    """The <tr> elements of a table. Ten thousand rows are why this isn't a loop in the template (5 times slower)."""
    rows = ["<tr>" + "".join(map(cell_html, row)) + "</tr>" for row in table.rows]
    rows += ['<tr class="more" hidden>' + "".join(map(cell_html, row)) + "</tr>" for row in table.more_rows]
    return Markup("\n".join(rows))


def cell_html(cell: Cell) -> str:
    """One <td>; every text goes through ``escape``."""
    text = escape(cell.text)
    if cell.kind == "number":
        sort = "" if cell.sort is None else escape(str(cell.sort))
        source = f' title="{escape(cell.source)}"' if cell.source else ""
        return f'<td class="number" data-s="{sort}"{source}>{text}</td>'
    if cell.kind == "missing":
        return f'<td class="missing{" long" if len(cell.text) > _LONG_REASON else ""}">{text}</td>'
    if cell.kind == "code":
        return f'<td class="code{" long" if len(cell.text) > _LONG_CODE else ""}"><code>{text}</code></td>'
    if cell.kind == "status":
        status = str(cell.sort)
        reason = cell.text.removeprefix(status).removeprefix(": ")
        pill = f'<span class="pill {escape(status)}">{escape(status)}</span>'
        return f'<td class="status">{pill}{f" <small>{escape(reason)}</small>" if reason else ""}</td>'
    if not cell.text:
        return '<td class="missing" aria-label="no text">-</td>'
    linked = f'<a href="{escape(cell.href)}" rel="noreferrer">{text}</a>' if cell.href else text
    longer = ' class="long"' if len(cell.text) > _LONG_TEXT else ""
    return f"<td{longer}>{linked}</td>"


def _videos(page: Page, start: Path) -> list[Shown]:
    shown = []
    left = EMBED_TOTAL_BYTES
    for picture in page.pictures:
        size = picture.path.stat().st_size
        embedded = size <= min(EMBED_BYTES, left)
        left -= size if embedded else 0
        href = link(picture.path, start)
        source = data_uri(picture.path, picture.mime) if embedded else href
        shown.append(
            Shown(
                source=source,
                href=href,
                caption=picture.caption,
                run_name=picture.run_name,
                moving=picture.moving,
                embedded=embedded,
            )
        )
    return shown
