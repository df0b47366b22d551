"""Pairs in a report and in the README's table."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bench.recipe_access import open_recipe
from core.errors import UserError
from reports.collect import collect
from reports.paired import claimed_table, paired_tables
from tests.reports import samples

RECIPE = """schema: 1
kind: paired
name: work
case: transformer
model: {preset: tiny-1.5}
video: {height: 64, width: 64, frames: 9}
"""


def _steps(seconds: float) -> list[dict[str, Any]]:
    return [{"index": i, "seconds": seconds, "samples": 1} for i in range(6)]


def _pair(root, session: int, seconds: tuple[float, float], middle: float, **changes) -> None:
    metrics = {f"ratio_{k}": {"value": v, "unit": "1"} for k, v in (("median", middle), ("low", 1.0), ("high", 3.0))}
    metrics |= {name: {"value": 1e-6, "unit": "1"} for name in ("ratio_confidence", "output_error")}
    digest = open_recipe(root / "recipes" / "cpu" / "work.yaml", []).digest
    for side, value in zip(("ours", "diffusers"), seconds, strict=True):
        fields = {"steps": _steps(value), "recipe_digest": digest, "id": f"{session}{side}"}
        fields |= {"compile_seconds": None, "null_reasons": {"compile_seconds": "no step or stage was tagged compile"}}
        fields |= {"metrics": metrics if side == "ours" else {}} | changes
        samples.write(root / "reports" / "records" / f"work-{session}" / side, "paired", f"work.{side}", **fields)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "recipes" / "cpu"
    folder.mkdir(parents=True)
    (folder / "work.yaml").write_text(RECIPE)
    (folder / "other.yaml").write_text(RECIPE.replace("name: work", "name: other"))
    return tmp_path


def _claimed(root):
    from reports.claims_source import Sources

    return claimed_table({"recipes": "recipes/cpu"}, Sources(root))


def test_the_readme_s_table_has_a_row_for_every_recipe(root):
    _pair(root, 1, (0.2, 0.1), 2.0)
    said = _claimed(root)
    assert said.text is not None
    rows = said.text.splitlines()[2:]
    assert "| `recipes/cpu/work.yaml` | 200 ms | 100 ms | 2.00 | 1.00 to 3.00 | 1.50 GiB | 1.50 GiB | 1.0e-06 |" in rows
    assert any(row.startswith("| `recipes/cpu/other.yaml` | not measured |") for row in rows)
    assert (said.stale, said.reason) == ("", "")


def test_a_changed_recipe_makes_the_table_stale(root):
    _pair(root, 1, (0.2, 0.1), 2.0)
    (root / "recipes" / "cpu" / "work.yaml").write_text(RECIPE.replace("frames: 9", "frames: 17"))
    assert "work.yaml" in _claimed(root).stale


def test_without_records_it_says_how_to_measure(root):
    said = _claimed(root)
    assert said.text == ("Not measured yet: no records (`cogbench paired recipes/cpu --out reports/records/cpu`).\n")
    assert said.reason


def test_a_folder_without_recipes_is_refused(tmp_path):
    with pytest.raises(UserError, match="no recipes there"):
        claimed_table({"recipes": "nowhere"}, SimpleNamespace(root=tmp_path))  # type: ignore[arg-type]  # a stand-in


def test_a_report_shows_pairs_over_sessions_and_failures(root):
    _pair(root, 1, (0.2, 0.1), 2.0)
    _pair(root, 2, (0.3, 0.1), 3.0)
    (table,) = paired_tables(collect([root / "reports"]).runs)
    (row,) = table.rows
    assert [cell.text for cell in row[:5]] == ["work", "250 ms", "100 ms", "2.50", "2.00 to 3.00"]
    assert row[-2].text == "2"
    _pair(root, 3, (0.3, 0.1), 3.0, status="failed", reason="broke")
    (table,) = paired_tables(collect([root / "reports"]).runs)
    assert table.rows[0][1].text == "not measured (broke)"
    assert paired_tables(()) == ()
