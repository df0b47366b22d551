"""Tables of measurements that a command keeps in a file of its own (``bench/*.json``), as that command prints them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import limit_planned, load_memory, train_memory, vae_memory
from bench.plan import measured
from core.errors import UserError
from reports.claims_source import Rendered, Sources

_COMMANDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "bench/vae_memory.json": lambda stored: vae_memory.table(vae_memory.current(stored)),
    "bench/plan_measured.json": lambda stored: measured.table(stored, measured.compare(stored)),
    "bench/train_memory.json": train_memory.table,
    "bench/limit_planned.json": limit_planned.table,
    "bench/load_memory.json": load_memory.table,
}


def stored_table(claim: dict[str, Any], sources: Sources) -> Rendered:
    """What the command that owns the claim's ``stored`` file prints of it, with its formulas as they are now.

    Raises:
        UserError: no command owns the file.
    """
    name = str(claim.get("stored"))
    if name not in _COMMANDS:
        raise UserError(f"reports/claims.yaml: stored is {name!r}, need one of {', '.join(_COMMANDS)}")
    path = Path(sources.root, name)
    if not path.is_file():
        return Rendered(text=None, reason=f"no {name}", source=name)
    return Rendered(text=_COMMANDS[name](json.loads(path.read_text(encoding="utf-8"))) + "\n", source=name)
