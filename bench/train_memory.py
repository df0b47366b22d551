"""``python -m bench.train_memory``: peak memory of a training step beside diffusers with torch, on the CPU.

The same weights, batch and optimiser (``recipes/cpu/train_sft_recompute.yaml``: AdamW, all blocks recomputed), each
code in a process of its own, one at a time. The first step of graph mode compiles: its mark is in a column of its own,
and what stays resident after it beside that. Exit code 1 where ours needs more than the goal's share of diffusers'.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.measured_table import finish
from bench.paired_session import environment_of
from bench.recipe_access import open_recipe
from core.files import write_text

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "cpu" / "train_sft_recompute.yaml"
STORED = ROOT / "bench" / "train_memory.json"
GOAL = 0.8
PATIENCE = 1800.0
MIB = 2**20
REFERENCE = "diffusers, gradient checkpointing"
# name -> (code, --set values).
CASES: dict[str, tuple[str, list[str]]] = {
    REFERENCE: ("diffusers", []),
    "ours, PyNative": ("ours", ["runtime.mode=pynative"]),
    "ours, graph mode": ("ours", ["runtime.mode=graph"]),
    "diffusers, nothing recomputed": ("diffusers", ["train.recompute=none"]),
    "ours, PyNative, nothing recomputed": ("ours", ["runtime.mode=pynative", "train.recompute=none"]),
}
GATED = "ours, PyNative"


def _child(job: dict[str, Any], env: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.train_memory_child", json.dumps(job)], cwd=job["folder"], env=env,
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"the child ended with {done.returncode}: {done.stderr[-500:]}")
    return json.loads(lines[-1])


def measure(recipe: Path = RECIPE, overrides: list[str] | None = None) -> dict[str, Any]:
    """The marks of every case.

    Raises:
        RuntimeError: a process died; with the end of its messages.
    """
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = open_recipe(recipe, overrides or []).data
        _child({"code": "write", "recipe": base, "folder": folder}, environment_of(base, "ours"))
        for name, (code, values) in CASES.items():
            data = open_recipe(recipe, [*(overrides or []), *values]).data
            found[name] = _child({"code": code, "recipe": data, "folder": folder}, environment_of(data, code))
            print(f"measured {name}", file=sys.stderr, flush=True)
    return found


def above(row: Mapping[str, Any]) -> int:
    """Bytes of a later step above what was resident with the model loaded, before there was any optimiser state."""
    return row["steady"] - row["loaded"]


def failures(stored: Mapping[str, Any], goal: float = GOAL) -> list[str]:
    """What is above the goal, or missing."""
    missing = [f"{name}: not measured" for name in CASES if name not in stored]
    if missing:
        return missing
    ratio = stored[GATED]["steady"] / stored[REFERENCE]["steady"]
    return [f"{GATED}: {ratio:.2f} of diffusers' peak, the goal is {goal:g}"] if ratio > goal else []


def table(stored: Mapping[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| training step | loaded, MiB | first step, MiB | resident after it | later steps, MiB | of diffusers' | "
        "above loaded | of diffusers' |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    theirs = stored[REFERENCE]
    for name, row in stored.items():
        marks = [f"{row[key] / MIB:.0f}" for key in ("loaded", "first", "after first", "steady")]
        ratios = row["steady"] / theirs["steady"], above(row) / above(theirs)
        lines.append(f"| {name} | {' | '.join(marks)} | {ratios[0]:.2f} | {above(row) / MIB:.0f} | {ratios[1]:.2f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.train_memory", description=__doc__)
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="of the kind paired, case train")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--stored", action="store_true", help="show the stored measurements, run nothing")
    parser.add_argument("--doc", type=Path, help="rewrite the table between the markers of this file")
    options = parser.parse_args(arguments)
    if options.stored:
        stored = json.loads(STORED.read_text(encoding="utf-8"))
    else:
        stored = measure(options.recipe, options.set)
        if options.recipe == RECIPE and not options.set:
            write_text(STORED, json.dumps(stored, indent=1) + "\n")
    text = table(stored)
    return finish(text, options.doc, "train-memory", failures(stored))


if __name__ == "__main__":
    sys.exit(main())
