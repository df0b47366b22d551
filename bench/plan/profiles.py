"""Hardware profiles: ``recipes/profiles/*.yaml``, each number with its source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.memory import cgroup_limit
from core.errors import UserError

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "profiles"
QUANTITIES = {
    "memory": "bytes",
    "idle": "bytes",
    "flops_per_second": "value",
    "memory_bytes_per_second": "value",
    "link_bytes_per_second": "value",
    "efficiency": "value",
}


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One kind of card: SI numbers (bytes, FLOP/s, bytes/s; None where not known) and the source of each.

    ``idle``: bytes that driver and framework hold before the first tensor. ``efficiency``: share of the peak FLOP/s
    that a step's model FLOPs reach.
    """

    name: str
    memory: int | None
    idle: int | None
    flops_per_second: float | None
    memory_bytes_per_second: float | None
    link_bytes_per_second: float | None
    efficiency: float | None
    sources: dict[str, str]


def names() -> list[str]:
    """The profiles that are there."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def default_name(device: str) -> str:
    """The profile of a recipe's ``runtime.device`` where none is asked for."""
    return "ascend-910b-64gb" if device == "ascend" else "this-machine"


def load_profile(name: str) -> Profile:
    """Reads a profile by its name, or from a file.

    Raises:
        UserError: no such profile, a quantity is missing, of the wrong type, or has no source.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"--profile: got {name!r}, need one of {', '.join(names())}, or a YAML file")
    from ruamel.yaml import YAML  # noqa: PLC0415 - only when a profile is read

    data = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise UserError(f"{path}: got no mapping, need name and {', '.join(QUANTITIES)}")
    if unknown := set(data) - {"name", *QUANTITIES}:
        raise UserError(f"{path}: got unknown {', '.join(sorted(map(str, unknown)))}, need {', '.join(QUANTITIES)}")
    values, sources = {}, {}
    for key, unit in QUANTITIES.items():
        values[key], sources[key] = _quantity(path, key, unit, data.get(key))
    if values["memory"] is None:
        values["memory"] = _memory_here()
    return Profile(name=str(data.get("name") or path.stem), sources=sources, **values)


def _quantity(path: Path, key: str, unit: str, found: Any) -> tuple[Any, str]:
    if not isinstance(found, dict) or set(found) != {unit, "source"} or not str(found["source"] or "").strip():
        raise UserError(f"{path}: {key}: got {found!r}, need {{{unit}: number or null, source: where it is from}}")
    value = found[unit]
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
        raise UserError(f"{path}: {key}.{unit}: got {value!r}, need a number above 0, or null")
    return value, str(found["source"])


def _memory_here() -> int | None:
    import psutil  # noqa: PLC0415 - only for this machine's profile

    limit, _ = cgroup_limit()
    total = int(psutil.virtual_memory().total)
    return min(total, limit) if limit else total
