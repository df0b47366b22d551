"""``python -m bench.limit_planned``: the boundary that ``plan`` predicts beside the one that ``limit`` finds.

A small model trains on random caches (``recipes/tiny/memory.yaml``, nothing recomputed) under caps on its data segment.
One run at the largest number of frames, without a cap, tells what the process asks for beside the plan's bytes (a small
run would not: MindSpore reserves some hundreds of MiB that it uses later); from that and the plan the largest number of
frames under each cap is predicted; ``cogbench limit`` then finds it by runs.
Exit code 1 where the two are further apart than the plan's own bound allows.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.events import FILE_NAME, last, read_events
from bench.measured_table import finish
from bench.plan.measured import BOUND
from bench.plan.memory import peak, training_phases
from bench.plan.workload import Sizes, sizes_of, training_of
from bench.recipe_access import open_recipe
from core.data.cache import EMPTY_TEXT, TextCache, VideoCache, write_text_cache, write_video_cache
from core.files import atomic_path, write_text

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "tiny" / "memory.yaml"
STORED = ROOT / "bench" / "limit_planned.json"
AXIS, FIRST, MOST = "video.frames", 5, 77
# Attention's scores, whole up to ``MOST`` frames, outgrow the process; of more frames the CPU takes them in parts.
SIZE = {"train.batch_size": 4, "video.height": 128, "video.width": 192}
CAPS = (0.7, 0.85)  # times what the run without a cap asked for
MIB = 2**20


def write_caches(folder: Path, sizes: Sizes, height: int, width: int, frames: int, tokens: int) -> list[str]:
    """A batch of clips of random latents as long as any run needs; returns the overrides that name it."""
    rng, text, video = np.random.default_rng(0), folder / "text", folder / "video"
    latents = rng.standard_normal((2, (frames - 1) // 4 + 2, 16, height // 8, width // 8), np.float32)
    caption = rng.standard_normal((tokens, sizes.transformer.text_embed_dim), np.float32)
    words = TextCache(text_emb=caption, mask=np.ones(tokens, np.uint8))
    write_text_cache(text / EMPTY_TEXT, words)
    names = [f"{index}" for index in range(SIZE["train.batch_size"])]
    clip = VideoCache(latent_mean=latents[0], latent_std=np.abs(latents[1]), fps=8.0, ori_size=(height, width))
    for name in names:
        write_text_cache(text / f"{name}.npz", words)
        write_video_cache(video / f"{name}.npz", clip)
    write_text(folder / "clips.csv", "video,caption\n" + "".join(f"{name}.mp4,random\n" for name in names))
    return [
        f"data.csv={folder / 'clips.csv'}", f"data.text_embed_folder={text}", f"data.video_embed_folder={video}",
        "train.recompute=none", "train.odd_latents=refuse", "output.folder=null",
        *(f"{key}={value}" for key, value in SIZE.items()),
    ]  # fmt: skip


def planned_peak(overrides: Sequence[str], frames: int) -> int:
    """The plan's bytes of the recipe with so many frames."""
    recipe = open_recipe(RECIPE, [*overrides, f"{AXIS}={frames}"]).recipe
    return peak(training_phases(training_of(recipe, sizes_of(recipe.model)))).total


def predicted(beside: int, cap: int, peaks: dict[int, int]) -> int | None:
    """The largest number of frames whose planned bytes, with what the process asks for ``beside`` them, fit."""
    return max((frames for frames, size in peaks.items() if beside + size <= cap), default=None)


def _free_run(folder: Path, overrides: Sequence[str]) -> int:
    """Bytes of the largest data segment of a run at the largest number of frames.

    Raises:
        RuntimeError: the run failed.
    """
    from bench.rows import Rows  # noqa: PLC0415
    from bench.runner import Job  # noqa: PLC0415

    base = Job(kind="", name="", data={}, digest="", run_dir=folder, command=("bench.limit_planned",))
    row = Rows(folder, base, memory_cap=None).make(open_recipe(RECIPE, [*overrides, f"{AXIS}={MOST}"]), 1, 1, {})
    if row.record.status not in ("ok", "unsteady"):
        raise RuntimeError(f"the run without a cap ended {row.record.status}: {row.record.reason}")
    event = last(read_events(row.folder / FILE_NAME)[0], "memory")
    assert event is not None
    return event["data_segment_peak"]


def measure(caps: Sequence[float] = CAPS) -> dict[str, Any]:
    """The run without a cap, and a search under each cap."""
    recipe = open_recipe(RECIPE, []).recipe
    tokens = recipe.text.max_length
    with tempfile.TemporaryDirectory() as name:
        sizes = sizes_of(recipe.model)
        overrides = write_caches(Path(name), sizes, SIZE["video.height"], SIZE["video.width"], MOST, tokens)
        asked = _free_run(Path(name, "free"), overrides)
        peaks = {frames: planned_peak(overrides, frames) for frames in range(FIRST, MOST + 1, 8)}
        beside, rows = asked - peaks[MOST], []
        for factor in caps:
            cap = round(factor * asked / MIB) * MIB
            guess = predicted(beside, cap, peaks)
            rows.append({"cap": cap, "predicted": guess} | _found(Path(name), overrides, cap, guess or FIRST))
            print(f"cap {cap // MIB} MiB: {rows[-1]}", file=sys.stderr, flush=True)
    return {"asked": asked, "beside": beside, "peaks": {str(f): size for f, size in peaks.items()}, "rows": rows}


def _found(folder: Path, overrides: Sequence[str], cap: int, start: int) -> dict[str, Any]:
    from bench.limit import limit_command  # noqa: PLC0415

    arguments = argparse.Namespace(
        recipe=RECIPE, set=[*overrides, f"{AXIS}={start}"], axis=AXIS, cap=f"{cap // MIB}MiB", max=MOST,
        out=folder / f"cap-{cap // MIB}", verbose=False,
    )  # fmt: skip
    _, data, _ = limit_command(arguments, ("bench.limit_planned",))
    if data["reason"]:
        print(data["reason"], file=sys.stderr, flush=True)
    probes = [[p["values"][AXIS], p["status"]] for p in data["probes"]]
    return {"found": data["largest_that_fits"], "fails": data["smallest_that_does_not"], "probes": sorted(probes)}


def failures(stored: dict[str, Any], bound: float = BOUND) -> list[str]:
    """Where the plan's bytes at the boundary that was found are further from the cap than its bound allows."""
    peaks, problems = {int(f): size for f, size in stored["peaks"].items()}, []
    for row in stored["rows"]:
        where = f"cap {row['cap'] // MIB} MiB"
        if row["found"] is None or row["fails"] is None:
            problems.append(f"{where}: no boundary was found")
            continue
        low, high = ((stored["beside"] + peaks[row[key]]) / row["cap"] for key in ("found", "fails"))
        if low > 1 + bound or high < 1 - bound:
            text = f"predicted {row['predicted']} frames, found {row['found']}"
            problems.append(f"{where}: {text}: the plan is further than {100 * bound:g} % from the cap")
    return problems


def table(stored: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| cap on the data segment, MiB | predicted largest frames | found | smallest that fails | runs |",
        "|---:|---:|---:|---:|---:|",
    ]
    for row in stored["rows"]:
        cells = [str(row["cap"] // MIB), *(str(row[key] or "-") for key in ("predicted", "found", "fails"))]
        lines.append(f"| {' | '.join(cells)} | {len(row['probes'])} |")
    asked, beside = (stored[key] / MIB for key in ("asked", "beside"))
    note = f"A run of {MOST} frames asked for {asked:.0f} MiB, {beside:.0f} of them beside the plan's bytes."
    return "\n".join([*lines, "", note])


def picture(stored: dict[str, Any], path: Path) -> None:
    """The plan's bytes over frames as a line; the runs under each cap as marks, filled where they fitted."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - seconds to import

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes: Any = figure.add_subplot()
    frames = [int(f) for f in stored["peaks"]]
    axes.plot(frames, [(stored["beside"] + s) / MIB for s in stored["peaks"].values()], label="planned")
    for index, row in enumerate(stored["rows"]):
        for fits, face in ((True, "black"), (False, "none")):
            x = [f for f, status in row["probes"] if (status != "oom") == fits]
            label = ("run that fitted" if fits else "run out of memory") if index == 0 else None
            axes.scatter(x, [row["cap"] / MIB] * len(x), facecolors=face, edgecolors="black", label=label, zorder=3)
    axes.set(xlabel="frames", ylabel="data segment, MiB", title="Memory limit: planned and found by runs")
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:] or "svg", metadata={"Date": None})


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.limit_planned", description=__doc__)
    parser.add_argument("--stored", action="store_true", help="show the stored runs, run nothing")
    parser.add_argument("--doc", type=Path, help="rewrite the table between the markers of this file")
    parser.add_argument("--caps", type=float, nargs="*", default=CAPS, metavar="TIMES")
    parser.add_argument("--picture", type=Path, help="write the figure to this .svg")
    options = parser.parse_args(arguments)
    stored = json.loads(STORED.read_text(encoding="utf-8")) if options.stored else measure(options.caps)
    if not options.stored:
        write_text(STORED, json.dumps(stored, indent=1) + "\n")
    text = table(stored)
    if options.picture:
        picture(stored, options.picture)
    return finish(text, options.doc, "limit-planned", failures(stored))


if __name__ == "__main__":
    sys.exit(main())
