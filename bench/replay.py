"""Two runs of one recipe, bit by bit: which step and which tensor differ first, and what else differed. Pure functions.

Compared are each step's bits (loss, gradient norm, latents, counts; never times), the digest of every tensor, the
digests of outputs and the bytes of written files. What only one of the runs has is a difference too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any, Literal

from bench.record import Record
from bench.tensors import FILE_NAME as TENSORS
from bench.tensors import Groups

What = Literal["input", "step", "tensor", "digest", "file"]
_KINDS: tuple[What, ...] = ("input", "step", "tensor", "digest", "file")
_INPUT = "input/"
# Facts about how a run computed, beside the environment proper.
_NOTES = ("runtime", "computed_dtype", "decoder")
_ENVIRONMENT = ("packages", "variables", "cpu", "python", "os", "ascend", "memory")


@dataclass(frozen=True)
class Evidence:
    """A run as it is compared: its record and its tensors (empty if the run reported none)."""

    record: Record
    tensors: Groups


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same; None: that run does not have it."""

    what: What
    name: str
    recorded: str | None
    replayed: str | None


@dataclass(frozen=True)
class Comparison:
    """``compared``: how many of each kind were held against each other; ``differences``: in the order of ``_KINDS``."""

    compared: dict[str, int]
    differences: tuple[Difference, ...]

    @property
    def identical(self) -> bool:
        """Something was compared and nothing differs."""
        return not self.differences and sum(self.compared.values()) > 0

    def first(self, what: What) -> Difference | None:
        """The first difference of a kind."""
        return next((d for d in self.differences if d.what == what), None)


def compare(recorded: Evidence, replayed: Evidence, prefix: str = "") -> Comparison:
    """Holds two runs against each other; ``prefix`` begins every name (a pipeline's stage)."""
    first_step = _first_step(recorded.record)
    old, new = recorded, replayed
    tables: dict[What, tuple[dict[str, str], dict[str, str]]] = {
        "input": (_inputs(old), _inputs(new)),
        "step": (_steps(old.record, first_step), _steps(new.record, first_step)),
        "tensor": (_tensors(old.tensors, inputs=False), _tensors(new.tensors, inputs=False)),
        "digest": (_digests(old.record, inputs=False), _digests(new.record, inputs=False)),
        "file": (_files(old.record), _files(new.record)),
    }
    compared: dict[str, int] = {what: len(one.keys() & two.keys()) for what, (one, two) in tables.items()}
    differences = tuple(found for what, (one, two) in tables.items() for found in _held_against(what, one, two, prefix))
    return Comparison(compared, differences)


def joined(parts: Iterable[Comparison]) -> Comparison:
    """The comparisons of a pipeline's stages as one, in the order of the stages."""
    parts = list(parts)
    compared = {what: sum(part.compared[what] for part in parts) for what in _KINDS}
    return Comparison(compared, tuple(found for part in parts for found in part.differences))


def comparable(evidence: Evidence) -> bool:
    """Whether the run left anything that a second run could be held against (a step without bits is nothing)."""
    record = evidence.record
    bits = any(step.loss_hex is not None or step.extra.get("latents") for step in record.steps)
    return bits or bool(evidence.tensors) or bool(record.digests) or bool(record.artifacts)


def _held_against(what: What, old: dict[str, str], new: dict[str, str], prefix: str) -> Iterator[Difference]:
    for name in [*old, *(name for name in new if name not in old)]:
        if old.get(name) != new.get(name):
            yield Difference(what, prefix + name, old.get(name), new.get(name))


def _first_step(record: Record) -> int:
    """The step a resumed run went on with: its record has none before it, an uninterrupted run has."""
    resumed = record.notes.get("resumed")
    return int(resumed["step"]) if isinstance(resumed, dict) and "step" in resumed else 0


def _steps(record: Record, first: int) -> dict[str, str]:
    """``"step 3" -> its bits as text``; validations are steps of their own."""
    found: dict[str, str] = {}
    for step in record.steps:
        if step.index >= first:
            name = f"step {step.index}" + (" (validation)" if "eval" in step.tags else "")
            found[name] = ", ".join(f"{key} {value}" for key, value in _bits(step.model_dump()))
    return found


def _bits(step: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a step computed: a double is printed so that it can be read back exactly."""
    values = {"loss": step["loss_hex"]} | {key: step[key] for key in ("samples", "frames", "tokens")} | step["extra"]
    for key, value in values.items():
        if value is not None and not key.endswith(("seconds", "flops")):
            yield key, value.hex() if isinstance(value, float) else value


def _inputs(evidence: Evidence) -> dict[str, str]:
    return _tensors(evidence.tensors, inputs=True) | _digests(evidence.record, inputs=True)


def _tensors(groups: Groups, *, inputs: bool) -> dict[str, str]:
    return {
        f"{group}/{name}": f"{facts['dtype']}{facts['shape']} {facts['sha256']}"
        for group, tensors in groups.items()
        for name, facts in tensors.items()
        if f"{group}/".startswith(_INPUT) == inputs
    }


def _digests(record: Record, *, inputs: bool) -> dict[str, str]:
    return {n: d for n, d in record.digests.items() if n != TENSORS and n.startswith(_INPUT) == inputs}


def _files(record: Record) -> dict[str, str]:
    """Relative path -> sha256: folders that all files of the run share do not count, outputs may lie elsewhere."""
    paths = [artifact.path.replace(os.sep, "/") for artifact in record.artifacts]
    folders = [path.split("/")[:-1] for path in paths]
    shared = sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, zip(*folders, strict=False)))
    shas = (artifact.sha256 for artifact in record.artifacts)
    return {"/".join(path.split("/")[shared:]): sha for path, sha in zip(paths, shas, strict=True)}


def environment_differences(recorded: Record, replayed: Record) -> list[dict[str, Any]]:
    """``{"key", "recorded", "replayed"}`` for all that was not the same around two runs; the likeliest causes first."""
    old, new = _surroundings(recorded), _surroundings(replayed)
    keys = [*old, *(key for key in new if key not in old)]
    return [
        {"key": key, "recorded": old.get(key), "replayed": new.get(key)} for key in keys if old.get(key) != new.get(key)
    ]


def _surroundings(record: Record) -> dict[str, Any]:
    found: dict[str, Any] = {"recipe digest": record.recipe_digest}
    found |= {f"code.{key}": value for key, value in record.code.model_dump().items()}
    for name in _NOTES:
        found |= _flat(record.notes.get(name), name)
    for name in _ENVIRONMENT:
        found |= _flat(record.environment.get(name), name)
    return found


def _flat(value: Any, prefix: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for name, inner in value.items() for k, v in _flat(inner, f"{prefix}.{name}").items()}
    return {} if value is None else {prefix: value}


def certificate(
    recorded: Record, replayed: Record, comparison: Comparison | None, environment: list[dict[str, Any]]
) -> dict[str, Any]:
    """The result as JSON data; without a comparison the replay itself failed."""
    verdict = "failed" if comparison is None else "identical" if comparison.identical else "different"
    result: dict[str, Any] = {"verdict": verdict, "recorded": recorded.id, "replayed": replayed.id}
    result |= {"status": replayed.status, "reason": replayed.reason, "environment": environment}
    if comparison is not None:
        firsts = {what: comparison.first(what) for what in _KINDS}
        result |= {
            "compared": comparison.compared,
            "first": {what: asdict(found) if found else None for what, found in firsts.items()},
            "differing": {w: sum(d.what == w for d in comparison.differences) for w in _KINDS},
            "differences": [asdict(found) for found in comparison.differences],
        }
    return result


def lines(result: dict[str, Any]) -> list[str]:
    """A certificate for people."""
    shown = [f"replay of {result['recorded']}: {result['verdict'].upper()}"]
    if result["verdict"] == "failed":
        return [*shown, f"the replay ended {result['status']}: {result['reason']}", *_environment_lines(result)]
    counts = ", ".join(f"{number} {what}s" for what, number in result["compared"].items() if number)
    shown.append(f"compared: {counts}")
    for what, found in result["first"].items():
        if found:
            total = result["differing"][what]
            shown.append(f"first differing {what}: {found['name']} ({total} of {what}s differ)")
            shown += [f"  recorded: {found['recorded'] or 'absent'}", f"  replayed: {found['replayed'] or 'absent'}"]
    return [*shown, *_environment_lines(result)]


def _environment_lines(result: dict[str, Any]) -> list[str]:
    found = result["environment"]
    if not found:
        if result["verdict"] == "identical":
            return ["environment: the same"]
        hint = "replay the replay's own record: if that differs too, the run is not deterministic"
        return [f"environment: nothing that is recorded differs; {hint}"]
    head = (
        "environment, which differs:" if result["verdict"] != "identical" else "environment (equal bits all the same):"
    )
    rows = (f"  {d['key']}: {_short(d['recorded'])} -> {_short(d['replayed'])}" for d in found)
    return [head, *rows]


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
