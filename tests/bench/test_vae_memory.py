"""The tables of the VAE's memory, and that growth is refused."""

from __future__ import annotations

from typing import Any

import pytest

from bench import vae_memory
from bench.plan.encoders import cache_bytes
from bench.plan.pool import pool_bytes
from bench.vae_memory import MIB, cases, failures, spread, table
from core.presets import PRESETS

PLANNED = vae_memory.planned


@pytest.fixture(autouse=True)
def _no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks made up here have no formula."""
    monkeypatch.setattr(vae_memory, "planned", lambda row, own: None)


def measured(peak: int = 1400, loaded: int = 1300, seconds: float | None = None) -> dict[str, Any]:
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
    stored[group][last] = stored[group][last] | {"peak": 1400 * MIB * 111 // 100}
    assert failures(stored) == [f"{group}: the process's peak moves by 5.2 %, allowed are 5 %"]
    stored[group][last] = stored[group][last] | {"peak": 1400 * MIB * 105 // 100}
    assert failures(stored) == []


def test_a_formula_that_drifts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = measured()
    monkeypatch.setattr(vae_memory, "planned", lambda row, own: row["peak"] * 112 // 100)
    assert len([text for text in failures(stored) if "the plan" in text]) == sum(map(len, stored.values()))


def test_the_plan_of_a_case_by_hand() -> None:
    job = cases()["flat in time, decode"]["9 frames"]
    config, own = PRESETS["5b"].vae, {"decode": {"peak": 70, "loaded": 20}}
    pool = pool_bytes(config, "decoder", frames=9, height=32, width=48, batch=1, itemsize=4)
    # A kernel of 512 channels and what is packed of its input; two pieces of pixels.
    kernels, pixels = 512 * 512 * 27 * 4 + 512 * 3 * 4 * 6 * 4, 2 * 9 * 3 * 32 * 48 * 4
    cached = cache_bytes(config, "decoder", 32, 48, 4)
    assert PLANNED({"job": job, "loaded": 1000}, own) == 1000 + 50 + pool + kernels + cached + pixels
    assert PLANNED({"job": job, "loaded": 1000}, {}) is None
    assert PLANNED({"job": cases()["beside diffusers, decode"]["diffusers, plain"], "loaded": 1000}, own) is None


def test_a_missing_case_is_refused() -> None:
    stored = measured()
    del stored["flat in time, decode"]["161 frames"]
    assert failures(stored) == ["flat in time, decode: 161 frames: not measured"]


def test_spread_by_hand() -> None:
    assert spread([100, 100]) == 0
    assert spread([90, 100, 110]) == pytest.approx(0.1)


def test_the_table_says_what_was_not_timed_and_what_was_not_computed() -> None:
    stored = measured()
    stored["beside diffusers, decode"]["diffusers, tiling"] |= {"peak": 2800 * MIB}
    text = table(stored)
    assert "| flat in time, decode | 9 frames | 1300 | - | 1400 | 100 | not measured |" in text
    assert "768x1360 (2 tiles computed, one of each shape; 7 handed out as zeros)" in text
    assert "ours, tiled: 0.50 of diffusers' tiled peak, 0.07 of its bytes above loaded" in text
    assert "| 12.5 |" in table(measured(seconds=12.5))


def test_all_published_counts_of_frames_and_the_largest_size_are_cases() -> None:
    assert set(vae_memory.FRAMES) == {9, 17, 49, 161}
    assert (768, 1360) in vae_memory.SIZES
