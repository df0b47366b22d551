"""The printed table of ``bench.comm_cost``: layouts of the 8-card recipe beside the published rows."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.comm_cost import MODES, LayoutCost, Recompute, Sample, layouts, parameter_count
from core.files import write_text
from core.presets import PRESETS

_CARDS, _SEQUENCES = 8, (8, 4, 2, 1)
_SIZE = {"frames": 77, "height": 768, "width": 1360, "text": 224}
_MARKS = ("<!-- comm cost: begin -->", "<!-- comm cost: end -->")
_PUBLISHED = Path(__file__).resolve().parents[1] / "reports" / "published.csv"
# The published rows are ZeRO-3 and say "recompute"; which kind is not stated.
_STAGE = 3
_RECOMPUTE: tuple[Recompute, ...] = ("all", "keep_attention")


@dataclass(frozen=True)
class Published:
    """A published step: seconds and GB a card."""

    seconds: float
    gigabytes: float


def published_rows(path: Path = _PUBLISHED) -> dict[int, Published]:
    """mindone's ``cogvideox_factory`` on 8 cards with a VAE cache at this size, by the ranks that share a sample."""
    found = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            same = row["resolution"] == "768x1360" and row["frames"] == "77" and row["task"] == "sft"
            if not (same and row["system"].startswith("mindone cogvideox_factory") and row["devices"] == "8"):
                continue
            if row["model"] != "CogVideoX1.5-5B T2V" or "VAE cache ON" not in row["memory_opts"]:
                continue
            shards = int(row["parallelism"].split("SP")[1].split(",")[0])
            found[shards] = Published(float(row["step_time_s"]), float(row["peak_memory_gb"]))
    return found


def costs() -> list[LayoutCost]:
    """The layouts of the recipe ``ascend910/sft_768x1360x77_8p*``."""
    config = PRESETS["1.5-5b"].transformer
    return layouts(config, Sample.of(config, **_SIZE), _CARDS, _SEQUENCES)


def calibrated_rate(rows: Sequence[LayoutCost], published: dict[int, Published], recompute: Recompute) -> float:
    """FLOP/s of the published step in which a sample is not shared, all its time taken as computing."""
    alone = next(row for row in rows if row.mesh.sequence == 1)
    return alone.flops.step(recompute) / published[1].seconds


def table(flops_rate: float | None = None, link_rate: float | None = None) -> str:
    """Markdown: bytes and operations per rank and step, what was published, and times at the rates if given."""
    rows, published = costs(), published_rows()
    config = PRESETS["1.5-5b"].transformer
    sample = Sample.of(config, **_SIZE)
    lines = [
        f"CogVideoX1.5-5B, {parameter_count(config):,} parameters, {sample.video:,} video and {sample.text} text "
        f"tokens, {_CARDS} cards, one sample a group. Tokens and parameters in bf16, gradients in "
        "fp32, all blocks recomputed. Sent by each card in a step, GB = 1e9:",
        "",
        "| layout | Ulysses forward | backward | backward, recomputed | output | ZeRO-0 | ZeRO-1, 2 | ZeRO-3 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        kept, again = row.ulysses["none"], row.ulysses["all"]
        values = [
            kept.forward,
            kept.backward,
            again.backward,
            kept.output,
            *(row.zero[s, "all"].total for s in (0, 2, 3)),
        ]
        lines.append(f"| {row.name} | " + " | ".join(f"{value / 1e9:.2f}" for value in values) + " |")
    lines += [
        "",
        "Computed by each card in a step, PFLOP = 1e15, and what mindone's cogvideox_factory published (ZeRO-3):",
        "",
        "| layout | no recompute | recompute all | keep_attention | published step | published memory | "
        "samples/s of 8 cards |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        found = published[row.mesh.sequence]
        work = " | ".join(f"{row.flops.step(mode) / 1e15:.2f}" for mode in MODES)
        rate = row.mesh.data / found.seconds
        lines.append(f"| {row.name} | {work} | {found.seconds:g} s | {found.gigabytes:g} GB | {rate:.3f} |")
    lines += ["", *_against_published(rows, published)]
    if flops_rate and link_rate:
        lines += ["", *_at_rates(rows, flops_rate, link_rate)]
    return "\n".join(lines)


def _against_published(rows: Sequence[LayoutCost], published: dict[int, Published]) -> list[str]:
    """What the published times leave for messages, once DP8's rate of computing is taken for all layouts."""
    lines = [
        "If every layout computed as fast as the published DP8 step (all of that step taken as computing, whatever was "
        "computed again), the published times would leave for messages and everything else:",
        "",
        "| layout | computing | left | ZeRO-3 + Ulysses, recompute all, sent |",
        "|---|---:|---:|---:|",
    ]
    for row in rows:
        seconds = row.flops.step("all") / calibrated_rate(rows, published, "all")
        left = published[row.mesh.sequence].seconds - seconds
        sent = row.bytes_per_step("all", _STAGE) / 1e9
        lines.append(f"| {row.name} | {seconds:.2f} s | {left:+.2f} s | {sent:.1f} GB |")
    rates = ", ".join(f"{calibrated_rate(rows, published, mode) / 1e12:.1f} TFLOP/s ({mode})" for mode in _RECOMPUTE)
    return [*lines, "", f"That rate is {rates} a card, recomputed work counted."]


def _at_rates(rows: Sequence[LayoutCost], flops_rate: float, link_rate: float) -> list[str]:
    lines = [
        f"At {flops_rate / 1e12:g} TFLOP/s and {link_rate / 1e9:g} GB/s a card (given, not measured), computing and "
        "sending one after the other:",
        "",
        "| layout | ZeRO-2, all | ZeRO-3, all | ZeRO-2, keep_attention | ZeRO-3, keep_attention |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = []
        for mode in _RECOMPUTE:
            for stage in (2, 3):
                computing, sending = row.seconds(mode, stage, flops_rate, link_rate)
                cells.append(f"{computing:.2f} + {sending:.2f} s")
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, or writes it between the marks of ``--doc``."""
    parser = argparse.ArgumentParser(prog="python -m bench.comm_cost", description="Bytes and FLOPs per rank and step.")
    parser.add_argument("--flops", type=float, metavar="FLOP/s", help="a card's rate of computing")
    parser.add_argument("--link", type=float, metavar="B/s", help="what a card sends in a second")
    parser.add_argument("--doc", type=Path, metavar="FILE", help="write the table between the marks of this file")
    args = parser.parse_args(arguments)
    if (args.flops is None) != (args.link is None):
        parser.error("need --flops and --link together: a time has both parts")
    text = table(args.flops, args.link)
    if args.doc is None:
        print(text)
        return
    before, rest = args.doc.read_text(encoding="utf-8").split(_MARKS[0])
    after = rest.split(_MARKS[1])[1]
    write_text(args.doc, f"{before}{_MARKS[0]}\n{text}\n{_MARKS[1]}{after}")


if __name__ == "__main__":
    main(sys.argv[1:])
