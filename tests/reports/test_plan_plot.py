"""The picture of a plan."""

from __future__ import annotations

from reports.plan_plot import plan_bars

PLAN = {
    "planned": True, "sizes": "a preset", "profile": "a card", "limit": 2**36,
    "phases": [
        {"name": "backward", "bytes": {"parameters": 2**33, "activations": 2**34}},
        {"name": "update", "bytes": {"parameters": 2**33}},
    ],
}  # fmt: skip


def test_phases_and_classes_are_named() -> None:
    plot = plan_bars(PLAN)
    assert plot is not None
    for text in ("backward", "update", "parameters", "activations", "GiB per rank"):
        assert text in plot.svg
    assert "64 GiB" in plot.caption


def test_nothing_is_drawn_without_a_plan() -> None:
    assert plan_bars({"planned": False, "reason": "none"}) is None
