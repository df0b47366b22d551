"""What a report says, before it becomes HTML or Markdown: one value that both writers read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.files import write_text
from reports.buckets import bucket_tables
from reports.collect import Collection, Notice, Run
from reports.comparison import comparison_tables
from reports.contact import contact_sheet
from reports.judge import judge_plots, judge_tables
from reports.media import Picture, find_pictures
from reports.memory import memory_plot, memory_tables
from reports.paired import paired_tables
from reports.planned import planned_plot, planned_tables
from reports.plots import Plot, make_plots
from reports.published import published_table
from reports.render import Cell, Table, clean, code_cell, command_text, missing_cell, text_cell
from reports.scaling import scaling_plot, scaling_tables
from reports.tables import (
    FAILED,
    command_cell,
    device,
    environment_table,
    failure_table,
    metric_table,
    notice_table,
    performance_table,
    record_table,
    stage_table,
    summary_table,
)
from reports.training import training_tables

MAX_PICTURES = 24
MAX_LOGS = 20
# More runs than this are in the summary alone: a browser does not scroll through a hundred thousand rows.
MAX_DETAILED = 1000
_LOG_CHARACTERS = 8000


@dataclass(frozen=True, kw_only=True)
class Log:
    """The end of what a failed run printed."""

    run_name: str
    status: str
    reason: str
    command: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything a report shows. ``files`` is the folder of its pictures, beside the pages."""

    title: str
    lead: str
    facts: tuple[tuple[str, Cell], ...]
    recipe: str
    plots: tuple[Plot, ...]
    sheet: Path | None
    pictures: tuple[Picture, ...]
    picture_note: str
    summary: Table
    tables: tuple[Table, ...]
    environment: Table
    comparison: tuple[Table, ...]
    published: Table
    logs: tuple[Log, ...]
    log_note: str
    out: Path
    files: Path


def make_page(collection: Collection, out: Path) -> Page:
    """Computes the tables and writes the pictures of a report to ``out``/report_files."""
    runs = collection.runs
    files = out / "report_files"
    some = runs[:MAX_DETAILED]
    plots = tuple(replace(plot, caption=f"{plot.caption}{_only(runs, ' ')}") for plot in _plots(some))
    plots = (*plots, *judge_plots(some))
    for plot in plots:
        write_text(files / f"{plot.name}.svg", plot.standalone)
    pictures, notices, total = find_pictures(runs, MAX_PICTURES)
    sheet, undecodable = contact_sheet(pictures, files / "contact.png") if pictures else (None, [])
    if sheet is None:
        (files / "contact.png").unlink(missing_ok=True)  # an older report's sheet is not this report's
    logs = [_log(run) for run in runs if run.status in FAILED and (run.kind != "pipeline" or len(runs) == 1)]
    head = collection.roots[0] if len(collection.roots) == 1 else None
    return Page(
        title=clean(head.name) if head else f"{len(runs):,} runs",
        lead=_lead(runs, collection.notices),
        facts=_facts(head),
        recipe=json.dumps(head.section("recipe"), indent=2, ensure_ascii=False) if head else "",
        plots=plots,
        sheet=sheet,
        pictures=tuple(pictures),
        picture_note=f"The first {len(pictures)} of {total}." if len(pictures) < total else "",
        summary=summary_table(runs),
        tables=_tables(collection, [*notices, *undecodable]),
        environment=environment_table(runs),
        comparison=comparison_tables(some),
        published=published_table(runs),
        logs=tuple(logs[:MAX_LOGS]),
        log_note=f"The first {MAX_LOGS} of {len(logs)} runs that failed." if len(logs) > MAX_LOGS else "",
        out=out,
        files=files,
    )


def _tables(collection: Collection, notices: Sequence[Notice]) -> tuple[Table, ...]:
    runs = collection.runs
    some = runs[:MAX_DETAILED]
    detailed = (
        *paired_tables(some), performance_table(some), *scaling_tables(some), stage_table(some), *memory_tables(some),
        *planned_tables(some),
        *training_tables(some), *bucket_tables(some), *judge_tables(some), metric_table(some), record_table(some),
    )  # fmt: skip
    if len(some) < len(runs):
        detailed = tuple(replace(table, note=f"{table.note}{_only(runs, ' ')}".strip()) for table in detailed)
    return (failure_table(runs), notice_table(collection, notices), *detailed)


def _plots(runs: Sequence[Run]) -> list[Plot]:
    more = (memory_plot(runs), planned_plot(runs), scaling_plot(runs))
    return [*make_plots(runs), *(plot for plot in more if plot is not None)]


def _only(runs: Sequence[Run], before: str) -> str:
    """That a table or plot leaves out the later ones of very many runs; nothing where it does not."""
    if len(runs) <= MAX_DETAILED:
        return ""
    return f"{before}Only the first {MAX_DETAILED:,} of {len(runs):,} runs: give fewer folders to see others."


def _lead(runs: Sequence[Run], notices: Sequence[Notice]) -> str:
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.status] = counts.get(run.status, 0) + 1
    parts = [f"{count:,} {status}" for status, count in counts.items()]
    parts += [f"{len(notices):,} warning{'s' if len(notices) != 1 else ''}"] if notices else []
    noun = "record" if len(runs) == 1 else "records"
    return f"{len(runs):,} {noun}: {', '.join(parts)}" if runs else f"No record could be read. {', '.join(parts)}"


def _facts(head: Run | None) -> tuple[tuple[str, Cell], ...]:
    if head is None:
        return ()
    description = head.value("recipe.description")
    stated: list[tuple[str, Any, str]] = [
        ("digest", head.data.get("recipe_digest"), "code"),
        ("started", head.data.get("started"), ""),
        ("device", device(head), ""),
        ("code", head.value("code.commit"), "code"),
    ]
    facts = [("recipe", text_cell(head.name)), ("kind", text_cell(head.kind))]
    facts += [("description", text_cell(description))] if isinstance(description, str) and description.strip() else []
    for label, value, kind in stated:
        known = value is not None and value != ""
        shown = code_cell(str(value)) if kind else text_cell(value)
        facts.append((label, shown if known else missing_cell("the record does not say", applies=False)))
    if head.value("code.dirty") is True:
        facts.append(("local changes", text_cell("yes: the code differed from this commit")))
    return (*facts, ("reproduce", command_cell(head)))


def _log(run: Run) -> Log:
    text = clean(run.data.get("log_tail") or "")
    if len(text) > _LOG_CHARACTERS:
        text = "…" + text[-_LOG_CHARACTERS:]
    return Log(
        run_name=clean(run.label),
        status=run.status,
        reason=clean(run.data.get("reason") or "the record gives no reason"),
        command=command_text(run.data.get("command")) or "",
        text=text.strip("\n") or f"(no log: {run.null_reason('log_tail')})",
    )
