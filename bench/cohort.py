"""Which runs may be compared: cohorts of one recipe, one kind of machine and one set of software. Pure.

What goes into each part is what these functions return, nothing else:

``recipe``    the digest of the effective recipe: what was asked for, not what the machine made of it.
``hardware``  CPU (model, instruction sets, cores, governor), memory in whole GiB, control-group limits, cards.
``software``  system, Python, packages, allow-listed variables, driver, firmware, CANN, and under ``resolved`` what
              the run found for itself: device, mode, kernels, computed dtype, decoder, codec.

``resolved`` is kept out of the recipe part, so that a run whose fast kernels silently could not be built asks to be
compared with the runs that had them, and is caught (``fallback``). The commit is in no part: it is what is judged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.record import Record

# Notes of a run in which the machine's own choices are written down.
RESOLVED_NOTES = ("runtime", "computed_dtype", "decoder", "codec")
_SOFTWARE = ("os", "python", "packages")
_ASCEND = ("driver", "firmware", "cann")


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """The recipe's digest and two plain nested profiles."""

    recipe: str
    hardware: dict[str, Any]
    software: dict[str, Any]

    @property
    def key(self) -> str:
        """sha256 over all three parts."""
        return _digest([self.recipe, self.hardware, self.software])

    def data(self) -> dict[str, Any]:
        """For a file: the profiles and the digest of each part."""
        digests = {"hardware_digest": _digest(self.hardware), "software_digest": _digest(self.software)}
        return {"key": self.key, "recipe_digest": self.recipe, **digests, **vars(self)}


def cohort_of(parts: Sequence[tuple[str, Record]]) -> Cohort:
    """The cohort of one run: its records with their labels, a pipeline's own record first (label "")."""
    head = parts[0][1]
    software = _software(head) | {"resolved": {label or "run": found for label, r in parts if (found := _resolved(r))}}
    return Cohort(recipe=head.recipe_digest, hardware=_hardware(head), software=software)


def cohort_from(data: Mapping[str, Any]) -> Cohort:
    """The cohort that ``Cohort.data`` wrote."""
    return Cohort(recipe=data["recipe"], hardware=data["hardware"], software=data["software"])


def _hardware(record: Record) -> dict[str, Any]:
    environment = record.environment
    memory = dict(environment.get("memory") or {})
    # Kernels keep different amounts for themselves: machines of one kind differ by some MiB.
    if total := memory.pop("total_bytes", None):
        memory["total_gib"] = round(total / 2**30)
    return {"cpu": environment.get("cpu"), "memory": memory, "cards": (environment.get("ascend") or {}).get("cards")}


def _software(record: Record) -> dict[str, Any]:
    environment = record.environment
    found = {key: environment.get(key) for key in _SOFTWARE}
    ascend = environment.get("ascend") or {}
    return found | {"variables": environment.get("variables"), "ascend": {key: ascend.get(key) for key in _ASCEND}}


def _resolved(record: Record) -> dict[str, Any]:
    return {key: record.notes[key] for key in RESOLVED_NOTES if key in record.notes}


def differences(a: Cohort, b: Cohort) -> list[str]:
    """``software.packages.numpy: 1.26.4 -> 1.26.5`` for each value that differs; empty within one cohort."""
    return [f"{key}: {_text(old)} -> {_text(new)}" for key, old, new in _changes(vars(a), vars(b))]


def recipe_changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """``train.steps: 20 -> 40`` for each value of two effective recipes that differs, labels left out."""
    labels = ("name", "description", "output")
    found = _changes(dict(a), dict(b))
    return [f"{key}: {_text(old)} -> {_text(new)}" for key, old, new in found if key.split(".")[0] not in labels]


def fallback(a: Cohort, b: Cohort) -> list[str]:
    """The differences, if all of them lie in what the run resolved for itself: same machine, same versions, other code.

    A package that is missing or of another version explains other kernels; without one they are a finding.
    """
    found = differences(a, b)
    return found if found and all(line.startswith("software.resolved.") for line in found) else []


def _changes(a: Any, b: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = [*a, *(key for key in b if key not in a)]
        missing = "(absent)"
        return [
            change
            for key in keys
            for change in _changes(a.get(key, missing), b.get(key, missing), f"{prefix}.{key}" if prefix else str(key))
        ]
    return [] if a == b else [(prefix, a, b)]


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
