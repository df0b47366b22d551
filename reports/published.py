"""Figures that others published, each with its source, as a table beside ours."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError
from reports.collect import Run
from reports.render import Cell, Table, missing_cell, text_cell
from reports.tables import device

PUBLISHED = Path(__file__).with_name("published.csv")
COLUMNS = (
    "system", "task", "model", "resolution", "frames", "batch", "devices", "device_type", "precision", "attention",
    "parallelism", "memory_opts", "step_time_s", "throughput", "peak_memory_gb", "quality_metric",
    "source_url_or_repo_path", "note",
)  # fmt: skip
TASKS = ("sft", "lora", "inference")
NUMERIC = ("devices", "step_time_s", "peak_memory_gb")
SHOWN_TASKS, SHOWN_RESOLUTION = ("sft", "inference"), "768x1360"
_BOUNDED = re.compile(r"\s*[<>~]?\s*(\d+(?:\.\d+)?)(?:[eE][-+]?\d+)?(?=$|[\s,(/-])")


@dataclass(frozen=True)
class Figure:
    """One published row: its line in the file and its cells as printed there."""

    line: int
    cells: dict[str, str]

    def number(self, column: str) -> float | None:
        """The leading number of a numeric column (``~16`` gives 16.0, ``21-24`` gives 21.0), None for none or OOM."""
        found = _BOUNDED.match(self.cells[column])
        return float(found.group(1)) if found else None

    @property
    def shown_first(self) -> bool:
        """SFT and inference at the size this project reproduces."""
        return self.cells["task"] in SHOWN_TASKS and SHOWN_RESOLUTION in self.cells["resolution"]


def read_published(path: Path = PUBLISHED) -> tuple[Figure, ...]:
    """Every row of the published figures; raises UserError naming file and line for a row that can't be trusted."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise UserError(f"{path}:1: columns are {reader.fieldnames}, needed are exactly {list(COLUMNS)}")
            return tuple(_checked(path, reader.line_num, row) for row in reader)
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: can't be read as CSV in UTF-8: {error}") from error


def _checked(path: Path, line: int, row: dict) -> Figure:
    if None in row or None in row.values():
        raise UserError(f"{path}:{line}: the row has another number of cells than the {len(COLUMNS)} columns")
    for column in ("system", "source_url_or_repo_path"):
        if not row[column].strip():
            raise UserError(f"{path}:{line}: {column} is empty, every published figure names its system and source")
    if row["task"] not in TASKS:
        raise UserError(f"{path}:{line}: task is {row['task']!r}, one of {', '.join(TASKS)} is needed")
    for column in NUMERIC:
        text = row[column]
        if text.strip() and not _BOUNDED.match(text) and not text.startswith("OOM"):
            raise UserError(f"{path}:{line}: {column} is {text!r}, a number, a bound such as ~16, or OOM is needed")
    return Figure(line, dict(row))


def published_table(runs: Iterable[Run], figures: tuple[Figure, ...] | None = None) -> Table:
    """The published figures, and in each row what this project measured for it (nothing yet, with the reason)."""
    on_card = any(device(run) == "ascend" for run in runs)
    reason = "no record of this configuration" if on_card else "no Ascend card here"
    rows: dict[bool, list[tuple[Cell, ...]]] = {True: [], False: []}
    for figure in read_published() if figures is None else figures:
        rows[figure.shown_first].append(_row(figure, reason))
    columns = (
        "system", "task", "model", "size", "frames", "batch", "cards", "card", "settings", "step time (s)",
        "throughput", "peak memory (GB as published)", "ours", "source", "note",
    )  # fmt: skip
    note = "Printed as the source prints them; sources disagree on what a GB is. Nothing here was measured by us."
    return Table(
        "published", "Published, for comparison", columns, tuple(rows[True]), note, "no published figures",
        tuple(rows[False]), f"SFT and inference at {SHOWN_RESOLUTION}", "all published rows",
    )  # fmt: skip


def _row(figure: Figure, reason: str) -> tuple[Cell, ...]:
    cells = figure.cells
    settings = "; ".join(cells[key] for key in ("precision", "attention", "parallelism", "memory_opts") if cells[key])
    return (
        text_cell(cells["system"]),
        text_cell(cells["task"]),
        text_cell(cells["model"]),
        *(stated_cell(cells[key]) for key in ("resolution", "frames", "batch")),
        _numeric(figure, "devices"),
        stated_cell(cells["device_type"]),
        stated_cell(settings),
        _numeric(figure, "step_time_s"),
        stated_cell(cells["throughput"]),
        _numeric(figure, "peak_memory_gb"),
        missing_cell(reason),
        source_cell(cells["source_url_or_repo_path"].strip()),
        stated_cell(cells["note"], "no note"),
    )


def stated_cell(text: str, otherwise: str = "not published") -> Cell:
    """The text as printed, or that the source has none."""
    return text_cell(text) if text.strip() else missing_cell(otherwise, applies=False)


def _numeric(figure: Figure, column: str) -> Cell:
    text = figure.cells[column].strip()
    return Cell(text, figure.number(column), "number") if text else missing_cell("not published", applies=False)


def source_cell(text: str) -> Cell:
    """The source, as a link where it is an address."""
    url = text if re.fullmatch(r"https://[^\s\"'<>]+", text) else None
    return Cell(text, text.lower(), "", url)
