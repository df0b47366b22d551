"""A cap on the memory of a run's process: a control group where one may be made, else a limit of its data segment.

Under a control group (v2) resident memory and page cache count, and the kernel kills what takes more. RLIMIT_DATA
counts private writable memory that was asked for, touched or not, and lets the allocation fail: a stricter measure,
which the record names. RLIMIT_AS would count the libraries and files that are mapped as well.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
from pathlib import Path
from typing import Any

from core.errors import UserError

_ROOT = Path("/sys/fs/cgroup")
_UNITS = {"MiB": 2**20, "GiB": 2**30}


def parse(text: str, what: str = "--cap") -> int:
    """Bytes of ``4GiB`` or ``512MiB``; UserError for anything else."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(MiB|GiB)", text)
    if not found or not float(found[1]):
        raise UserError(f"{what}: got {text!r}, need memory such as 4GiB or 512MiB")
    return int(float(found[1]) * _UNITS[found[2]])


def confine(limit: int, root: Path = _ROOT, groups: Path = Path("/proc/self/cgroup")) -> dict[str, Any]:
    """Caps this process at ``limit`` bytes; ``{"bytes", "by", "group"}`` says how (group: a folder to remove)."""
    if (group := _own_group(root, groups)) is not None:
        made = group / f"cogbench-{os.getpid()}"
        try:
            made.mkdir()
            (made / "memory.max").write_text(str(limit), encoding="ascii")
            with contextlib.suppress(OSError):  # no swap, or none that is counted
                (made / "memory.swap.max").write_text("0", encoding="ascii")
            (made / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
            return {"bytes": limit, "by": "cgroup v2 memory.max", "group": str(made)}
        except OSError:
            clean({"group": str(made)})
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return {"bytes": limit, "by": "RLIMIT_DATA", "group": None}


def clean(cap: dict[str, Any]) -> None:
    """Removes the control group that ``confine`` made; its process must be gone."""
    if cap["group"]:
        with contextlib.suppress(OSError):
            Path(cap["group"]).rmdir()


def _own_group(root: Path, groups: Path) -> Path | None:
    """The folder of this process's control group where memory is controlled by version 2, else None."""
    try:
        lines = groups.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    name = next((line[3:] for line in lines if line.startswith("0::")), None)
    folder = None if name is None else root / name.strip("/")
    return folder if folder is not None and (folder / "cgroup.controllers").is_file() else None
