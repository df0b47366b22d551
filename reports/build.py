"""Building a report from the folders of runs; `cogbench report` and the last stage of a pipeline call this."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from core.errors import UserError
from reports.collect import collect
from reports.html import write_html
from reports.markdown import write_markdown
from reports.page import make_page


def build_report(run_dirs: Sequence[Path], out: Path, *, html: bool = True) -> dict[str, Path]:
    """Writes report.md, report_files/ and (unless ``html`` is false) report.html into the folder ``out``.

    Returns {"markdown": path, "files": folder, "html": path}. Raises UserError for a folder that does not exist, one
    without any record.json, and an ``out`` that is a file. A record that can't be read becomes a row under Warnings.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, a report is written into a folder: give another --out")
    with _without_cycles():
        collection = collect([Path(folder) for folder in run_dirs])
        out.mkdir(parents=True, exist_ok=True)
        page = make_page(collection, out)
        page.files.mkdir(exist_ok=True)
        paths = {"markdown": write_markdown(page, out / "report.md"), "files": page.files}
        if html:
            paths["html"] = write_html(page, out / "report.html")
    return paths


@contextmanager
def _without_cycles() -> Iterator[None]:
    """Records and tables are trees: looking for cycles among ten thousand of them takes longer than making them."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
