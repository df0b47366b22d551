"""Runs of an unchanged program on two cards, made up: seeded noise on the clock, everything else equal."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from bench import record as records
from bench.gate import MIN_NULL_RUNS, series_of
from bench.run_set import Run
from bench.timer import summarize
from recipes.digest import digest
from tests.bench.record_example import example_fields

RECIPE = {"schema": 1, "kind": "train", "name": "made-up", "seed": 7, "train": {"steps": 12}}
ALLOCATED = (40_000_000_000, 39_000_000_000)
_PHASES = {"load": 21_000_000_000, "first step": 38_000_000_000, "steady": 40_000_000_000}


def fields_of(
    rng: np.random.Generator, *, between: float = 0.01, within: float = 0.005, slower: float = 1.0
) -> dict[str, Any]:
    """Fields of a record of 12 steps around two seconds; ``between`` and ``within`` are relative deviations."""
    fields = example_fields()
    pace = 2.0 * slower * math.exp(rng.normal(0, between))
    losses = [1.5 - 0.1 * index for index in range(12)]
    steps = [
        {"index": i, "seconds": pace * math.exp(rng.normal(0, within)) * (20 if i == 0 else 1), "loss": loss,
         "loss_hex": loss.hex(), "tags": ["compile"] if i == 0 else [], "samples": 1, "frames": 17, "tokens": 9000}
        for i, loss in enumerate(losses)
    ]  # fmt: skip
    memory, reasons = _memory(rng)
    return fields | {
        "recipe": RECIPE,
        "recipe_digest": digest(RECIPE),
        "compile_seconds": steps[0]["seconds"],
        "stages": [{"name": "load", "seconds": 3.0 * math.exp(rng.normal(0, between))}],
        "steps": steps,
        "memory": memory,
        "null_reasons": {k: v for k, v in fields["null_reasons"].items() if not k.startswith(("memory", "summary"))}
        | reasons,
        "metrics": {"validation_loss": {"value": 0.5, "unit": "1"}},
        "notes": {"optimizer_state_bytes": 4_000_000_000, "runtime": {"device": "Ascend", "kernels": {"gelu": "fast"}}},
    }


def _memory(rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, str]]:
    process = [int(rng.normal(6e9, 4e6)) for _ in ALLOCATED]
    ranks = [
        {"rank": rank, "device_allocated_peak_bytes": size, "device_reserved_peak_bytes": 43 * 2**30,
         "process_peak_bytes": process[rank]}
        for rank, size in enumerate(ALLOCATED)
    ]  # fmt: skip
    phases = [
        {"name": name, "device_allocated_peak_bytes": size, "device_reserved_peak_bytes": 43 * 2**30,
         "process_peak_bytes": process[0]}
        for name, size in _PHASES.items()
    ]  # fmt: skip
    peaks = {"device_allocated_peak_bytes": max(ALLOCATED), "device_reserved_peak_bytes": 43 * 2**30}
    memory = peaks | {"process_peak_bytes": max(process), "process_hwm_bytes": max(process)}
    return memory | {"per_rank": ranks, "phases": phases, "max_rank": 0}, {}


def run_of(fields: dict[str, Any], number: int = 1) -> Run:
    """A run with these fields; the summary follows from the steps unless the fields hold one of their own."""
    steps = [records.Step(**step) for step in fields["steps"]]
    summary, reasons = summarize(steps, cards=2, no_cards_reason="")
    keep = fields.pop("keep_summary", None)
    fields = fields | {"id": f"made-up-{number}", "summary": (keep or summary.model_dump())}
    fields["null_reasons"] = fields["null_reasons"] | ({} if keep else reasons)
    return Run(path=Path(f"made-up/{number:02d}"), parts=(("", records.make(**fields)),))


def null_runs(seed: int, number: int = MIN_NULL_RUNS, **noise: float) -> list[Run]:
    """``number`` runs of an unchanged program."""
    rng = np.random.default_rng(seed)
    return [run_of(fields_of(rng, **noise), index) for index in range(1, number + 1)]


def null_series(seed: int, number: int = MIN_NULL_RUNS, **noise: float) -> dict:
    """The readings of ``null_runs``."""
    return series_of(null_runs(seed, number, **noise))
