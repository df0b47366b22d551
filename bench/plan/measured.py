"""``python -m bench.plan.measured``: the plan against high-water marks of processes on this machine's CPU.

Each case trains a small model with random tensors in a process of its own (``bench.plan.child``), or in several ranks,
one case at a time. Measured is the high-water mark of its second step, of ranks the largest; predicted is the mark of
the same process with a model of a few kilobytes (of as many ranks), and the plan's bytes. Exit code 1 where a residual
exceeds the bound.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.child_env import full_environment
from bench.cluster import FOLDER, ONE_NODE, cluster_of, msrun_command
from bench.lifeline import PARENT
from bench.measured_table import finish
from bench.plan.encoders import text_phase
from bench.plan.memory import peak, state_classes, training_phases
from bench.plan.workload import Sizes, training_of
from bench.recipe_access import open_recipe
from core.files import write_text
from core.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "tiny" / "memory.yaml"
STORED = ROOT / "bench" / "plan_measured.json"
CHILD = "bench.plan.child"
BOUND = 0.10
PATIENCE = 900.0
_BIG = {"num_attention_heads": 8, "attention_head_dim": 64, "num_layers": 8, "time_embed_dim": 256}
_SMALL = {"num_attention_heads": 4, "attention_head_dim": 64, "num_layers": 2, "time_embed_dim": 32}
_NONE = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1, "time_embed_dim": 32}
_FEW = ["video.frames=5", "video.height=64", "video.width=64"]
_CAME = ["optimizer.name=came", "optimizer.betas=[0.9,0.99,0.999]", "optimizer.eps=[1e-8,1e-8]"]
_LORA = ["train.method=lora", "lora.rank=16"]
_IN_BACKWARD = ["train.optimizer_in_backward=true", "train.max_grad_norm=null"]
_RANKS = ["runtime.workers=2"]
# name -> (transformer's sizes, --set values).
CASES: dict[str, tuple[dict[str, int], list[str]]] = {
    "EMA": (_BIG, [*_FEW, "ema.decay=0.99"]),
    "LoRA rank 16": (_BIG, _LORA),
    "4 blocks": (_BIG | {"num_layers": 4}, []),
    "base: 8 blocks, width 512": (_BIG, []),
    "16 blocks, few tokens": (_BIG | {"num_layers": 16}, _FEW),
    "29 frames": (_BIG, ["video.frames=29"]),
    "61 frames": (_BIG, ["video.frames=61"]),
    "384x384": (_SMALL, ["video.frames=29", "video.height=384"]),
    "batch 2": (_SMALL, ["video.height=384", "train.batch_size=2"]),
    "2 micro-batches": (_BIG, ["train.gradient_accumulation_steps=2"]),
    "recompute none": (_BIG, ["train.recompute=none"]),
    "recompute keep_attention": (_BIG, ["train.recompute=keep_attention"]),
    "recompute every 2nd": (_BIG, ["train.recompute_every=2"]),
    "61 frames, feed-forward in 4 pieces": (_BIG, ["video.frames=61", "train.feed_forward_chunk=784"]),
    "recompute none, feed-forward in 4 pieces": (_BIG, ["train.recompute=none", "train.feed_forward_chunk=300"]),
    "CAME": (_BIG | {"num_layers": 16}, [*_FEW, *_CAME]),
    "optimiser in the backward pass": (_BIG | {"num_layers": 16}, [*_FEW, *_IN_BACKWARD]),
    "optimiser in the backward pass, clipped": (_BIG | {"num_layers": 16}, [*_FEW, _IN_BACKWARD[0]]),
    **{f"2 ranks, ZeRO {n}": (_BIG, [*_RANKS, f"parallel.zero_stage={n}"]) for n in range(4)},
    "2 ranks on a sample, ZeRO 2": (_BIG, [*_RANKS, "parallel.zero_stage=2", "parallel.sequence_parallel=2"]),
}


IN_RANKS = frozenset(name for name, (_, values) in CASES.items() if _RANKS[0] in values)
# The text encoder's sizes, texts and tokens of each; the plan is compared with a process of a few kilobytes' encoder.
TEXT_NONE: tuple[dict[str, int], int, int] = ({}, 1, 8)
_T5 = {"d_model": 512, "d_kv": 64, "num_heads": 8, "num_layers": 4}
TEXT_CASES: dict[str, tuple[dict[str, int], int, int]] = {
    "text: 4 of 1024 tokens": (_T5 | {"d_ff": 1024}, 4, 1024),
    "text: 32 of 128, wide": (_T5 | {"d_ff": 4096}, 32, 128),
    "text: 8 of 226, 8 layers": ({"d_model": 1024, "d_kv": 64, "num_heads": 16, "d_ff": 2816, "num_layers": 8}, 8, 226),
    "text: 8 of 300, 6 layers": ({"d_model": 768, "d_kv": 64, "num_heads": 12, "d_ff": 2048, "num_layers": 6}, 8, 300),
}


def predicted_text(name: str) -> dict[str, Any]:
    """Peak and live bytes of one case of the text encoder."""
    sizes, batch, tokens = TEXT_CASES[name]
    config = replace(PRESETS["tiny-1.5"].text, **sizes)
    phase = text_phase(config, batch=batch, tokens=tokens, itemsize=4, device="cpu")
    return {"peak": phase.total, "phase": phase.name, "live": {"parameters": phase.bytes["parameters"]}}


def predicted(name: str) -> dict[str, Any]:
    """Peak, its classes, and the live bytes of one case, from its recipe."""
    shape, overrides = CASES[name]
    recipe = open_recipe(RECIPE, overrides).recipe
    preset = PRESETS[recipe.model.preset]
    sizes = Sizes(transformer=replace(preset.transformer, **shape), vae=preset.vae, text=preset.text, source="the case")
    work = training_of(recipe, sizes)
    held, phases = state_classes(work), training_phases(work)
    highest = peak(phases)
    live = {name: held[name] for name in ("parameters", "masters", "optimizer") if name in held}
    gradients = next(phase.bytes["gradients"] for phase in phases if phase.name == "optimiser update")
    return {
        "peak": highest.total,
        "phase": highest.name,
        "live": live | {"gradients": gradients, "ema": held.get("ema", 0)},
    }


def measure(shape: dict[str, int], overrides: list[str]) -> dict[str, Any]:
    """Trains in a child and returns its marks and live bytes; in ZeRO stage 3 from a checkpoint, as the task does."""
    job = {"what": "train", "transformer": shape, "steps": 2}
    if "parallel.zero_stage=3" not in overrides:
        return _child(job, overrides)
    with tempfile.TemporaryDirectory() as weights:
        _child({"what": "write", "transformer": shape, "weights": weights}, [])
        return _child(job | {"weights": weights}, overrides)


def measure_text(sizes: dict[str, int], batch: int, tokens: int) -> dict[str, Any]:
    """Encodes in a child and returns its marks and live bytes."""
    return _child({"what": "text", "text": sizes, "batch": batch, "tokens": tokens}, [])


def _child(job: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """What one child wrote, or of several ranks the largest of each number.

    Raises:
        RuntimeError: one died; with the end of its messages.
    """
    loaded = open_recipe(RECIPE, overrides)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder / "job.json", json.dumps(job | {"recipe": loaded.data}))
        cluster = cluster_of(loaded.data["runtime"], ONE_NODE)
        command = [sys.executable, "-m", CHILD, name] if cluster is None else msrun_command(cluster, folder, CHILD)
        done = subprocess.run(
            command, cwd=folder, env=full_environment(loaded.data, ROOT) | {PARENT: str(os.getpid())},
            capture_output=True, text=True, check=False, timeout=PATIENCE,
        )  # fmt: skip
        marks = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("marks-*.json"))]
        if done.returncode or len(marks) != loaded.recipe.runtime.workers:
            logs = "".join(path.read_text(errors="replace")[-500:] for path in (folder / FOLDER).glob("worker_*.log"))
            raise RuntimeError(f"the child ended with {done.returncode}: {done.stderr[-500:]}{logs}")
    return {part: {key: max(m[part][key] for m in marks) for key in marks[0][part]} for part in ("phases", "live")}


def measure_all(names: Iterable[str], stored: dict[str, Any] | None = None) -> dict[str, Any]:
    """Measures the cases and stores the file after each; with ``stored`` only those that it lacks."""
    if stored is None:
        tiny = measure(_NONE, _FEW)["phases"]
        stored = {"empty": tiny["empty"], "baseline": max(tiny["backward"], tiny["update"]), "cases": {}}
    if "ranks" not in stored:
        tiny = measure(_NONE, [*_FEW, *_RANKS, "parallel.zero_stage=2"])["phases"]
        stored["ranks"] = max(tiny["backward"], tiny["update"])
    for name in names:
        if name in stored["cases"]:
            continue
        made = measure(*CASES[name])
        marks = made["phases"]
        stored["cases"][name] = {"peak": max(marks["backward"], marks.get("update", 0)), "live": made["live"]}
        write_text(STORED, json.dumps(stored, indent=1) + "\n")
        print(f"measured {name}", file=sys.stderr, flush=True)
    texts = stored.setdefault("text", {"cases": {}})
    if "baseline" not in texts:
        texts["baseline"] = measure_text(*TEXT_NONE)["phases"]["text encode"]
    for name, case in TEXT_CASES.items():
        if name in texts["cases"]:
            continue
        made = measure_text(*case)
        texts["cases"][name] = {"peak": made["phases"]["text encode"], "live": made["live"]}
        write_text(STORED, json.dumps(stored, indent=1) + "\n")
        print(f"measured {name}", file=sys.stderr, flush=True)
    return stored


def _same(live: dict[str, int], plan: dict[str, int]) -> bool:
    return all(live[key] == value for key, value in plan.items())


def _near(mib: dict[str, float], plan: dict[str, int]) -> bool:
    """Live bytes that were stored in MiB with one digit."""
    return all(abs(plan[key] / 2**20 - value) <= 0.051 for key, value in mib.items())


def compare(stored: dict[str, Any]) -> list[dict[str, Any]]:
    """Predictions of the formulas as they are now beside the stored measurements."""
    rows, texts = [], stored["text"]
    alone, ranks = stored["baseline"], stored.get("ranks", 0)
    both = [(ranks if name in IN_RANKS else alone, name, made, predicted) for name, made in stored["cases"].items()]
    both += [(texts["baseline"], *item, predicted_text) for item in texts["cases"].items()]
    for baseline, name, made, formula in both:
        plan = formula(name)
        total = baseline + plan["peak"]
        equal = _same(made["live"], plan["live"]) if "live" in made else _near(made["live_mib"], plan["live"])
        rows.append(
            {
                "name": name, "predicted": total, "measured": made["peak"], "residual": total / made["peak"] - 1,
                "live_equal": equal, "phase": plan["phase"],
            }
        )  # fmt: skip
    return rows


def failures(rows: list[dict[str, Any]], bound: float = BOUND) -> list[str]:
    """What a gate refuses: a residual beyond the bound, live bytes that differ, too few cases to say anything."""
    found = [f"{r['name']}: residual {100 * r['residual']:+.1f} %" for r in rows if abs(r["residual"]) > bound]
    found += [f"{r['name']}: live bytes differ from the plan's" for r in rows if not r["live_equal"]]
    found += [f"{name}: not measured" for name in (*CASES, *TEXT_CASES) if name not in {r["name"] for r in rows}]
    return found + ([f"{len(rows)} cases, need 12"] if len(rows) < 12 else [])


def table(stored: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| case | predicted, MiB | measured, MiB | residual | peak in | live bytes |",
        "|---|---:|---:|---:|---|---|",
    ]
    for row in rows:
        cells = [f"{row[key] / 2**20:.0f}" for key in ("predicted", "measured")]
        equal = "equal" if row["live_equal"] else "DIFFER"
        lines.append(
            f"| {row['name']} | {' | '.join(cells)} | {100 * row['residual']:+.1f} % | {row['phase']} | {equal} |"
        )
    empty, base = (stored[key] / 2**20 for key in ("empty", "baseline"))
    ranks = f"in each of two ranks {stored.get('ranks', 0) / 2**20:.0f}"
    text = f"an encoder of a few kilobytes {stored['text']['baseline'] / 2**20:.0f} MiB"
    step = f"with a step of a model of a few kilobytes {base:.0f} ({ranks})"
    return "\n".join([*lines, "", f"Empty process {empty:.0f} MiB, {step}, {text}."])


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.plan.measured", description=__doc__)
    parser.add_argument("--stored", action="store_true", help="compare with the stored measurements, run nothing")
    parser.add_argument("--missing", action="store_true", help="measure only the cases that are not stored yet")
    parser.add_argument("--doc", type=Path, help="rewrite the table between the markers of this file")
    options = parser.parse_args(arguments)
    kept = json.loads(STORED.read_text(encoding="utf-8")) if options.stored or options.missing else None
    stored = kept if kept is not None and options.stored else measure_all(CASES, kept)
    rows = compare(stored)
    text = table(stored, rows)
    return finish(text, options.doc, "plan-measured", failures(rows))


if __name__ == "__main__":
    sys.exit(main())
