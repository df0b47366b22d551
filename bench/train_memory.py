"""``python -m bench.train_memory``: peak memory of a training step beside diffusers with torch, on the CPU.

The same weights, batch and optimiser (``recipes/cpu/train_sft_recompute.yaml``: AdamW, all blocks recomputed, and the
same with a larger model and with more tokens), each code in a process of its own, one at a time. The first step of
graph mode compiles: its mark is in a column of its own, and what stays resident after it beside that. Exit code 1
where the leanest of ours that clips as diffusers' usual step does needs more than the goal's share of its peak.
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
# What is most of the peak: name -> --set values.
SIZES: dict[str, list[str]] = {
    "6 blocks, 512 wide, 352 tokens": [],
    "12 blocks, 1024 wide, 352 tokens": ["model.num_layers=12", "model.num_attention_heads=16"],
    "6 blocks, 512 wide, 2752 tokens": ["video.height=256", "video.width=384", "video.frames=49"],
}
_CLIPPED, _UNCLIPPED = ["train.optimizer_in_backward=true"], "train.max_grad_norm=null"
_IN_BACKWARD = [*_CLIPPED, _UNCLIPPED]
# name -> (code, --set values).
CASES: dict[str, tuple[str, list[str]]] = {
    REFERENCE: ("diffusers", []),
    "ours, PyNative": ("ours", ["runtime.mode=pynative"]),
    "ours, graph mode": ("ours", ["runtime.mode=graph"]),
    "diffusers, nothing recomputed": ("diffusers", ["train.recompute=none"]),
    "ours, PyNative, nothing recomputed": ("ours", ["runtime.mode=pynative", "train.recompute=none"]),
    "diffusers, optimiser in the backward pass": ("diffusers", _IN_BACKWARD),
    "ours, PyNative, optimiser in the backward pass": ("ours", ["runtime.mode=pynative", *_IN_BACKWARD]),
    "diffusers, optimiser in the backward pass, clipped": ("diffusers", _CLIPPED),
    "ours, PyNative, optimiser in the backward pass, clipped": ("ours", ["runtime.mode=pynative", *_CLIPPED]),
}
# Where a quarter of the tokens is a piece worth having. diffusers' blocks have no pieces.
MANY_TOKENS = "6 blocks, 512 wide, 2752 tokens"
_PIECES = ["runtime.mode=pynative", "train.feed_forward_chunk=688"]
OF_MANY_TOKENS: dict[str, tuple[str, list[str]]] = {
    "ours, PyNative, feed-forward in 4 pieces": ("ours", _PIECES),
    "ours, graph mode, feed-forward in 4 pieces": ("ours", ["runtime.mode=graph", *_PIECES[1:]]),
    "ours, PyNative, nothing recomputed, feed-forward in 4 pieces": ("ours", [*_PIECES, "train.recompute=none"]),
    "ours, PyNative, optimiser in the backward pass, feed-forward in 4 pieces": ("ours", [*_PIECES, *_IN_BACKWARD]),
    "ours, PyNative, optimiser in the backward pass, clipped, feed-forward in 4 pieces": (
        "ours",
        [*_PIECES, *_CLIPPED],
    ),
}
PLAIN, COMPILED = "ours, PyNative", "ours, graph mode"


def _child(job: dict[str, Any], env: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.train_memory_child", json.dumps(job)], cwd=job["folder"], env=env,
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"the child ended with {done.returncode}: {done.stderr[-500:]}")
    return json.loads(lines[-1])


def cases_of(size: str) -> dict[str, tuple[str, list[str]]]:
    """The cases that are measured at a size."""
    return CASES | OF_MANY_TOKENS if size == MANY_TOKENS else CASES


def measure(
    recipe: Path = RECIPE, overrides: list[str] | None = None, size: str = "", known: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The marks of every case of one size, which is only named; those that are ``known`` are not measured again.

    Raises:
        RuntimeError: a process died; with the end of its messages.
    """
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = open_recipe(recipe, overrides or []).data
        _child({"code": "write", "recipe": base, "folder": folder}, environment_of(base, "ours"))
        for name, (code, values) in cases_of(size).items():
            if known is not None and name in known:
                found[name] = known[name]
                continue
            data = open_recipe(recipe, [*(overrides or []), *values]).data
            found[name] = _child({"code": code, "recipe": data, "folder": folder}, environment_of(data, code))
            print(f"measured {size} {name}", file=sys.stderr, flush=True)
    return found


def above(row: Mapping[str, Any]) -> int:
    """Bytes of a later step above what was resident with the model loaded, before there was any optimiser state."""
    return row["steady"] - row["loaded"]


def failures(stored: Mapping[str, Any], goal: float = GOAL) -> list[str]:
    """What is above the goal, or missing."""
    found = []
    for size in SIZES:
        rows = stored.get(size, {})
        if missing := [f"{size}: {name}: not measured" for name in cases_of(size) if name not in rows]:
            found += missing
            continue
        name, ratio = leanest(rows)
        if ratio > goal:
            found.append(f"{size}: {name}: {ratio:.2f} of diffusers' peak, the goal is {goal:g}")
    return found


def leanest(rows: Mapping[str, Any]) -> tuple[str, float]:
    """Which of ours needs least, of those that clip like it, and its share of the peak of diffusers' usual step."""
    every = (CASES | OF_MANY_TOKENS).items()
    clip = [name for name, (code, values) in every if name in rows and code == "ours" and _UNCLIPPED not in values]
    name = min(clip, key=lambda n: rows[n]["steady"])
    return name, rows[name]["steady"] / rows[REFERENCE]["steady"]


def pairs(stored: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """Of each size: a name, our peak and diffusers'; plain, and the leanest of ours."""
    found = []
    for size, rows in stored.items():
        theirs = rows[REFERENCE]["steady"]
        found.append((f"training step, recomputed, {size}", rows[PLAIN]["steady"], theirs))
        name, _ = leanest(rows)
        how = name.removeprefix(PLAIN).removeprefix(", ")
        found.append((f"the same, {how or 'nothing changed'}, {size}", rows[name]["steady"], theirs))
    return found


def table(stored: Mapping[str, Any]) -> str:
    """Markdown; under it what the graph compiler needs for itself."""
    lines = [
        "| training step | loaded, MiB | first step, MiB | resident after it | later steps, MiB | of diffusers' | "
        "above loaded | of diffusers' |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    below = []
    for size, rows in stored.items():
        theirs = rows[REFERENCE]
        for name, row in rows.items():
            marks = [f"{row[key] / MIB:.0f}" for key in ("loaded", "first", "after first", "steady")]
            ratios = row["steady"] / theirs["steady"], above(row) / above(theirs)
            cells = f"{' | '.join(marks)} | {ratios[0]:.2f} | {above(row) / MIB:.0f} | {ratios[1]:.2f}"
            lines.append(f"| {size}: {name} | {cells} |")
        more = [(rows[COMPILED][key] - rows[PLAIN][key]) / MIB for key in ("first", "steady")]
        text = f"above PyNative {more[0]:+.0f} MiB in the first step, {more[1]:+.0f} later"
        below.append(f"- {size}: the graph compiler and its graphs, {text}")
        name, ratio = leanest(rows)
        below.append(f"- {size}: {ratio:.2f} of diffusers' peak, the leanest of ours: {name}")
    return "\n".join([*lines, "", *below])


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.train_memory", description=__doc__)
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="of the kind paired, case train")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--stored", action="store_true", help="show the stored measurements, run nothing")
    parser.add_argument("--missing", action="store_true", help="measure only the cases that are not stored yet")
    parser.add_argument("--doc", type=Path, help="rewrite the table between the markers of this file")
    options = parser.parse_args(arguments)
    if options.stored:
        stored = json.loads(STORED.read_text(encoding="utf-8"))
    else:
        whole = options.recipe == RECIPE and not options.set
        sizes = SIZES if whole else {"as given": options.set}
        known = json.loads(STORED.read_text(encoding="utf-8")) if options.missing and whole else {}
        stored = {name: measure(options.recipe, values, name, known.get(name)) for name, values in sizes.items()}
        if whole:
            write_text(STORED, json.dumps(stored, indent=1) + "\n")
    text = table(stored)
    return finish(text, options.doc, "train-memory", failures(stored))


if __name__ == "__main__":
    sys.exit(main())
