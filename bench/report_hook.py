"""The one place where bench reaches reports, by name: reports may import bench, so bench can't import reports.

Another package may offer a builder as entry point ``build`` of the group ``cogbench.reports``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from core.errors import UserError

GROUP = "cogbench.reports"
OURS = EntryPoint(name="build", value="reports.build:build_report", group=GROUP)


def build_report(folders: Sequence[Path], out: Path, *, html: bool) -> Path:
    """Writes a report about the runs below ``folders`` into the folder ``out``; returns the page to open."""
    entry = next(iter(entry_points(group=GROUP, name="build")), OURS)
    try:
        build = entry.load()
    except ModuleNotFoundError as error:
        raise UserError(f"report builder {entry.value} can't be loaded: {error}: install it") from None
    paths = build(list(folders), out, html=html)
    return Path(paths["html" if html else "markdown"])


def export_metrics(folders: Sequence[Path], *, tensorboard: Path | None, jsonl: Path | None) -> list[Path]:
    """Writes the runs' steps for other tools; returns the files."""
    export = EntryPoint(name="export", value="reports.metrics:export", group=GROUP).load()
    return export(list(folders), tensorboard=tensorboard, jsonl=jsonl)
