"""Very many records: each file is read once, work grows with their number, a damaged one is one row."""

from __future__ import annotations

import cProfile
import gc
from pathlib import Path

from bench import record as records
from reports.collect import Collection, collect
from reports.html import rows_html
from reports.many import write_examples
from reports.page import make_page
from reports.tables import notice_table, summary_table


def _folder(tmp_path: Path, count: int) -> Path:
    folder = tmp_path / str(count)
    folder.mkdir()
    write_examples(folder, count)
    return folder


def _calls(folder: Path) -> int:
    """Function calls from files to the rows of a page: a count, so it is the same on any machine.

    Without the garbage collector, whose callbacks (hypothesis has one) are calls, too.
    """
    profile = cProfile.Profile()
    gc.disable()
    try:
        profile.enable()
        collection = collect([folder])
        rows_html(summary_table(collection.runs))
        profile.disable()
    finally:
        gc.enable()
    return sum(entry.callcount for entry in profile.getstats())


def test_work_grows_as_the_number_of_records(tmp_path):
    one, two, three = (_calls(_folder(tmp_path, count)) for count in (40, 80, 120))
    assert abs((three - two) - (two - one)) <= 0.03 * (two - one)


def test_each_file_is_read_once_and_a_damaged_one_is_one_row(tmp_path, monkeypatch):
    read: list[Path] = []
    monkeypatch.setattr(records, "read_data", lambda path, real=records.read_data: read.append(path) or real(path))
    collection = collect([_folder(tmp_path, 30)])
    assert len(read) == len(set(read)) == 31
    assert len(collection.runs) == 30
    (row,) = notice_table(collection).rows
    assert "damaged record" in row[1].text


def test_plots_and_details_of_very_many_say_what_they_leave_out(tmp_path, monkeypatch):
    monkeypatch.setattr("reports.page.MAX_DETAILED", 5)
    collection: Collection = collect([_folder(tmp_path, 8)])
    page = make_page(collection, tmp_path / "out")
    assert len(page.summary.rows) == 8
    said = "Only the first 5 of 8 runs"
    assert all(said in plot.caption for plot in page.plots)
    detailed = {table.id: table for table in page.tables}
    assert len(detailed["performance"].rows) == 5
    assert said in detailed["performance"].note
