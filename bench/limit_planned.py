"""``python -m bench.limit_planned``: the boundary that ``plan`` predicts beside the one that ``limit`` finds.

A small model trains on random caches (``recipes/tiny/memory.yaml``, nothing recomputed) under a cap on its data
segment. MindSpore's pool on the CPU takes memory in blocks of 1 GiB and returns none (``empty_cache`` changes nothing),
so what a process asks for moves by blocks: a run of one sample tells what it asks for with the first block, and the cap
leaves no room for a second. Operators also take memory beside the pool (oneDNN's, for products and softmax); what they
take for a sample is the growth from a run of one sample to one of ``FEW``, in which the pool stays at its block.
Predicted is the largest batch whose planned bytes without that, with what a step of a model of a few kilobytes takes
(``bench.plan.measured``), fit into one block; ``cogbench limit`` then finds it by runs. Exit code 1 where the two are
further apart than the plan's own bound allows.
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
from bench.plan.measured import STORED as PLAN_STORED
from bench.plan.memory import peak, training_phases
from bench.plan.workload import Sizes, sizes_of, training_of
from bench.recipe_access import open_recipe
from core.data.cache import EMPTY_TEXT, TextCache, VideoCache, write_text_cache, write_video_cache
from core.files import atomic_path, write_text

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "tiny" / "memory.yaml"
STORED = ROOT / "bench" / "limit_planned.json"
FEW = 8
AXIS, MOST = "train.batch_size", 48
SIZE = {"video.frames": 29, "video.height": 128, "video.width": 192}
BLOCK = 2**30  # of MindSpore's pool on the CPU
ROOM = 0.7  # of a block, under the cap: for whatever is not in the pool
MIB = 2**20


def write_caches(folder: Path, sizes: Sizes, tokens: int) -> list[str]:
    """The largest batch of clips of random latents; returns the overrides that name them."""
    frames, height, width = SIZE.values()
    rng, text, video = np.random.default_rng(0), folder / "text", folder / "video"
    latents = rng.standard_normal((2, (frames - 1) // 4 + 2, 16, height // 8, width // 8), np.float32)
    caption = rng.standard_normal((tokens, sizes.transformer.text_embed_dim), np.float32)
    words = TextCache(text_emb=caption, mask=np.ones(tokens, np.uint8))
    write_text_cache(text / EMPTY_TEXT, words)
    names = [f"{index}" for index in range(MOST)]
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


def planned_peak(overrides: Sequence[str], batch: int) -> int:
    """The plan's bytes of the recipe with so many samples."""
    recipe = open_recipe(RECIPE, [*overrides, f"{AXIS}={batch}"]).recipe
    return peak(training_phases(training_of(recipe, sizes_of(recipe.model)))).total


def predicted(own: int, peaks: dict[int, int]) -> int | None:
    """The largest batch whose planned bytes fit into a block of the pool beside the ``own`` ones of any step."""
    return max((batch for batch, size in peaks.items() if own + size <= BLOCK), default=None)


def _free_run(folder: Path, overrides: Sequence[str], batch: int) -> int:
    """Bytes of the largest data segment of a run with so many samples and no cap.

    Raises:
        RuntimeError: the run failed.
    """
    from bench.rows import Rows  # noqa: PLC0415
    from bench.runner import Job  # noqa: PLC0415

    base = Job(kind="", name="", data={}, digest="", run_dir=folder, command=("bench.limit_planned",))
    row = Rows(folder, base, memory_cap=None).make(open_recipe(RECIPE, [*overrides, f"{AXIS}={batch}"]), 1, 1, {})
    if row.record.status not in ("ok", "unsteady"):
        raise RuntimeError(f"the run without a cap ended {row.record.status}: {row.record.reason}")
    event = last(read_events(row.folder / FILE_NAME)[0], "memory")
    assert event is not None
    return event["data_segment_peak"]


def measure() -> dict[str, Any]:
    """The run without a cap, and the search under one."""
    recipe = open_recipe(RECIPE, []).recipe
    marks = json.loads(PLAN_STORED.read_text(encoding="utf-8"))
    own = marks["baseline"] - marks["empty"]
    with tempfile.TemporaryDirectory() as name:
        overrides = write_caches(Path(name), sizes_of(recipe.model), recipe.text.max_length)
        asked, more = (_free_run(Path(name, f"free-{batch}"), overrides, batch) for batch in (1, FEW))
        beside = max(0, more - asked) // (FEW - 1)
        peaks = {batch: planned_peak(overrides, batch) - batch * beside for batch in range(1, MOST + 1)}
        cap, guess = round((asked + ROOM * BLOCK) / MIB) * MIB, predicted(own, peaks)
        row = {"cap": cap, "predicted": guess} | _found(Path(name), overrides, cap, guess or 1)
    return {"asked": asked, "beside": beside, "own": own, "peaks": {str(f): size for f, size in peaks.items()}, **row}


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
    """Where the planned bytes at the boundary that was found are further from the block than the bound allows."""
    if stored["found"] is None or stored["fails"] is None:
        return ["no boundary was found"]
    low, high = ((stored["own"] + stored["peaks"][str(stored[key])]) / BLOCK for key in ("found", "fails"))
    if low <= 1 + bound and high >= 1 - bound:
        return []
    text = f"predicted {stored['predicted']} samples, found {stored['found']}"
    return [f"{text}: the plan is further than {100 * bound:g} % from a block"]


def table(stored: dict[str, Any]) -> str:
    """Markdown."""
    found, fails = stored["found"], stored["fails"]
    cells = [f"{stored['cap'] / MIB:.0f}", *(str(value or "-") for value in (stored["predicted"], found, fails))]
    lines = [
        "| cap on the data segment, MiB | predicted largest batch | found | smallest that fails | runs |",
        "|---:|---:|---:|---:|---:|",
        f"| {' | '.join(cells)} | {len(stored['probes'])} |",
    ]
    need = [f"{key} {(stored['own'] + stored['peaks'][str(key)]) / MIB:.0f}" for key in (found, fails) if key]
    note = f"Without a cap a run of 1 sample asked for {stored['asked'] / MIB:.0f} MiB, a block of 1024 among them"
    note += f", and each further one for {stored['beside'] / MIB:.1f} beside the pool."
    return "\n".join([*lines, "", f"{note} Planned for the pool, in MiB, by batch: {', '.join(need)}."])


def picture(stored: dict[str, Any], path: Path) -> None:
    """Planned bytes over the batch and the pool's block; the runs as marks, filled where they fitted."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - seconds to import

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes: Any = figure.add_subplot()
    planned = {int(batch): (stored["own"] + size) / MIB for batch, size in stored["peaks"].items()}
    axes.plot(list(planned), list(planned.values()), color="tab:blue", label="planned")
    axes.axhline(BLOCK / MIB, color="tab:red", linestyle="--", label="what the cap leaves: one block of the pool")
    for fits, face in ((True, "black"), (False, "none")):
        x = [batch for batch, status in stored["probes"] if (status != "oom") == fits]
        label = "run that fitted" if fits else "run out of memory"
        axes.scatter(x, [planned[batch] for batch in x], facecolors=face, edgecolors="black", label=label, zorder=3)
    title = (
        f"Batch under a cap of {stored['cap'] / MIB:.0f} MiB: {stored['predicted']} predicted, {stored['found']} found"
    )
    axes.set(xlabel="samples in a batch", ylabel="MiB", title=title, ylim=(0, None))
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:] or "svg", metadata={"Date": None})


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.limit_planned", description=__doc__)
    parser.add_argument("--stored", action="store_true", help="show the stored runs, run nothing")
    parser.add_argument("--doc", type=Path, help="rewrite the table between the markers of this file")
    parser.add_argument("--picture", type=Path, help="write the figure to this .svg")
    options = parser.parse_args(arguments)
    stored = json.loads(STORED.read_text(encoding="utf-8")) if options.stored else measure()
    if not options.stored:
        write_text(STORED, json.dumps(stored, indent=1) + "\n")
    text = table(stored)
    if options.picture:
        picture(stored, options.picture)
    return finish(text, options.doc, "limit-planned", failures(stored))


if __name__ == "__main__":
    sys.exit(main())
