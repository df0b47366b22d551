"""The comparison that the original promised: resolution, frames, memory, step time, throughput per card; ours first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from core.presets import PRESETS
from reports import derived
from reports.collect import Run
from reports.derived import Architecture, Derived
from reports.published import SHOWN_RESOLUTION, Figure, read_published, source_cell, stated_cell
from reports.render import GIB, Cell, Table, missing_cell, number_cell, text_cell
from reports.tables import command_cell, device

NO_CARD = "no Ascend card here"
_TERA = 1e12
# The runs that the comparison is about; a record of one of them replaces its row.
TARGETS = {
    "train": (
        ("CogVideoX1.5-5B SFT", "768x1360", 77, 8, "recipes/ascend910/sft_768x1360x77_8p.yaml"),
        ("CogVideoX1.5-5B LoRA", "768x1360", 81, 1, "recipes/ascend910/lora_768x1360x81.yaml"),
    ),
    "generate": (("CogVideoX1.5-5B", "768x1360", 81, 1, "recipes/ascend910/generate_768x1360x81.yaml"),),
}
_NOTE = (
    "Derived columns are computed here from the row's own figures: {rate}; model TFLOP/s by L (24 D² S + 4 D S²) for a "
    "forward pass of S = 226 text and the video tokens, {passes}. Published memory is printed as its source prints it "
    "(GB), ours in GiB."
)
TRAIN_NOTE = _NOTE.format(
    rate="samples per step (data-parallel degree times batch) by step time and cards",
    passes="three times that for a training step, without recomputation; with LoRA weights' products twice",
)
INFERENCE_NOTE = _NOTE.format(
    rate="card-seconds are seconds of a video times cards",
    passes="two passes a denoising step; none where the method skips work",
)


VIDEO_RATES = ("seconds per video", "card-seconds per video (derived)")


def comparison_tables(runs: Sequence[Run], figures: Sequence[Figure] | None = None) -> tuple[Table, Table]:
    """Training and inference: our records (or that there are none), then published rows, 768x1360 first."""
    known = read_published() if figures is None else figures
    training = [f for f in known if f.cells["task"] in ("sft", "lora")]
    inference = [f for f in known if f.cells["task"] == "inference"]
    return (
        _table(
            "comparison-training", "Training, beside published systems", ("samples/s per card (derived)",), TRAIN_NOTE,
            _ours(runs, "train"), [(f, _training(f)) for f in training],
        ),
        _table(
            "comparison-inference", "Inference, beside published systems", VIDEO_RATES, INFERENCE_NOTE,
            _ours(runs, "generate"), [(f, _inference(f)) for f in inference],
        ),
    )  # fmt: skip


def _table(
    key: str, title: str, rates: tuple[str, ...], note: str, ours: list[tuple[Cell, ...]],
    published: list[tuple[Figure, tuple[Cell, ...]]],
) -> Table:  # fmt: skip
    columns = (
        "system", "model", "resolution", "frames", "cards", "step time (s)", *rates, "peak memory per card",
        "model TFLOP/s per card (derived)", "card", "settings", "source",
    )  # fmt: skip
    first = tuple(row for figure, row in published if figure.shown_first or _same_size(figure))
    rest = tuple(row for figure, row in published if not (figure.shown_first or _same_size(figure)))
    return Table(
        key, title, columns, (*ours, *first), note, "nothing to compare", rest,
        f"ours and published at {SHOWN_RESOLUTION}", "all rows",
    )  # fmt: skip


def _same_size(figure: Figure) -> bool:
    return SHOWN_RESOLUTION in figure.cells["resolution"]


def _head(figure: Figure) -> tuple[Cell, ...]:
    cells = figure.cells
    return (
        text_cell(cells["system"]), text_cell(cells["model"]), stated_cell(cells["resolution"]),
        stated_cell(cells["frames"]), _printed(figure, "devices"), _printed(figure, "step_time_s"),
    )  # fmt: skip


def _tail(figure: Figure, speed: Derived) -> tuple[Cell, ...]:
    cells = figure.cells
    settings = "; ".join(cells[key] for key in ("task", "precision", "parallelism", "memory_opts") if cells[key])
    return (
        _printed(figure, "peak_memory_gb", " GB"), derived_cell(speed, _TERA), stated_cell(cells["device_type"]),
        stated_cell(settings), source_cell(cells["source_url_or_repo_path"].strip()),
    )  # fmt: skip


def _training(figure: Figure) -> tuple[Cell, ...]:
    rate = derived_cell(derived.training_rate(figure))
    return (*_head(figure), rate, *_tail(figure, derived.training_speed(figure)))


def _inference(figure: Figure) -> tuple[Cell, ...]:
    seconds = derived.seconds_per_video(figure)
    stated = missing_cell(seconds.reason, applies=False) if seconds.value is None else number_cell(seconds.value)
    rates = (stated, derived_cell(derived.card_seconds(figure)))
    return (*_head(figure), *rates, *_tail(figure, derived.inference_speed(figure)))


def derived_cell(found: Derived, scale: float = 1.0) -> Cell:
    """A computed number, or "n/a" with what the source leaves out."""
    return missing_cell(found.reason, applies=False) if found.value is None else number_cell(found.value, scale=scale)


def _printed(figure: Figure, column: str, unit: str = "") -> Cell:
    text = figure.cells[column].strip()
    if not text:
        return missing_cell("not published", applies=False)
    number = figure.number(column)
    return Cell(text + (unit if number is not None else ""), number, "number")


def _ours(runs: Iterable[Run], kind: str) -> list[tuple[Cell, ...]]:
    """Our runs of this kind; each target without one says that it was not measured and names its recipe."""
    mine = [run for run in runs if run.kind == kind and run.value("recipe.video.height") is not None]
    made = {(_resolution(run), run.value("recipe.video.frames")) for run in mine if device(run) == "ascend"}
    rows = [_absent(kind, target) for target in TARGETS[kind] if (target[1], target[2]) not in made]
    return [*(_measured(run, kind) for run in mine), *rows]


def _absent(kind: str, target: tuple[str, str, int, int, str]) -> tuple[Cell, ...]:
    model, resolution, frames, cards, recipe = target
    nothing = missing_cell(NO_CARD)
    rates = 1 if kind == "train" else 2
    return (
        text_cell("CogBench (ours)"), text_cell(model), text_cell(resolution), text_cell(frames), number_cell(cards),
        *[nothing] * (rates + 3), text_cell("Ascend 910"), text_cell("as in the recipe"), text_cell(recipe),
    )  # fmt: skip


def _measured(run: Run, kind: str) -> tuple[Cell, ...]:
    on_card = device(run) == "ascend"
    cards = run.value("recipe.runtime.workers") if on_card else 1
    where = "Ascend 910" if on_card else str(run.value("environment.cpu.model") or "CPU")
    settings = "; ".join(str(v) for v in (run.value("recipe.train.method"), run.value("recipe.runtime.dtype")) if v)
    step = run.number("summary.step_seconds_median")
    reason = run.null_reason("summary.step_seconds_median")
    found = _our_cost(run)
    head = (
        text_cell(f"CogBench (ours): {run.label}"), text_cell(_model(run)), text_cell(_resolution(run)),
        text_cell(run.value("recipe.video.frames")), number_cell(cards),
        missing_cell(reason) if step is None else number_cell(step),
    )  # fmt: skip
    rates, speed = _our_rates(run, kind, cards, step, found)
    tail = (derived_cell(speed, _TERA), text_cell(where), stated_cell(settings, "not recorded"), command_cell(run))
    return (*head, *rates, _memory(run), *tail)


def _our_rates(
    run: Run, kind: str, cards: int, step: float | None, found: tuple[Architecture, int] | None
) -> tuple[tuple[Cell, ...], Derived]:
    """Throughput cells and FLOP/s per card of one of our runs."""
    unknown = derived.no("the record does not say which sizes the model has")
    if kind == "train":
        rate = run.number("summary.samples_per_second")
        cell = missing_cell(run.null_reason("summary.samples_per_second"))
        if rate is None:
            return (cell,), derived.no("no throughput was measured")
        lora = run.value("recipe.train.method") == "lora"
        speed = Derived(value=rate / cards * derived.training_flops(*found, lora=lora)) if found else unknown
        return (number_cell(rate / cards),), speed
    seconds = _seconds_per_video(run)
    none = missing_cell("the record has no video's time")
    cells = (none, none) if seconds is None else (number_cell(seconds), number_cell(seconds * cards))
    if step is None or found is None:
        return cells, unknown if step is not None else derived.no("no step was measured")
    videos = next((s["samples"] for s in run.rows("steps") if s.get("samples")), 1)
    passes = 2 if (run.number("recipe.sampling.guidance_scale") or 1) > 1 else 1
    return cells, Derived(value=passes * videos * derived.forward_flops(*found) / step / cards)


def _seconds_per_video(run: Run) -> float | None:
    """Wall seconds of the run's stages from text to file, by the videos it made; loading is left out."""
    videos = sum(artifact.get("kind") == "video" for artifact in run.rows("artifacts"))
    inner = [s["seconds"] for s in run.rows("stages") if "/" not in str(s.get("name")) and s.get("name") != "load"]
    return sum(inner) / videos if videos and inner else None


def _resolution(run: Run) -> str:
    return f"{run.value('recipe.video.height')}x{run.value('recipe.video.width')}"


def _model(run: Run) -> str:
    """The preset, or the model folder's name; never the folder's path."""
    section: dict[str, Any] = run.value("recipe.model") or {}
    path = section.get("path") or section.get("transformer")
    return str(section.get("preset") or (str(path).rstrip("/").rpartition("/")[2] if path else "not recorded"))


def _our_cost(run: Run) -> tuple[Architecture, int] | None:
    name = _model(run)
    arch = derived.architecture(name)
    if name in PRESETS:
        config = PRESETS[name].transformer
        arch = Architecture(layers=config.num_layers, width=config.inner_dim, patch_t=config.patch_size_t or 1)
    sizes = [run.value(f"recipe.video.{key}") for key in ("height", "width", "frames")]
    if arch is None or not all(isinstance(size, int) for size in sizes):
        return None
    text = run.value("recipe.text.max_length") or derived.TEXT_TOKENS
    return arch, derived.sequence(arch, *sizes, text=text)


def _memory(run: Run) -> Cell:
    for key, name in (("device_allocated_peak_bytes", "allocated"), ("process_peak_bytes", "of the process")):
        if (value := run.number(f"memory.{key}")) is not None:
            return Cell(f"{number_cell(value, scale=GIB).text} GiB {name}", value, "number")
    return missing_cell(run.null_reason("memory.process_peak_bytes"))
