"""The README's table of memory: predicted beside published and measured, and ours beside diffusers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench import load_memory, train_memory, vae_memory
from bench.plan import measured
from reports import plan_published
from reports.claims_source import Rendered, Sources
from reports.published import read_published
from reports.render import GIB

HEAD = "| memory, GiB | {} | {} | off by |\n|---|---:|---:|---:|"


def published_plan(claim: dict[str, Any], sources: Sources) -> Rendered:
    """What ``python -m reports.plan_published`` prints."""
    return Rendered(text=plan_published.published_text() + "\n", source="reports/published.csv")


def summary(claim: dict[str, Any], sources: Sources) -> Rendered:
    """The table, from published figures and from the files that hold this machine's measurements."""
    stored = {name: _read(sources.root / "bench" / f"{name}.json") for name in _FILES}
    if missing := [name for name, data in stored.items() if data is None]:
        return Rendered(text=None, reason=f"no bench/{missing[0]}.json", source=missing[0])
    parts = [_published(), _measured(stored["plan_measured"]), _beside(stored)]
    return Rendered(text="\n\n".join(parts) + "\n", source="reports/published.csv, bench/*.json")


_FILES = ("plan_measured", "train_memory", "vae_memory", "load_memory")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _off(predicted: float, found: float) -> str:
    return f"{100 * (predicted / found - 1):+.0f} %"


def _published() -> str:
    """Both systems by the reading that docs/design/016 prefers."""
    figures = read_published()
    lines = [HEAD.format("predicted", "published")]
    for system, rows in (
        (plan_published.FACTORY, plan_published.factory_rows(figures)),
        (plan_published.REFERENCE, plan_published.reference_rows(figures)),
    ):
        for row in rows:
            value = row.second / GIB
            cells = (f"{value:.1f}", f"{row.published_gb:g}", _off(value, row.published_gb))
            lines.append(f"| {system}: {row.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _measured(stored: dict[str, Any]) -> str:
    """Of the CPU cases the one that needs most and the one that is furthest off, of one process and of ranks."""
    lines, rows = [HEAD.format("predicted", "measured")], measured.compare(stored)
    for what, ranks in (("one process", False), ("two ranks", True)):
        chosen = [row for row in rows if (row["name"] in measured.IN_RANKS) == ranks]
        for which, key in (("largest", lambda r: r["measured"]), ("furthest off", lambda r: abs(r["residual"]))):
            row = max(chosen, key=key)
            cells = " | ".join(f"{row[name] / GIB:.2f}" for name in ("predicted", "measured"))
            text = f"| {which} of {len(chosen)} CPU cases, {what}: {row['name']} | {cells} | "
            lines.append(text + f"{_off(row['predicted'], row['measured'])} |")
    return "\n".join(lines)


def _beside(stored: dict[str, Any]) -> str:
    """Ours and diffusers', as processes on this machine."""
    lines = ["| memory, GiB | ours | diffusers | ratio |", "|---|---:|---:|---:|"]
    for name, ours, theirs in (*_vae_pairs(stored["vae_memory"]), *train_memory.pairs(stored["train_memory"])):
        lines.append(f"| {name} | {ours / GIB:.2f} | {theirs / GIB:.2f} | {ours / theirs:.2f} |")
    loading = stored["load_memory"]
    limits, grown = load_memory.limits_of(loading), loading["marks"]["loading"] - loading["marks"]["empty"]
    cells = f"{grown / GIB:.2f} | allowed: {limits['bound'] / GIB:.2f} | {grown / limits['bound']:.2f}"
    lines.append(f"| loading the {loading['preset']} transformer, fp32 to {loading['dtype']} | {cells} |")
    return "\n".join(lines)


def _vae_pairs(stored: dict[str, Any]) -> list[tuple[str, int, int]]:
    found = []
    for group, rows in vae_memory.current(stored).items():
        if "ours, tiled" in rows and "diffusers, tiling" in rows:
            name = f"VAE, tiled, {group.removeprefix('beside diffusers, ')}"
            found.append((name, rows["ours, tiled"]["peak"], rows["diffusers, tiling"]["peak"]))
    return found
