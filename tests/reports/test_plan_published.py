"""The plan's formulas against published rows: which are within 10 %, and that a changed formula is noticed."""

from __future__ import annotations

import pytest

from bench.plan import memory
from reports import plan_published
from reports.published import read_published

# Residuals above 10 % that docs/design/016 discusses; whoever changes a formula sees the list change.
FAR_OFF = {"5B, 8 cards, DP2 x SP4"}


def far_off() -> set[str]:
    """Rows of the successor whose prediction without a master is more than 10 % away."""
    rows = plan_published.factory_rows(read_published())
    assert len(rows) == 8
    return {r.name for r in rows if abs(r.second / plan_published.GIB / r.published_gb - 1) > 0.10}


def test_rows_of_the_successor() -> None:
    assert far_off() == FAR_OFF


def test_a_changed_formula_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = memory.kept_between_passes
    monkeypatch.setattr(memory, "kept_between_passes", lambda work, index: 2 * kept(work, index))
    assert far_off() != FAR_OFF


def test_one_factor_predicts_the_times_of_the_5b_rows() -> None:
    rows = [r for r in plan_published.factory_rows(read_published()) if r.name.startswith("5B")]
    errors = [abs(e) for others in plan_published.time_errors(rows).values() for e in others.values()]
    assert len(errors) == 20
    assert max(errors) < 0.10


def test_rows_of_the_reference_trainer_are_all_listed() -> None:
    rows = plan_published.reference_rows(read_published())
    assert len(rows) == 6
    assert all(row.first > 0 for row in rows)
    table = plan_published.memory_table(rows, ("a", "b"))
    assert table.count("\n") == 7
