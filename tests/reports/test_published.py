"""The published figures keep their sources and are checked row by row."""

from __future__ import annotations

import csv

import pytest

from core.errors import UserError
from reports.published import COLUMNS, PUBLISHED, published_table, read_published


def _file(tmp_path, **changes):
    row = dict.fromkeys(COLUMNS, "") | {
        "system": "s",
        "task": "sft",
        "source_url_or_repo_path": "https://example.org/a",
    }
    path = tmp_path / "published.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list[str](COLUMNS))
        writer.writeheader()
        writer.writerow(row | changes)
    return path


def test_the_file_of_the_repository_is_valid_and_every_row_has_a_source():
    figures = read_published()
    assert len(figures) == 373
    assert all(figure.cells["source_url_or_repo_path"].strip() for figure in figures)
    seed = figures[0]
    assert (seed.number("step_time_s"), seed.number("devices"), seed.cells["frames"]) == (10.2, 8.0, "77")


@pytest.mark.parametrize(
    ("text", "number"), [("10.2", 10.2), ("~16", 16.0), ("<4", 4.0), ("21-24", 21.0), ("OOM", None), ("", None)]
)
def test_bounds_and_ranges_sort_by_their_first_number(tmp_path, text, number):
    figure = read_published(_file(tmp_path, peak_memory_gb=text))[0]
    assert figure.number("peak_memory_gb") == number
    assert figure.cells["peak_memory_gb"] == text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"step_time_s": "fast"}, "step_time_s is 'fast'"),
        ({"peak_memory_gb": "12abc"}, "peak_memory_gb is '12abc'"),
        ({"source_url_or_repo_path": " "}, "source_url_or_repo_path is empty"),
        ({"task": "pretrain"}, "task is 'pretrain'"),
    ],
)
def test_a_row_that_can_not_be_trusted_is_named_with_its_line(tmp_path, changes, said):
    path = _file(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        read_published(path)
    assert f"{path}:2: {said}" in str(caught.value)


@pytest.mark.parametrize("damage", [lambda t: t.replace("system", "who", 1), lambda t: t + "one,two\n"])
def test_another_header_or_width_is_refused(tmp_path, damage):
    path = _file(tmp_path)
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(UserError):
        read_published(path)


def test_the_table_shows_sft_and_inference_at_our_size_and_keeps_the_rest_behind_a_filter():
    table = published_table([])
    task, size, ours = (table.columns.index(name) for name in ("task", "size", "ours"))
    assert len(table.rows) + len(table.more_rows) == len(read_published())
    assert 0 < len(table.rows) < len(table.more_rows)
    assert all(row[task].text in ("sft", "inference") and "768x1360" in row[size].text for row in table.rows)
    assert {row[ours].text for row in (*table.rows, *table.more_rows)} == {"not measured (no Ascend card here)"}
    assert all(cell.text for row in (*table.rows, *table.more_rows) for cell in row)


def test_only_https_sources_become_links(tmp_path):
    table = published_table([], read_published(_file(tmp_path, source_url_or_repo_path="javascript:alert(1)")))
    source = table.columns.index("source")
    assert table.more_rows[0][source].href is None
    linked = published_table([], read_published(_file(tmp_path)))
    assert linked.more_rows[0][source].href == "https://example.org/a"


def test_the_copy_is_unchanged_in_shape():
    assert PUBLISHED.read_text(encoding="utf-8").splitlines()[0] == ",".join(COLUMNS)
