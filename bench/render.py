"""Records as short text tables for a terminal. Bytes become GiB only here; a missing value is ``-``, never 0."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.record import Record

_HEADERS = ("run", "kind", "status", "time", "step", "rate", "peak memory")
_SHOWN_FAILURES = 20


def results_table(rows: Iterable[tuple[str, Record]]) -> str:
    """One line per (label, record)."""
    from tabulate import tabulate  # noqa: PLC0415 - not needed by `cogbench check`

    body = [(label, *_cells(record)) for label, record in rows]
    return tabulate(body, headers=_HEADERS, tablefmt="simple", disable_numparse=True)


def _cells(record: Record) -> tuple[str, ...]:
    step = duration(record.summary.step_seconds_median)
    if record.summary.steady is False:
        step += " (unsteady)"
    peak = record.memory.device_allocated_peak_bytes or record.memory.process_peak_bytes
    return record.kind, record.status, duration(record.seconds), step, _rate(record), gib(peak)


def _rate(record: Record) -> str:
    for unit in ("frames", "samples", "tokens"):
        if (value := getattr(record.summary, f"{unit}_per_second")) is not None:
            return f"{value:.3g} {unit}/s"
    return "-"


def duration(seconds: float | None) -> str:
    """Seconds with a unit that keeps three digits: ``12.3 ms``, ``4.56 s``, ``12 min 3 s``."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def gib(value: int | None) -> str:
    """Bytes as GiB."""
    return "-" if value is None else f"{value / 2**30:.2f} GiB"


def memory(value: float) -> str:
    """Bytes in the unit that shows a change: MiB below one GiB."""
    return f"{value / 2**20:.1f} MiB" if abs(value) < 2**30 else f"{value / 2**30:.3f} GiB"


def problems(record: Record) -> list[str]:
    """Why a record isn't ok and which inputs failed, as lines; empty for one that is."""
    if record.status in ("ok", "skipped"):
        return []
    lines = [f"{record.status}: {record.reason}"]
    for failure in record.failures[:_SHOWN_FAILURES]:
        row = f"row {failure.row}: " if failure.row is not None else ""
        lines.append(f"  {row}{failure.item}: {failure.message}")
    if len(record.failures) > _SHOWN_FAILURES:
        lines.append(f"  and {len(record.failures) - _SHOWN_FAILURES} more, all in the record")
    return lines


def brief(record: Record) -> dict[str, Any]:
    """The fields of a record that a script reading ``--json`` wants first; the rest is in the file."""
    fields = ("id", "status", "reason", "kind", "name", "recipe_digest", "seconds", "exit_code", "signal")
    data = record.model_dump(mode="json", include={*fields, "summary", "memory", "failures", "digests", "metrics"})
    return data | {"steps": len(record.steps)}


def yaml_like(data: Any, indent: int = 0) -> Sequence[str]:
    """Nested plain data as indented lines, for people."""
    pad = "  " * indent
    lines: list[str] = []
    for key, value in data.items():
        if isinstance(value, dict) and value:
            lines += [f"{pad}{key}:", *yaml_like(value, indent + 1)]
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"{pad}{key}: {'-' if shown is None else shown}")
    return lines
