"""The tables of the VAE's memory, and that growth is refused."""

from __future__ import annotations

from typing import Any

import pytest

from bench import vae_memory
from bench.vae_memory import MIB, cases, failures, spread, table


def measured(peak: int = 1500, loaded: int = 1300, seconds: float | None = None) -> dict[str, Any]:
    """Every case with the same marks, in MiB."""
    row = {"peak": peak * MIB, "loaded": loaded * MIB, "seconds": seconds}
    tiles = {"shapes": [[1, 8, 12], [1, 6, 12]], "skipped": 7}
    return {
        group: {
            case: row | ({"job": job} | tiles if job.get("first_tiles") else {"job": job}) for case, job in jobs.items()
        }
        for group, jobs in cases().items()
    }


def test_equal_marks_are_flat() -> None:
    assert failures(measured()) == []


@pytest.mark.parametrize("group", [name for name in cases() if name.startswith("flat")])
def test_planted_growth_is_refused(group: str) -> None:
    stored = measured()
    last = list(stored[group])[-1]
    stored[group][last] = stored[group][last] | {"peak": 1500 * MIB * 111 // 100}
    assert failures(stored) == [f"{group}: the process's peak moves by 5.2 %, allowed are 5 %"]
    stored[group][last] = stored[group][last] | {"peak": 1500 * MIB * 109 // 100}
    assert failures(stored) == []


def test_a_missing_case_is_refused() -> None:
    stored = measured()
    del stored["flat in time, decode"]["161 frames"]
    assert failures(stored) == ["flat in time, decode: 161 frames: not measured"]


def test_spread_by_hand() -> None:
    assert spread([100, 100]) == 0
    assert spread([90, 100, 110]) == pytest.approx(0.1)


def test_the_table_says_what_was_not_timed_and_what_was_not_computed() -> None:
    stored = measured()
    stored["beside diffusers, decode"]["diffusers, tiling"] |= {"peak": 2500 * MIB}
    text = table(stored)
    assert "| flat in time, decode | 9 frames | 1300 | 1500 | 200 | not measured |" in text
    assert "768x1360 (2 tiles computed, one of each shape; 7 handed out as zeros)" in text
    assert "ours, tiled: 0.60 of diffusers' tiled peak, 0.17 of its bytes above loaded" in text
    assert "| 12.5 |" in table(measured(seconds=12.5))


def test_all_published_counts_of_frames_and_the_largest_size_are_cases() -> None:
    assert set(vae_memory.FRAMES) == {9, 17, 49, 161}
    assert (768, 1360) in vae_memory.SIZES
