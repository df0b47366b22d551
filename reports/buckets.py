"""Tables of the note "buckets": how a run's clips were spread over sizes, what was cut off, and what fitted none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from reports.collect import Run, finite
from reports.render import Cell, Table, missing_cell, number_cell, text_cell
from reports.tables import command_cell

_NUMBERS = (
    ("clips", "clips", 1.0, ""),
    ("batch size", "batch_size", 1.0, ""),
    ("kept", "keep_probability", 0.01, "%"),
    ("steps in the first epoch", "steps", 1.0, ""),
    ("cut off, mean", "crop_mean", 0.01, "%"),
    ("cut off, most", "crop_max", 0.01, "%"),
)
_MISSING = {
    "crop_mean": "no clip of this bucket says how it was cut",
    "crop_max": "no clip of this bucket says how it was cut",
    "batch_size": "encoding uses none",
    "keep_probability": "encoding uses none",
    "steps": "encoding has no epochs",
}


def bucket_tables(runs: Iterable[Run]) -> tuple[Table, ...]:
    """The buckets of the runs that note them, and the clips that fitted none; nothing if no run has buckets."""
    noted = [(run, note) for run in runs if isinstance(note := run.section("notes").get("buckets"), dict)]
    rows = tuple(_row(run, bucket) for run, note in noted for bucket in _dicts(note.get("buckets")))
    if not rows:
        return ()
    refused = tuple(
        (text_cell(run.label), _number(entry.get("row"), ""), text_cell(entry.get("video") or ""),
         text_cell(entry.get("reason") or "the record gives no reason"))
        for run, note in noted
        for entry in _dicts(note.get("refused"))
    )  # fmt: skip
    columns = ("run", "frames x height x width", *(title for title, *_ in _NUMBERS), "reproduce this")
    table = Table("buckets", "Buckets", columns, rows, _sentence(noted))
    if not refused:
        return (table,)
    return table, Table("refused", "Clips that fit no bucket", ("run", "row", "video", "why"), refused)


def _row(run: Run, bucket: dict[str, Any]) -> tuple[Cell, ...]:
    size = "x".join(str(bucket.get(key, "?")) for key in ("frames", "height", "width"))
    cells = (_number(bucket.get(key), unit, scale, _MISSING.get(key, "")) for _, key, scale, unit in _NUMBERS)
    return (text_cell(run.label), text_cell(size), *cells, command_cell(run))


def _number(value: Any, unit: str, scale: float = 1.0, reason: str = "") -> Cell:
    number = finite(value)
    return missing_cell(reason, applies=False) if number is None else number_cell(number, unit, scale=scale)


def _sentence(noted: list[tuple[Run, dict[str, Any]]]) -> str:
    repeated, left = (sum(int(finite(note.get(key)) or 0) for _, note in noted) for key in ("repeated", "left_out"))
    parts = ["Cut off: the share of a picture's area that lies outside the bucket's aspect ratio."]
    if repeated:
        parts.append(f"{repeated:,} samples of first epochs repeat a clip to fill a bucket's last batch.")
    if left:
        parts.append(f"{left:,} clips were left out of a first epoch by keep probabilities.")
    return " ".join(parts)


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
