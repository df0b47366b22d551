"""The pages: self-contained, escaped everywhere, with the pictures that exist and a warning for those that don't."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from PIL import Image

from reports import html, media
from reports.build import build_report
from reports.collect import collect
from reports.contact import contact_sheet
from reports.markdown import code, escape
from reports.plots import make_plots
from reports.render import Cell
from tests.reports import samples

ATTACK = "<script>alert(1)</script>\" onload='alert(2)' ]]> --> $x_1$ &amp; </pre></style>{{ 7*7 }}"


class _Reader(HTMLParser):
    """Collects elements, attributes and text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    folder = samples.pipeline(tmp_path_factory.mktemp("report") / "run")
    return folder, build_report([folder], folder / "report")


def test_the_page_is_self_contained(quickstart):
    _, paths = quickstart
    text = paths["html"].read_text(encoding="utf-8")
    page = _Reader(text)
    for tag, attributes in page.elements:
        for name in ("src", "data", "poster", "srcset", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:"), (tag, name)
        assert tag not in ("iframe", "object", "embed", "base")
        assert tag != "link" or (attributes["href"] or "").startswith("data:")
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert "default-src 'none'" in text


def test_the_page_shows_what_was_run_and_made(quickstart):
    folder, paths = quickstart
    text = paths["html"].read_text(encoding="utf-8")
    page = _Reader(text)
    shown = " ".join(page.text)
    assert page.count("video") == 2
    assert page.count("svg") == 4
    assert f"{samples.PROMPT}, number 1" in shown
    assert collect([folder]).runs[0].data["recipe_digest"] in shown
    for part in (
        "summary",
        "plots",
        "generated",
        "failures",
        "warnings",
        "stages",
        "records",
        "environment",
        "published",
    ):
        assert f'<section id="{part}">' in text
    assert "2000-01-01T00:00:00Z" in shown
    assert "data:video/mp4;base64," in text


def test_ids_are_unique(quickstart):
    page = _Reader(quickstart[1]["html"].read_text(encoding="utf-8"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_markdown_links_its_pictures(quickstart):
    _, paths = quickstart
    text = paths["markdown"].read_text(encoding="utf-8")
    targets = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert "report_files/contact.png" in targets
    assert "report_files/loss.svg" in targets
    for target in re.findall(r"\]\((?!https:)([^)]+)\)", text):
        assert (paths["markdown"].parent / target).is_file(), target
    rows = [line for line in text.splitlines() if line.startswith("| train ")]
    assert rows
    assert "| 0.432 | 4.63 samples/s | 1.50 GiB process high-water mark | with invented-quickstart |" in rows[0]


def test_html_can_be_left_out(tmp_path):
    paths = build_report([samples.write(tmp_path / "run")], tmp_path / "out", html=False)
    assert set(paths) == {"markdown", "files"}
    assert not (tmp_path / "out" / "report.html").exists()


def test_nothing_in_a_record_becomes_markup(tmp_path):
    video = samples.video(tmp_path / "run" / "out" / "a.mp4")
    environment = samples.ENVIRONMENT | {ATTACK: ATTACK}
    samples.write(
        tmp_path / "run",
        "train",
        ATTACK,
        status="failed",
        reason=ATTACK,
        log_tail=ATTACK,
        command=("cogbench", ATTACK),
        environment=environment,
        recipe={"description": ATTACK, ATTACK: ATTACK},
        steps=samples.steps(5),
        stages=[{"name": ATTACK, "seconds": 1.0}],
        metrics={ATTACK: {"value": 1.0, "unit": ATTACK}},
        failures=[{"row": 1, "item": ATTACK, "message": ATTACK}],
        artifacts=[samples.artifact(video, "out/a.mp4", prompt=ATTACK)],
    )
    paths = build_report([tmp_path / "run"], tmp_path / "out")
    text = paths["html"].read_text(encoding="utf-8")
    page = _Reader(text)
    assert page.count("script") == 1  # ours
    assert not [(tag, a) for tag, a in page.elements if any(name.startswith("on") for name in a)]
    assert any(ATTACK in part for part in page.text)
    assert [a["aria-label"] for tag, a in page.elements if tag == "video"] == [ATTACK]
    for svg in (tmp_path / "out" / "report_files").glob("*.svg"):
        root = ElementTree.parse(svg).getroot()
        assert not [e for e in root.iter() if e.tag.endswith("script")]
    markdown = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", paths["markdown"].read_text(encoding="utf-8"), flags=re.DOTALL)
    assert "<script" not in markdown  # outside of code, where Markdown shows it as text
    assert "&lt;script" in markdown


def test_names_stay_as_they_are_inside_plots(tmp_path):
    names = ('#010203 id="x"', "_hidden", "$a_1$", "<b>&")
    runs = [
        collect([samples.write(tmp_path / str(i), name=n, steps=samples.steps(5))]).runs[0] for i, n in enumerate(names)
    ]
    plots = {plot.name: plot for plot in make_plots(runs)}
    for plot in (plots["loss"], plots["run-seconds"], plots["step-times"]):
        root = ElementTree.fromstring(plot.standalone.partition("\n")[2])
        texts = [(e.text or "").strip() for e in root.iter() if e.tag.endswith("text")]
        assert set(names) <= set(texts), plot.name
    assert "currentColor" in plots["loss"].svg
    assert "#010203" not in plots["loss"].svg.replace('#010203 id="x"', "")
    assert "prefers-color-scheme" in plots["loss"].standalone


def test_plots_are_the_same_each_time(tmp_path):
    runs = collect([samples.write(tmp_path, steps=samples.steps(5))]).runs
    assert [plot.svg for plot in make_plots(runs)] == [plot.svg for plot in make_plots(runs)]


def test_tagged_steps_are_left_out_of_step_times_and_counted(tmp_path):
    runs = collect([samples.write(tmp_path, steps=samples.steps(5))]).runs
    plot = next(plot for plot in make_plots(runs) if plot.name == "step-times")
    assert "1 tagged or unmeasured steps are left out" in plot.caption


def test_no_numbers_no_plots(tmp_path):
    runs = collect([samples.write(tmp_path, seconds=None, null_reasons={"seconds": "the stage was skipped"})]).runs
    assert make_plots(runs) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.update(path="out/gone.mp4"), "missing"),
        (lambda a: a.update(sha256="0" * 64), "another sha256"),
        (lambda a: a.update(path="out/a.svg"), "can't be shown"),
    ],
)
def test_a_picture_that_is_not_what_the_record_says_is_a_warning(tmp_path, change, said):
    video = samples.video(tmp_path / "out" / "a.mp4")
    (tmp_path / "out" / "a.svg").write_text("<svg/>")
    entry = samples.artifact(video, "out/a.mp4")
    change(entry)
    paths = build_report([samples.write(tmp_path, "generate", artifacts=[entry])], tmp_path / "report")
    text = paths["html"].read_text(encoding="utf-8")
    assert "<video" not in text
    assert said in " ".join(_Reader(text).text)


def test_a_broken_video_is_a_warning_and_the_others_are_shown(tmp_path):
    good = samples.video(tmp_path / "out" / "a.mp4")
    bad = tmp_path / "out" / "b.mp4"
    bad.write_bytes(b"no video")
    entries = [samples.artifact(bad, "out/b.mp4"), samples.artifact(good, "out/a.mp4")]
    pictures, _, total = media.find_pictures(collect([samples.write(tmp_path, artifacts=entries)]).runs, limit=9)
    sheet, notices = contact_sheet(pictures, tmp_path / "sheet.png")
    assert (total, len(notices)) == (2, 1)
    assert "can't be decoded" in notices[0].message
    assert sheet is not None


def test_training_clips_give_way_to_generated_videos(tmp_path):
    for kind in ("make-clips", "generate"):
        file = samples.video(tmp_path / kind / "out" / f"{kind}.mp4", frames=2)
        samples.write(tmp_path / kind, kind, kind, artifacts=[samples.artifact(file, f"out/{kind}.mp4")])
    both, only = collect([tmp_path]).runs, collect([tmp_path / "make-clips"]).runs
    assert [p.caption for p in media.find_pictures(both, 9)[0]] == ["generate.mp4"]
    assert [p.caption for p in media.find_pictures(only, 9)[0]] == ["make-clips.mp4"]


def test_large_videos_are_linked_and_not_embedded(tmp_path, monkeypatch):
    monkeypatch.setattr(html, "EMBED_BYTES", 10)
    video = samples.video(tmp_path / "run" / "out" / "a: b#c.mp4")
    samples.write(tmp_path / "run", artifacts=[samples.artifact(video, "out/a: b#c.mp4")])
    paths = build_report([tmp_path / "run"], tmp_path / "report")
    sources = [a["src"] for tag, a in _Reader(paths["html"].read_text(encoding="utf-8")).elements if tag == "video"]
    assert sources == ["../run/out/a%3A%20b%23c.mp4"]


def test_contact_sheet_has_a_row_per_video_and_frames_in_time(tmp_path):
    files = [samples.video(tmp_path / f"{i}.mp4", frames=9) for i in range(2)]
    pictures = [media.Picture(path=f, caption=ATTACK * 5, run_name="x", mime="video/mp4") for f in files]
    sheet, notices = contact_sheet(pictures, tmp_path / "sheet.png", columns=3)
    assert notices == []
    assert sheet is not None
    with Image.open(sheet) as image:
        pixels = image.convert("RGB")
        middle = [pixels.getpixel((x, pixels.height - 14 - 57)) for x in (14 + 10, pixels.width - 1)]
    assert middle[0][2] > 200 > middle[0][0]  # pyright: ignore[reportOptionalSubscript, reportIndexIssue]
    frames = media.read_frames(files[0], 3)
    assert frames[-1].getpixel((75, 24))[0] > 200  # pyright: ignore[reportOptionalSubscript, reportIndexIssue]


def test_gif_frames(tmp_path):
    images = [Image.new("RGB", (8, 8), (i * 20, 0, 0)) for i in range(9)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=100)
    frames = media.read_frames(tmp_path / "a.gif", 3)
    assert [round(frame.getpixel((0, 0))[0] / 20) for frame in frames] == [0, 4, 8]  # pyright: ignore


@pytest.mark.parametrize(("total", "count", "wanted"), [(9, 3, [0, 4, 8]), (2, 6, [0, 1]), (5, 1, [0]), (0, 3, [])])
def test_evenly_spaced(total, count, wanted):
    assert media.evenly_spaced(total, count) == wanted


def test_data_uri(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x00\xff")
    assert (
        media.data_uri(tmp_path / "a.png", "image/png")
        == "data:image/png;base64," + base64.b64encode(b"\0\xff").decode()
    )


@pytest.mark.parametrize("kind", ["", "number", "missing", "code", "status"])
def test_every_kind_of_cell_is_escaped(kind):
    shown = html.cell_html(Cell(ATTACK, ATTACK if kind == "status" else 1.0, kind, ATTACK))
    page = _Reader(shown)
    assert page.count("script") == 0
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]


def test_logs_of_failed_runs_are_shown_and_damaged_records_do_not_stop_a_report(tmp_path):
    samples.write(tmp_path / "a", status="oom", reason="asked for too much", log_tail="step 3\nKilled")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "record.json").write_text("{")
    paths = build_report([tmp_path], tmp_path / "out")
    assert "step 3\nKilled" in paths["html"].read_text(encoding="utf-8")
    assert "step 3\nKilled" in paths["markdown"].read_text(encoding="utf-8")
    assert "damaged record" in paths["markdown"].read_text(encoding="utf-8")


def test_only_damaged_records_still_make_a_report(tmp_path):
    (tmp_path / "record.json").write_text("{")
    paths = build_report([tmp_path], tmp_path / "out")
    assert "No record could be read." in paths["html"].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a|b", r"a\|b"),
        ("snake_case _x_", r"snake_case \_x\_"),
        ("<b>", "&lt;b&gt;"),
        ("- x", r"\- x"),
        ("1. x", r"1\. x"),
    ],
)
def test_markdown_escapes(text, wanted):
    assert escape(text) == wanted


def test_markdown_code_outlasts_backticks():
    assert code("a `b` | c") == "`` a `b` \\| c ``"
