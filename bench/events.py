"""The lines a child appends to ``events.jsonl`` while it runs: what it did survives whatever happens to it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FILE_NAME = "events.jsonl"


class EventLog:
    """Appends one JSON line per event with a single write, so a crash can only cut the last line short."""

    def __init__(self, path: Path):
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, kind: str, /, **fields: Any) -> None:
        """Appends ``{"type": kind, ...}``; refuses NaN and infinity (ValueError)."""
        line = json.dumps({"type": kind, **fields}, allow_nan=False, ensure_ascii=False)
        # A file name that is not UTF-8 arrives with lone surrogates: shown as "?" rather than failing the run.
        os.write(self._file, line.encode("utf-8", "replace") + b"\n")


def read_events(path: Path) -> tuple[list[dict], bool]:
    """Events in order, and whether a line was damaged (such lines are left out)."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], False
    events: list[dict] = []
    damaged = False
    for line in filter(None, lines):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if isinstance(event, dict) and isinstance(event.get("type"), str):
            events.append(event)
        else:
            damaged = True
    return events, damaged


def last(events: list[dict], kind: str) -> dict | None:
    """The last event of a type, None when there is none."""
    return next((e for e in reversed(events) if e["type"] == kind), None)


def by_type(events: list[dict], kind: str) -> list[dict]:
    """The fields of the events of a type, in order."""
    return [found for event in events if event["type"] == kind and (found := fields_of(event)) is not None]


def fields_of(event: dict | None) -> dict | None:
    """An event without its type; None for none."""
    return None if event is None else {key: value for key, value in event.items() if key != "type"}


def inputs_failed(count: int) -> str:
    """The reason of a run that did all its work but for some inputs."""
    return f"{count} input{'s' if count > 1 else ''} could not be processed (see failures)"
