"""The order of these files: the longest first, so that none of them is what the others' workers wait for."""

from __future__ import annotations

from pathlib import Path

# By seconds in a run of 2026-11-25 (--durations; on busy cores, so only their order means something).
LONGEST_FIRST = (
    "test_train_four", "test_train", "test_half", "test_train_four_came", "test_train_came", "test_dealt",
    "test_launch", "test_ulysses", "test_task", "test_train_graph", "test_vae_and_traffic", "test_collectives",
    "test_train_eight", "test_nodes", "test_zero_ranks",
)  # fmt: skip


def _place(item) -> int:
    name = Path(item.path).stem
    return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)


def pytest_collection_modifyitems(items: list) -> None:
    """Sorts the tests of this folder among themselves; xdist keeps the order with --no-loadscope-reorder."""
    here = Path(__file__).parent
    places = [place for place, item in enumerate(items) if Path(item.path).parent == here]
    for place, item in zip(places, sorted((items[place] for place in places), key=_place), strict=True):
        items[place] = item
