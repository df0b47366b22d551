"""``cogbench limit``: the largest legal value of an axis whose run fits into memory, found by real runs.

Values are tried from the recipe's own on, doubling the distance in the list of legal values, then halving between the
largest that fitted and the smallest that did not. Memory is taken to grow with the axis; the answer names both
neighbours, so that the next reader sees what was measured. A run that ends in another way decides nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import memory_cap
from bench.codes import FAILED, PASS
from bench.recipe_access import open_recipe, refuse_unsupported
from bench.render import gib
from bench.rows import Rows
from bench.runner import Job, refuse_simulation
from bench.sweep import row_data
from core.errors import UserError
from core.files import write_text

RESULT = "limit.json"
_TIMES = 16
_MOST_VALUES = 20_000
_ASKED, _PERIOD = 64, 16
_FITS = ("ok", "unsteady")


@dataclass(frozen=True)
class Found:
    """``fits``: the largest value that fitted, None if none did; ``fails``: the next one, None if none was tried."""

    fits: int | None
    fails: int | None


class UndecidedError(Exception):
    """A run that neither fitted nor ran out of memory."""


def largest(values: Sequence[int], start: int, fits: Callable[[int], bool]) -> Found:
    """The largest of the increasing ``values`` for which ``fits`` holds, by few calls: none is asked twice.

    ``fits`` must hold up to some value and not beyond it. ``start``: index to begin at.
    """
    low, high = -1, len(values)  # values[low] fits, values[high] does not
    index, step = start, max(1, start // 2)
    while low < index < high:
        if fits(values[index]):
            low, index = index, min(index + step, len(values) - 1)
        else:
            high, index = index, max(index - step, 0)
        step *= 2
        if low >= 0 and high < len(values):
            break
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(values[middle]) else (low, middle)
    return Found(values[low] if low >= 0 else None, values[high] if high < len(values) else None)


def legal_values(load: Callable[[int], Any], top: int, step: int = 1) -> list[int]:
    """Multiples of ``step`` up to ``top`` that the recipe accepts (frame rules, multiples of 16, ...).

    The first ones are asked one by one. Every rule of a recipe repeats after 16 numbers or is a largest value: the
    others follow from that, and what lies above a largest value is cut off.
    """
    asked = [v for v in range(step, min(top, _ASKED * step) + 1, step) if _accepted(load, v)]
    pattern = {v // step % _PERIOD for v in asked if v // step > _ASKED - _PERIOD}
    rest = [v for v in range((_ASKED + 1) * step, top + 1, step) if v // step % _PERIOD in pattern]
    if rest and not _accepted(load, rest[-1]):
        low, high = -1, len(rest) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _accepted(load, rest[middle]) else (low, middle)
        rest = rest[: low + 1]
    return asked + rest


def _accepted(load: Callable[[int], Any], value: int) -> bool:
    try:
        load(value)
    except UserError:
        return False
    return True


def limit_command(
    args: argparse.Namespace, command: tuple[str, ...], task_module: str | None = None
) -> tuple[int, dict[str, Any], str]:
    """Exit code, data and text. 0: the limit was found; 4: not even the smallest value fits, or a run failed."""
    refuse_simulation()
    cap = memory_cap.parse(args.cap) if args.cap else None
    loaded = open_recipe(args.recipe, args.set)
    refuse_unsupported(loaded)
    own = _own_value(loaded, args.axis)
    device_cap = cap if (loaded.data.get("runtime") or {}).get("device") == "ascend" else None
    more = [f"runtime.max_device_memory={device_cap / 2**30:g}GB"] if device_cap else []
    more += [] if loaded.data["kind"] == "pipeline" else ["output.folder=null"]

    def load(value: int) -> Any:
        return open_recipe(args.recipe, [*args.set, *more, f"{args.axis}={value}"])

    step, top = _step(loaded, args.axis), args.max or _TIMES * own
    if top // step > _MOST_VALUES:
        raise UserError(f"--max: got {top}, which makes {top // step} values of {args.axis}: give a smaller one")
    values = legal_values(load, top, step)
    if not values:
        raise UserError(f"--max: got {top}, but no value of {args.axis} up to it is legal: give a larger one")
    folder = args.out or Path("runs") / f"limit-{loaded.data['name']}-{args.axis}"
    base = Job(
        kind="", name="", data={}, digest="", run_dir=folder, command=command, task_module=task_module,
        forward=args.verbose,
    )  # fmt: skip
    rows = Rows(folder, base, memory_cap=None if device_cap else cap)
    _say(f"limit of {args.axis}: {len(values)} legal values from {values[0]} to {values[-1]}: {folder}")
    return _search(args.axis, values, max(0, sum(v <= own for v in values) - 1), load, rows, folder, cap)


def _search(
    axis: str, values: list[int], start: int, load: Callable, rows: Rows, folder: Path, cap: int | None
) -> tuple[int, dict[str, Any], str]:
    probes: list[dict[str, Any]] = []

    def fits(value: int) -> bool:
        loaded = load(value)
        row = rows.find(loaded, 1) or rows.make(loaded, 1, 1, {"limit": axis, "values": {axis: value}})
        probes.append(row_data(row, {axis: value}))
        _say(f"{axis}={value}: {row.record.status}{' (made before)' if row.reused else ''}")
        if row.record.status in _FITS:
            return True
        if row.record.status == "oom":
            return False
        raise UndecidedError(f"{axis}={value} ended {row.record.status}: {row.record.reason}")

    found, why = Found(None, None), None
    try:
        found = largest(values, start, fits)
        if found.fits is None:
            why = f"not even {axis}={values[0]} fits"
    except UndecidedError as error:
        why = f"{error}: neither fits nor lacks memory, so nothing is decided"
    result = {
        "axis": axis, "cap_bytes": cap, "largest_that_fits": found.fits, "smallest_that_does_not": found.fails,
        "reason": why, "largest_tried": values[-1], "probes": probes,
    }  # fmt: skip
    write_text(folder / RESULT, json.dumps(result, indent=1, allow_nan=False) + "\n")
    code = PASS if why is None else FAILED
    return code, {"exit_code": code, "folder": str(folder), **result}, _text(result, folder)


def _text(result: dict[str, Any], folder: Path) -> str:
    from tabulate import tabulate  # noqa: PLC0415

    axis = result["axis"]
    probes = sorted(result["probes"], key=lambda probe: probe["values"][axis])
    body = [(str(p["values"][axis]), p["status"], gib(p["process_peak_bytes"]), p["reason"] or "") for p in probes]
    table = tabulate(body, headers=(axis, "status", "peak memory", "reason"), tablefmt="simple", disable_numparse=True)
    if result["reason"]:
        last = f"no limit of {axis}: {result['reason']}"
    elif result["smallest_that_does_not"] is None:
        last = f"{axis}={result['largest_that_fits']} fits; nothing larger was tried (--max)"
    else:
        last = f"largest {axis} that fits: {result['largest_that_fits']} ({result['smallest_that_does_not']} does not)"
    under = f" under {gib(result['cap_bytes'])}" if result["cap_bytes"] else " without a cap"
    return "\n".join(["", table, "", last + under, f"probes: {folder / RESULT}"])


def _own_value(loaded: Any, axis: str) -> int:
    value: Any = loaded.data
    for part in axis.split("."):
        value = value.get(part) if isinstance(value, dict) else _entry(value, part)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"--axis {axis}: got {value!r} in the recipe, need a key with a whole number from 1")
    return value


def _entry(value: Any, name: str) -> Any:
    if not isinstance(value, list):
        return None
    return next((item for item in value if isinstance(item, dict) and item.get("name") == name), None)


def _step(loaded: Any, axis: str) -> int:
    """The number that the schema wants the value to be divisible by, so that fewer values are looked at."""
    from recipes.messages import kind_schema, subschema  # noqa: PLC0415

    if loaded.recipe is None:
        return 1
    node = subschema(kind_schema(type(loaded.recipe)), axis.split("."))
    options = [node, *node.get("anyOf", [])]
    return next((int(option["multipleOf"]) for option in options if "multipleOf" in option), 1)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
