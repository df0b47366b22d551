"""The section "Buckets": what the note says is shown, and nothing where no run has buckets."""

from __future__ import annotations

from core.data.buckets import Bucket, bucket_table
from reports.buckets import bucket_tables
from reports.build import build_report
from reports.collect import collect
from tests.reports import samples

WIDE, TALL = Bucket(frames=77, height=768, width=1360), Bucket(frames=49, height=1360, width=768, keep_probability=0.5)
ENCODED = {
    "clips": 3,
    "buckets": bucket_table([WIDE, TALL], [(0, 0.05), (0, 0.15), (1, None)]),
    "refused": [{"row": 4, "video": "thin.mp4", "reason": "63% <would> be cut off"}],
}


def report(folder, **note):
    samples.write(folder, notes={"buckets": ENCODED | note})
    return build_report([folder], folder / "report")


def test_markdown_and_html_show_where_clips_went_and_what_was_cut(tmp_path):
    paths = report(tmp_path / "run", repeated=5, left_out=2)
    markdown, html = (paths[kind].read_text(encoding="utf-8") for kind in ("markdown", "html"))
    assert '<section id="buckets">' in html
    assert '<section id="refused">' in html
    assert "63% &lt;would&gt; be cut off" in html
    assert "## Buckets" in markdown
    row = next(line for line in markdown.splitlines() if "77x768x1360" in line)
    assert "| 2 | 1 | 100 % |" in row
    assert "| 10.0 % | 15.0 % |" in row
    other = next(line for line in markdown.splitlines() if "49x1360x768" in line)
    assert "50.0 %" in other
    assert "n/a (no clip of this bucket says how it was cut)" in other
    assert "5 samples of first epochs repeat a clip" in markdown
    assert "2 clips were left out" in markdown
    assert "thin.mp4" in markdown


def test_no_section_without_buckets(tmp_path):
    samples.write(tmp_path / "run")
    text = build_report([tmp_path / "run"], tmp_path / "report")["markdown"].read_text(encoding="utf-8")
    assert "Buckets" not in text


def test_a_damaged_note_breaks_nothing(tmp_path):
    for number, note in enumerate(({"buckets": "?"}, {"buckets": [3]}, {"buckets": [{}]}, {"refused": {}})):
        report(tmp_path / str(number), **note)
    samples.write(tmp_path / "list", notes={"buckets": [1]})
    assert bucket_tables(collect([tmp_path / "list"]).runs) == ()
