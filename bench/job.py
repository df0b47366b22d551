"""One run as the parent sees it: what to do and in which folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.cluster import ONE_NODE, Nodes


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process run: ``data`` is the effective recipe, ``run_dir`` a folder without a record.

    ``recorded``: the recipe as the record shows it when it differs from what runs (``@stage`` references unresolved).
    ``time_left``: seconds that remain to the pipeline it belongs to. ``nodes``: the machines that share the run.
    ``memory_cap``: bytes that the process may take (``bench.memory_cap``). ``notes`` are added to the record's.
    ``task_module`` replaces the kind's task; only tests set it.
    """

    kind: str
    name: str
    data: dict[str, Any]
    digest: str
    run_dir: Path
    command: tuple[str, ...]
    id: str | None = None
    recorded: dict[str, Any] | None = None
    origins: dict[str, str] = field(default_factory=dict)
    repeat: int = 1
    of: int = 1
    forward: bool = False
    require_steady: bool = False
    time_left: float | None = None
    memory_cap: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    task_module: str | None = None
    nodes: Nodes = ONE_NODE

    @property
    def out(self) -> Path:
        """Absolute output folder: the recipe's ``output.folder`` or ``<run dir>/out``."""
        folder = (self.data.get("output") or {}).get("folder")
        return Path(folder).absolute() if folder else (self.run_dir / "out").absolute()

    @property
    def seed(self) -> int:
        """The recipe's seed."""
        return int(self.data.get("seed") or 0)

    @property
    def runtime(self) -> dict[str, Any]:
        """The recipe's section ``runtime``, empty without one."""
        return self.data.get("runtime") or {}
