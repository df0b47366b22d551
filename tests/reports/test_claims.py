"""The claims ledger: each verdict has a case that gives it, and the repository's own documents pass."""

from __future__ import annotations

import json

import pytest

from bench.cli import main
from bench.recipe_access import open_recipe
from core.errors import UserError
from reports.claims import claims_command, default_documents, read_ledger
from reports.claims_scan import marked, replaced, unbound
from tests.reports import samples

RECIPE = "schema: 1\nkind: make-clips\nname: clips\nclips: {height: 64, width: 64, count: 2, frames: 9}\n"
LEDGER = """
claims:
  wall:
    record: recipes/clips.yaml
    field: seconds
    text: "{:.1f} s"
    missing: not measured (no record yet)
  memory:
    record: recipes/clips.yaml
    field: memory.process_peak_bytes
    scale: GiB
    text: "{:.2f} GiB"
    holds: "<= 2"
  original:
    published: {system: "Efficient CogVideoX (seed, MindSpore 2.4.0)", task: sft, frames: 77}
    field: step_time_s
    text: "{} s"
  nobody:
    published: {system: nobody}
    field: step_time_s
    text: "{} s"
  unstated:
    published: {system: "Efficient CogVideoX (seed, MindSpore 2.4.0)", task: sft, frames: 77}
    field: peak_memory_gb
    text: "{} GB"
    missing: not stated
tables: {}
"""


@pytest.fixture
def root(tmp_path):
    for name, text in (("recipes/clips.yaml", RECIPE), ("reports/claims.yaml", LEDGER)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "reports" / "records").mkdir()
    return tmp_path


def _record(root, name="a", **changes):
    digest = open_recipe(root / "recipes" / "clips.yaml", []).digest
    changes = {"recipe_digest": digest, "seconds": 12.5, "id": name} | changes
    return samples.write(root / "reports" / "records" / name, "make-clips", "clips", **changes)


def _verdict(root, text, *, fix=False):
    """Status of the first figure of a README, and the README afterwards."""
    (root / "README.md").write_text(text)
    code, data, _ = claims_command([root / "README.md"], fix=fix, root=root)
    assert data["ok"] == (code == 0)
    return data["findings"][0]["status"], (root / "README.md").read_text()


def _claim(key, text):
    return f"<!-- claim {key} -->{text}<!-- /claim -->"


def test_verified(root):
    _record(root)
    assert _verdict(root, _claim("wall", "12.5 s"))[0] == "verified"
    assert _verdict(root, _claim("memory", "1.50 GiB"))[0] == "verified"
    assert _verdict(root, _claim("original", "10.2 s"))[0] == "verified"


def test_refuted_when_no_source_says_so(root):
    _record(root)
    assert _verdict(root, _claim("wall", "12.4 s"))[0] == "refuted"
    assert _verdict(root, _claim("original", "9.9 s"))[0] == "refuted"


def test_refuted_when_the_newest_record_failed(root):
    _record(root)
    _record(root, "b", status="failed", reason="broke", started="2001-01-01T00:00:00Z")
    assert _verdict(root, _claim("wall", "12.5 s"))[0] == "refuted"


def test_refuted_when_a_condition_does_not_hold_and_fixing_does_not_help(root):
    _record(root, process_peak_bytes=3 * 2**30)
    assert _verdict(root, _claim("memory", "3.00 GiB"), fix=True)[0] == "refuted"


def test_stale_when_a_newer_record_says_otherwise(root):
    _record(root)
    _record(root, "b", seconds=11.0, started="2001-01-01T00:00:00Z")
    assert _verdict(root, _claim("wall", "12.5 s"))[0] == "stale"
    assert _verdict(root, _claim("wall", "12.5 s"), fix=True) == ("verified", _claim("wall", "11.0 s"))


def test_stale_when_the_recipe_has_changed(root):
    _record(root)
    (root / "recipes" / "clips.yaml").write_text(RECIPE.replace("count: 2", "count: 3"))
    assert _verdict(root, _claim("wall", "12.5 s"))[0] == "stale"


def test_unverified_and_not_measured(root):
    assert _verdict(root, _claim("wall", "12.5 s"))[0] == "unverified"
    assert _verdict(root, _claim("wall", "not measured (no record yet)"))[0] == "not measured"
    assert _verdict(root, _claim("wall", "12.5 s"), fix=True)[0] == "not measured"
    assert _verdict(root, _claim("nobody", "1 s"))[0] == "unverified"
    assert _verdict(root, _claim("unstated", "not stated"))[0] == "not measured"


@pytest.mark.parametrize(
    "text", ["It takes 12.5 s.", "40% less", "1,200 samples/s", _claim("unknown", "3 s"), "<!-- claim wall -->3", "2x"]
)
def test_unbound(root, text):
    _record(root)
    assert _verdict(root, text)[0] == "unbound"


@pytest.mark.parametrize(
    "text",
    [
        "768x1360 and 64 x 96, 77 frames, 8 cards", "Python 3.11", "an error of 1e-5", "`--timeout 5 s`", "2026-11-22",
        "```\n12 s\n```", "[a](http://x/10%20s)", "<!-- 3 s -->", "CogVideoX1.5-5B", "`<!-- claim wall -->`",
    ],
)  # fmt: skip
def test_what_is_no_figure(text):
    assert unbound(text, strict=True) == []


def test_a_page_of_decisions_names_the_command_that_printed_its_figures():
    assert [found.text for found in unbound("A step takes 3 ms.", strict=False)] == ["3 ms"]
    assert unbound("A step takes 3 ms (`python -m bench.blocks`).", strict=False) == []
    assert unbound("A buffer of 32 MiB.", strict=False) == []
    # A broken marker is one on every page.
    assert unbound("`python -m bench.blocks` <!-- claim a -->3", strict=False)


def test_places_and_replacement():
    text = f"one\n{_claim('a', '1 s')} and {_claim('b', '2 s')}\n<!-- claims c -->\n| 3 s |\n<!-- /claims -->\n"
    found = marked(text)
    assert [(item.id, item.text, item.line, item.block) for item in found] == [
        ("a", "1 s", 2, False), ("b", "2 s", 2, False), ("c", "| 3 s |\n", 4, True)
    ]  # fmt: skip
    new = replaced(text, {found[0].start: "9 s", found[2].start: "none\n"})
    assert new == text.replace("1 s", "9 s").replace("| 3 s |", "none")


def test_a_claim_that_no_document_has_is_said(root):
    (root / "README.md").write_text("nothing")
    (root / "docs").mkdir()
    code, data, _ = claims_command([], fix=False, root=root)
    assert code == 1
    assert {finding["status"] for finding in data["findings"]} == {"unused"}


@pytest.mark.parametrize(
    ("ledger", "said"),
    [
        ("claims: {wall: {text: '{} s'}}\ntables: {}", "needs published or record"),
        ("claims: {wall: {published: count, text: 'none'}}\ntables: {}", "needs text"),
        ("claims: {wall: {published: {sytem: x}, field: frames, text: '{}'}}\ntables: {}", "no column sytem"),
        ("claims: {wall: {published: count, text: '{:d} s', holds: 'fast'}}\ntables: {}", "need a comparison"),
        ("claims: {wall: {published: count, text: '{:.1q} s'}}\ntables: {}", "can't show"),
        ("claims: []", "need exactly the keys"),
        ("claims: {", "can't be read"),
        ("claims: {wall: 3}\ntables: {}", "need an object"),
    ],
)
def test_a_ledger_that_can_not_be_used_is_one_line(root, ledger, said):
    (root / "reports" / "claims.yaml").write_text(ledger)
    with pytest.raises(UserError, match=said) as caught:
        _verdict(root, _claim("wall", "1 s"))
    assert "\n" not in str(caught.value)


def test_without_a_readme_it_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="in a checkout"):
        default_documents(tmp_path)
    with pytest.raises(UserError, match="can't be read"):
        read_ledger(tmp_path / "claims.yaml")


def test_every_figure_of_the_repository_is_bound(capsys):
    """The gate itself: README.md and docs. When it fails, run `cogbench claims` (and `--fix`)."""
    code = main(["claims", "--json"])
    data = json.loads(capsys.readouterr().out)
    assert code == 0, [f for f in data["findings"] if f["status"] not in ("verified", "not measured")]
    assert {f["id"] for f in data["findings"]} >= {"original-sft-step", "cpu-paired"}
