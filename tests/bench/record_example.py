"""A complete record with fixed values, and the JSON Schema file that carries it; run as a module to write the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.record import Record, dump, make
from core.files import write_text

SCHEMA_FILE = Path(__file__).resolve().parents[2] / "bench" / "record.schema.json"
_COUNTERS = "MindSpore's CPU backend returns 0 for every memory counter"
_NO_CARD = "ran on the CPU: there is no card"
_FEW = "needs 9 counted steps, got 2"


def example_fields() -> dict[str, Any]:
    """Fields of a small training run on a CPU."""
    return {
        "id": "tiny-sft-0f3c2a91-20261122T101500Z-1",
        "status": "ok",
        "kind": "train",
        "name": "tiny-sft",
        "recipe": {"schema": 1, "kind": "train", "name": "tiny-sft", "seed": 7, "train": {"steps": 3}},
        "recipe_digest": "0f3c2a91" + "0" * 56,
        "origins": {"seed": "recipes/tiny/sft.yaml:4", "train.steps": "--set"},
        "command": ["cogbench", "run", "recipes/tiny/sft.yaml", "--set", "train.steps=3"],
        "started": "2026-11-22T10:15:00.250Z",
        "seconds": 12.5,
        "exit_code": 0,
        "repeat": {"index": 1, "of": 1},
        "code": {"commit": "1" * 40, "dirty": False, "digest": "2" * 64},
        "environment": {
            "cpu": {"model": "AMD EPYC", "instruction_sets": ["avx2", "avx512f"], "usable_cores": 2, "governor": None},
            "packages": {"mindspore": "2.10.0", "numpy": "1.26.4"},
            "variables": {"PYTHONHASHSEED": "7"},
            "hardware_digest": "3" * 64,
            "software_digest": "4" * 64,
        },
        "seeds": {"recipe": 7},
        "stages": [{"name": "train", "seconds": 9.0, "items": 3, "frames": 51, "process_peak_bytes": 2400000000}],
        "compile_seconds": 6.0,
        "steps": [
            {
                "index": 0,
                "seconds": 6.0,
                "loss": 1.5,
                "loss_hex": (1.5).hex(),
                "tags": ["compile"],
                "samples": 1,
                "frames": 17,
            },
            {"index": 1, "seconds": 1.0, "loss": 1.25, "loss_hex": (1.25).hex(), "samples": 1, "frames": 17},
            {"index": 2, "seconds": 2.0, "loss": 0.75, "loss_hex": (0.75).hex(), "samples": 1, "frames": 17},
        ],
        "summary": {
            "steps_counted": 2,
            "steps_excluded": 1,
            "step_seconds_median": 1.5,
            "step_seconds_min": 1.0,
            "step_seconds_max": 2.0,
            "samples_per_second": 0.75,
            "frames_per_second": 12.75,
        },
        "memory": {
            "process_peak_bytes": 2450000000,
            "process_hwm_bytes": 2440000000,
            "per_rank": [{"rank": 0, "process_peak_bytes": 2450000000}],
            "max_rank": 0,
        },
        "null_reasons": _null_reasons(),
        "digests": {"parameters": "5" * 64},
        "artifacts": [{"kind": "checkpoint", "path": "out/step-3", "sha256": "6" * 64, "meta": {"step": 3}}],
        "metrics": {"fvd": {"value": None, "unit": "1", "reason": "needs 2048 videos"}},
        "notes": {"parameters": 52000000},
    }


def _null_reasons() -> dict[str, str]:
    reasons = {"environment.cpu.governor": "no cpufreq in /sys (virtual machine or container)"}
    for field in ("device_allocated_peak_bytes", "device_reserved_peak_bytes"):
        reasons[f"memory.{field}"] = reasons[f"memory.per_rank.0.{field}"] = _COUNTERS
    reasons["summary.tokens_per_second"] = "0 of 2 counted steps say how many tokens they processed"
    reasons["summary.tokens_per_second_per_card"] = reasons["summary.tokens_per_second"]
    reasons |= dict.fromkeys(("summary.samples_per_second_per_card", "summary.frames_per_second_per_card"), _NO_CARD)
    for field in ("first_third_seconds", "last_third_seconds", "drift", "steady"):
        reasons[f"summary.{field}"] = _FEW
    return reasons


def schema_text() -> str:
    """JSON Schema of version 1 with the example record in it."""
    schema = Record.model_json_schema(mode="serialization")
    example = json.loads(dump(make(**example_fields())))
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "examples": [example]}
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    write_text(SCHEMA_FILE, schema_text())
