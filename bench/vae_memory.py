"""``python -m bench.vae_memory``: the VAE's memory over frames and sizes, and beside diffusers on the same weights.

The published architecture (128, 256, 256, 512 channels, three resnets a level) with random weights in fp32; each case
is a process of its own (``bench.vae_memory_child``), one at a time. Two marks of a process are given: what is resident
once the weights are loaded and touched, and the high-water mark from then on. Exit code 1 where a group that should be
flat is not, a case is missing, or the plan (``bench.plan.encoders``) is off by more than its bound.

``--timed`` writes the seconds too: only on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.child_env import full_environment
from bench.measured_table import finish
from bench.plan.encoders import vae_phase
from bench.plan.measured import BOUND as PLAN_BOUND
from core.files import write_text
from core.presets import PRESETS
from core.vae.tiling import TilingConfig

ROOT = Path(__file__).resolve().parents[1]
STORED = ROOT / "bench" / "vae_memory.json"
BOUND = 0.05
GOAL = 0.5
PATIENCE = 3600.0
MIB = 2**20

Job = dict[str, Any]


def _ours(side: str, frames: int, height: int, width: int, **more: Any) -> Job:
    job = {"code": "ours", "mode": "pynative", "side": side, "frames": frames, "height": height, "width": width}
    return job | {"resident": "none"} | more  # as the tasks load it on the CPU


def _reference(mode: str, side: str, frames: int, height: int, width: int, tiling: list[int]) -> Job:
    job = {"code": "diffusers", "mode": mode, "side": side, "frames": frames, "height": height, "width": width}
    return job | {"tiling": tiling}


SIDES = ("decode", "encode")
FRAMES = (9, 17, 49, 161)
LENGTH = (32, 48)  # H, W of the clips of many frames: 20 chunks of them on one core
TILE = [32, 48]
SIZES = ((128, 192), (256, 384), (480, 720), (768, 1360))
BESIDE = (9, 64, 96)  # frames, H, W
BESIDE_TILE = [48, 40]  # so that both codes cut such a clip into the same tiles: diffusers' need not lie on latents
# Where activations and finished tiles outweigh the weights; of the tiles two chunks are computed, the others filled.
LARGE = {"decode": ((49, 480, 720), (81, 768, 1360)), "encode": ((49, 480, 720),)}
LARGE_TILE, LARGE_CHUNKS = [96, 160], 2
OWN = "a VAE of a few kilobytes"  # what any chunk takes, whatever its size; the plan stands on it


def cases() -> dict[str, dict[str, Job]]:
    """``group -> case -> job``; all of a group that begins with ``flat`` must lie within the bound."""
    groups: dict[str, dict[str, Job]] = {}
    groups[OWN] = {side: _ours(side, *BESIDE, tiling=TILE, config="small") for side in SIDES}
    for side in SIDES:
        beside = {"ours, tiled": _ours(side, *BESIDE, tiling=BESIDE_TILE)}
        beside["ours, tiled, parameters in memory"] = _ours(side, *BESIDE, tiling=BESIDE_TILE, resident="all")
        beside["diffusers, tiling"] = _reference("tiling", side, *BESIDE, BESIDE_TILE)
        beside["ours, whole"] = _ours(side, *BESIDE)
        beside |= {f"diffusers, {m}": _reference(m, side, *BESIDE, BESIDE_TILE) for m in ("plain", "slicing")}
        groups[f"flat in time, {side}"] = {f"{n} frames": _ours(side, n, *LENGTH) for n in FRAMES}
        groups[f"flat in size, {side}"] = {
            f"{h}x{w}": _ours(side, 9, h, w, tiling=TILE, first_tiles=True) for h, w in SIZES
        }
        groups[f"beside diffusers, {side}"] = beside
        for frames, height, width in LARGE[side]:
            size = (side, frames, height, width)
            groups[f"beside diffusers, {side}, {frames} frames of {height}x{width}"] = {
                "ours, tiled": _ours(*size, tiling=LARGE_TILE, chunks=LARGE_CHUNKS),
                "diffusers, tiling": _reference("tiling", *size, LARGE_TILE) | {"chunks": LARGE_CHUNKS},
            }
    return groups


def run(job: Mapping[str, Any], weights: Path) -> dict[str, Any]:
    """Runs one child and returns what it printed.

    Raises:
        RuntimeError: it died; with the end of its messages.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "job.json")
        write_text(path, json.dumps({**job, "weights": str(weights)}))
        done = subprocess.run(
            [sys.executable, "-m", "bench.vae_memory_child", str(path)], cwd=folder,
            env=full_environment({"kind": "decode-latents"}, ROOT) | {"HF_HUB_OFFLINE": "1"},
            capture_output=True, text=True, check=False, timeout=PATIENCE,
        )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"the child ended with {done.returncode}: {done.stderr[-500:]}")
    return json.loads(lines[-1])


def measure(names: Iterable[str], stored: dict[str, Any], *, timed: bool) -> dict[str, Any]:
    """Measures the cases of the groups ``names`` that ``stored`` lacks, and writes the file after each."""
    groups = cases()
    with tempfile.TemporaryDirectory() as folder:
        for config in ("5b", "small"):
            run({"code": "write", "config": config}, Path(folder))
        for group in names:
            for case, job in groups[group].items():
                known = stored.setdefault(group, {}).get(case)
                if known is not None and known["job"] == job and (known["seconds"] is not None or not timed):
                    continue
                made = run(job, Path(folder))
                stored[group][case] = made | {"job": job, "seconds": made["seconds"] if timed else None}
                write_text(STORED, json.dumps(stored, indent=1) + "\n")
                print(f"measured {group}: {case}", file=sys.stderr, flush=True)
    return stored


def current(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The rows whose job is still what the case asks for; another job's row would be a number of another case."""
    return {
        group: {case: rows[case] for case, job in wanted.items() if case in rows and rows[case]["job"] == job}
        for group, wanted in cases().items()
        if (rows := stored.get(group))
    }


def spread(values: Sequence[float]) -> float:
    """The largest deviation from the middle between smallest and largest, as a share of it."""
    middle = (min(values) + max(values)) / 2
    return max(values) / middle - 1


def work(row: Mapping[str, Any]) -> int:
    """Bytes above what was resident once the weights were loaded."""
    return row["peak"] - row["loaded"]


def planned(row: Mapping[str, Any], own: Mapping[str, Any]) -> int | None:
    """The peak that the plan's formulas predict from what was resident once loaded; None for diffusers and ``own``.

    ``own``: the rows of ``OWN``, what a chunk takes besides what the formulas count.
    """
    job = row["job"]
    if job["code"] != "ours" or "config" in job or job["side"] not in own:
        return None
    tiles = job.get("tiling")
    phase = vae_phase(
        PRESETS["5b"].vae, "decoder" if job["side"] == "decode" else "encoder", frames=job["frames"],
        height=job["height"], width=job["width"], itemsize=4, device="cpu",
        tiling=TilingConfig(tile_height=tiles[0], tile_width=tiles[1]) if tiles else None, resident=job["resident"],
    )  # fmt: skip
    return row["loaded"] + work(own[job["side"]]) + phase.bytes["vae"] + phase.bytes["activations"]


def failures(stored: Mapping[str, Any], bound: float = BOUND) -> list[str]:
    """What a gate refuses: a group that should be flat and is not, a case that is missing."""
    found = []
    for group, wanted in cases().items():
        rows = stored.get(group, {})
        found += [f"{group}: {case}: not measured" for case in wanted if case not in rows]
        for case, row in rows.items():
            total = planned(row, stored.get(OWN, {}))
            if total is not None and abs(total / row["peak"] - 1) > PLAN_BOUND:
                found.append(f"{group}: {case}: the plan is {100 * (total / row['peak'] - 1):+.1f} % off")
        if group.startswith("flat") and len(rows) > 1:
            by = spread([row["peak"] for row in rows.values()])
            if by > bound:
                found.append(f"{group}: the process's peak moves by {100 * by:.1f} %, allowed are {100 * bound:g} %")
    return found


def table(stored: Mapping[str, Any]) -> str:
    """Markdown: every case, under each flat group its spread, under each comparison the ratios to diffusers tiled."""
    lines = [
        "| | case | loaded, MiB | planned peak, MiB | peak, MiB | above loaded, MiB | time, s |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    below = []
    for group, rows in stored.items():
        for case, row in rows.items():
            marks = (row["loaded"], planned(row, stored.get(OWN, {})), row["peak"], work(row))
            cells = ["-" if value is None else f"{value / MIB:.0f}" for value in marks]
            seconds = "not measured" if row["seconds"] is None else f"{row['seconds']:.1f}"
            lines.append(f"| {group} | {case}{_note(row)} | {' | '.join(cells)} | {seconds} |")
        if group != OWN:
            below.append(f"- {group}: {_summary(group, rows)}")
    return "\n".join([*lines, "", *below])


def _note(row: Mapping[str, Any]) -> str:
    if "computed_chunks" in row:
        return f" ({row['computed_chunks']} chunks of one tile computed, the others filled)"
    if "skipped" not in row:
        return ""
    return f" ({len(row['shapes'])} tiles computed, one of each shape; {row['skipped']} handed out as zeros)"


def _summary(group: str, rows: Mapping[str, Any]) -> str:
    if not rows:
        return "not measured"
    if group.startswith("flat"):
        peaks, works = ([f(row) for row in rows.values()] for f in (lambda row: row["peak"], work))
        return f"peak within {100 * spread(peaks):.1f} %, bytes above loaded within {100 * spread(works):.1f} %"
    theirs = rows.get("diffusers, tiling")
    if theirs is None:
        return "diffusers tiled was not measured"
    parts = []
    for case in ("ours, whole", "ours, tiled, parameters in memory", "ours, tiled"):
        if case in rows:
            peak, above = rows[case]["peak"] / theirs["peak"], work(rows[case]) / work(theirs)
            parts.append(f"{case}: {peak:.2f} of diffusers' tiled peak, {above:.2f} of its bytes above loaded")
    return "; ".join(parts) + f" (goal {GOAL:g})"


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.vae_memory", description=__doc__)
    parser.add_argument("--groups", nargs="*", default=list(cases()), choices=list(cases()), metavar="GROUP")
    parser.add_argument("--stored", action="store_true", help="show the stored measurements, run nothing")
    parser.add_argument("--missing", action="store_true", help="measure only the cases that are not stored yet")
    parser.add_argument("--timed", action="store_true", help="write the seconds, too: this machine is quiet")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--doc", type=Path, help="rewrite the table between the markers of this file")
    options = parser.parse_args(arguments)
    kept = json.loads(STORED.read_text(encoding="utf-8")) if STORED.is_file() else {}
    if not options.stored:
        old = kept if options.missing else {g: rows for g, rows in kept.items() if g not in options.groups}
        kept = measure(options.groups, old, timed=options.timed)
    stored = current(kept)
    text = table(stored)
    if options.json:
        write_text(options.json, json.dumps(stored, indent=1) + "\n")
    return finish(text, options.doc, "vae-memory", failures(stored))


if __name__ == "__main__":
    sys.exit(main())
