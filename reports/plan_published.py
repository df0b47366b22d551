"""``python -m reports.plan_published``: the plan's formulas against published rows of other systems.

The published numbers enter nothing but the comparison. What each system runs was read in its source (the settings
below say where); one setting holds for all rows of a system, and where the source leaves two readings both are shown.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import flops
from bench.codes import PASS
from bench.measured_table import finish
from bench.plan.cost import communication_bytes, training_work
from bench.plan.memory import peak, training_phases
from bench.plan.profiles import load_profile
from bench.plan.workload import Training, elements
from core.configs import TransformerConfig
from core.lora_spec import DEFAULT_TARGETS, ModuleRank, adapter_table, find_layers
from core.presets import PRESETS
from core.transformer.parameters import parameter_table
from reports.published import Figure, read_published

GIB = 2**30
FACTORY, REFERENCE = "mindone cogvideox_factory", "THUDM/CogVideo finetune"
# configs/cogvideox1.5_{10,20,30}B.yaml of the factory: heads x head size x layers.
INVENTED = {"10B": (48, 96, 48), "20B": (48, 128, 48), "30B": (48, 128, 64)}
# DeepSpeed's files in finetune/configs: bf16 elements of a reduce bucket, twice because overlap_comm double buffers;
# ZeRO 3 keeps up to stage3_max_live_parameters gathered and prefetches stage3_prefetch_bucket_size.
REDUCE_BUCKETS = 2 * 2 * 500_000_000
LIVE_PARAMETERS = 2 * (1_000_000_000 + 500_000_000)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One published row: ``first`` and ``second`` are bytes by the two readings of the source."""

    name: str
    published_gb: float
    first: int
    second: int
    time: float | None = None
    work: Training | None = None


def _model(name: str) -> TransformerConfig:
    base = PRESETS["1.5-5b"].transformer
    for key, (heads, size, layers) in INVENTED.items():
        if key in name:
            return replace(base, num_attention_heads=heads, attention_head_dim=size, num_layers=layers)
    return base if "1.5" in name else PRESETS["5b"].transformer


def factory_rows(figures: Iterable[Figure]) -> list[Row]:
    """The successor's ZeRO 3 rows with a VAE cache: bf16 parameters and averages, recompute without attention.

    scripts/train_text_to_video_sft.sh: bf16, adamw_bf16, FA_RCP=False, ZeRO 3 over all cards, VAE and text caches,
    77 frames, 224 text tokens. mindone/trainers/adamw_bf16.py keeps an fp32 master (10 bytes a parameter); the
    8 and 16 card rows differ by half of 6 bytes a parameter: so both are shown, with and without the master.
    """
    rows = []
    for figure in figures:
        cells = figure.cells
        if not cells["system"].startswith(FACTORY) or cells["task"] != "sft" or "cache ON" not in cells["memory_opts"]:
            continue
        data, shards = (int(part.strip()[2:]) for part in cells["parallelism"].split(",")[0].split("x"))
        work = Training(
            config=_model(cells["model"]), frames=20, height=96, width=170, text_tokens=224, ranks=data * shards,
            sequence_parallel=shards, zero_stage=3, stored=2, computed=2, state_itemsize=2, masters=True,
            recompute="keep_attention", code="mindone",
        )  # fmt: skip
        without = replace(work, masters=False)
        memory, time = figure.number("peak_memory_gb"), figure.number("step_time_s")
        assert memory is not None, figure
        name = f"{cells['model'].split('1.5-')[1].split()[0]}, {data * shards} cards, DP{data} x SP{shards}"
        rows.append(Row(name=name, published_gb=memory, first=_peak(work), second=_peak(without), time=time, work=work))
    return rows


def reference_rows(figures: Iterable[Figure]) -> list[Row]:
    """The reference trainer's rows on the 5B models: torch, DeepSpeed, gradient checkpointing, latents encoded before.

    finetune/trainer.py: trained parameters are made fp32 and DeepSpeed's bf16 keeps fp32 masters and averages in
    shards. A LoRA's base is loaded without a type: fp32 by the loader's default (first reading) or bf16 (second).
    """
    rows = []
    for figure in figures:
        cells = figure.cells
        memory = figure.number("peak_memory_gb")
        if not cells["system"].startswith(REFERENCE) or "-5b" not in cells["model"] or memory is None:
            continue
        how = cells["parallelism"]
        if "offload" in how:
            continue
        size = (11 * 2, 96, 170) if "1.5" in cells["model"] else (13, 60, 90)
        ranks = 8 if cells["task"] == "sft" else 1
        base = Training(
            config=_model(cells["model"]), frames=size[0], height=size[1], width=size[2], text_tokens=226, ranks=ranks,
            zero_stage=int(how[-1]) if "zero" in how else 0, stored=2, computed=2, masters=cells["task"] == "sft",
            recompute="all", code="torch",
        )  # fmt: skip
        first = second = base
        buckets = REDUCE_BUCKETS + (LIVE_PARAMETERS if base.zero_stage == 3 else 0)
        if cells["task"] == "lora":
            table, buckets = parameter_table(base.config), 0
            pairs = dict.fromkeys(find_layers(table, DEFAULT_TARGETS), ModuleRank(rank=128, alpha=64.0))
            second = replace(base, lora=adapter_table(table, pairs))
            first = replace(second, stored=4)
        name = f"{cells['model']}, {cells['resolution']}x{cells['frames']}, {cells['task']} {how}"
        rows.append(Row(name=name, published_gb=memory, first=_peak(first) + buckets, second=_peak(second) + buckets))
    return rows


def _peak(work: Training) -> int:
    return peak(training_phases(work)).total


def memory_table(rows: list[Row], readings: tuple[str, str]) -> str:
    """Markdown: published (read as GiB, as both systems' sources print it), predicted and residual by both readings."""
    lines = [
        f"| row | published | {readings[0]} | residual | {readings[1]} | residual |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [f"{row.published_gb:g}"]
        for value in (row.first, row.second):
            cells += [f"{value / GIB:.1f}", f"{100 * (value / GIB / row.published_gb - 1):+.0f} %"]
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _flops(work: Training, padded: int | None) -> float:
    """Executed FLOPs of a rank; ``padded`` counts attention as if heads were that wide."""
    done = training_work(work).hardware_flops
    if padded is None or work.config.attention_head_dim >= padded:
        return done
    size = flops.Size(
        batch=work.batch, frames=work.frames, height=work.height, width=work.width, text_tokens=work.text_tokens
    )
    forward = flops.by_kind(flops.transformer(work.config, size))["attention"] / work.sequence_parallel
    # Forward, twice that backward, and the scores once more inside the fused gradient.
    return done + 3.5 * forward * (padded / work.config.attention_head_dim - 1)


def efficiency(row: Row, peak_flops: float, padded: int | None = None) -> float:
    """Share of the peak that a row's executed FLOPs reach, communication left out of the time."""
    assert row.time is not None
    assert row.work is not None
    return _flops(row.work, padded) / (peak_flops * row.time)


def time_errors(rows: list[Row], padded: int | None = None) -> dict[str, dict[str, float]]:
    """Leave-one-out: for each row that gives the factor, the relative error of every other row's predicted time."""
    errors: dict[str, dict[str, float]] = {}
    for given in rows:
        factor = efficiency(given, 1.0, padded)
        errors[given.name] = {
            other.name: _flops(other.work, padded) / factor / other.time - 1  # type: ignore[operator, arg-type]  # rows have both
            for other in rows
            if other is not given
        }
    return errors


def time_table(rows: list[Row], peak_flops: float) -> str:
    """Markdown: each row's efficiency and the errors of the others' times when this row gives the factor."""
    lines = [
        "| the row that gives the factor | s/step | factor | others, mean abs. error | worst | "
        "with heads counted as 128 wide: mean | worst |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    plain, wide = time_errors(rows), time_errors(rows, 128)
    for row in rows:
        cells = [f"{row.time:g}", f"{100 * efficiency(row, peak_flops):.1f} %"]
        for errors in (plain[row.name], wide[row.name]):
            values = [abs(value) for value in errors.values()]
            cells += [f"{100 * sum(values) / len(values):.0f} %", f"{100 * max(values):.0f} %"]
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report() -> dict[str, Any]:
    """All tables, as data."""
    figures = read_published()
    factory, reference = factory_rows(figures), reference_rows(figures)
    same = [row for row in factory if row.name.startswith("5B")]
    card = load_profile("ascend-910b-64gb").flops_per_second
    assert card is not None
    sent = {row.name: sum(communication_bytes(row.work).values()) for row in factory if row.work}
    return {
        "factory": memory_table(factory, ("10 bytes a parameter (source)", "6 bytes (no master)")),
        "reference": memory_table(reference, ("as read (LoRA: fp32 base)", "LoRA: bf16 base")),
        "times of the 5B rows": time_table(same, card),
        "times of all rows": time_table(factory, card),
        "sent_bytes": sent,
        "parameters": {row.name: elements(row.work.table) for row in factory if row.work},
        "model_efficiency": {
            row.name: training_work(row.work).model_flops / (card * row.time)
            for row in factory
            if row.work and row.time
        },
    }


def published_text() -> str:
    """The tables, one below the other."""
    tables = {key: value for key, value in report().items() if isinstance(value, str)}
    return "\n\n".join(f"{name}:\n\n{table}" for name, table in tables.items())


def main(arguments: list[str] | None = None, show: Callable[[str], None] = print) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m reports.plan_published", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--doc", type=Path, help="rewrite the tables between the markers of this file")
    options = parser.parse_args(arguments)
    found = report()
    if options.json:
        show(json.dumps(found, indent=1))
        return PASS
    for name, value in found["model_efficiency"].items():
        show(f"{name}: {100 * value:.1f} % of the profile's peak in model FLOPs")
    return finish(published_text(), options.doc, "plan-published", [])


if __name__ == "__main__":
    sys.exit(main())
