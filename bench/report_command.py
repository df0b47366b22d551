"""``cogbench report``: the records below some folders as a table, or the pages made by the reports package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from bench import record as records
from bench.codes import PASS
from bench.render import brief, results_table
from bench.report_hook import build_report, export_metrics
from core.errors import UserError


def report_command(
    folders: list[Path], *, html: bool, out: Path | None, tensorboard: Path | None = None, jsonl: Path | None = None
) -> tuple[int, dict[str, Any], str]:
    """Exit code, data for --json and text. Damaged records are warned about on stderr and left out."""
    found, warnings = records.find(folders)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if not found:
        where = ", ".join(map(str, folders))
        raise UserError(f"no usable record below {where}: run a recipe first (cogbench run RECIPE)")
    data: dict[str, Any] = {"records": [{"path": str(p), **brief(r)} for p, r in found], "warnings": warnings}
    if tensorboard or jsonl:
        written = [str(path) for path in export_metrics(folders, tensorboard=tensorboard, jsonl=jsonl)]
        data |= {"exported": written}
        if not html and out is None:
            return (
                PASS,
                data,
                f"exported {len(written)} files: {', '.join(map(str, filter(None, (tensorboard, jsonl))))}",
            )
    if html or out is not None:
        # A page beside the run it shows; a report over several folders has no such place.
        beside = folders[0].parent if folders[0].is_file() else folders[0]
        target = out or (beside if len(folders) == 1 else Path("report"))
        page = build_report(folders, target, html=html)
        return PASS, data | {"report": str(page)}, f"report: {page}"
    return PASS, data, results_table((record.id, record) for _, record in found)
