"""Null runs of one cohort: how much each reading varies between runs and within one. Pure apart from the file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import stats
from bench.cohort import Cohort
from bench.gate import series_of
from bench.readings import EXACT
from bench.render import duration, memory
from bench.run_set import Run
from bench.timer import EXCLUDED_TAGS
from core.files import write_text

FILE_NAME = "calibration.json"
# Of a later gate: what its interval and smallest visible change are computed for.
_FUTURE_RUNS, _ALPHA = 3, 0.01


def calibration(runs: Sequence[Run], cohort: Cohort) -> dict[str, Any]:
    """For each reading: whether it is the same in all runs, else its spread and what a gate of 3 runs could see.

    ``within_run_sd`` pools the steps inside each run, ``between_run_sd`` is over the runs' medians; both of logarithms.
    """
    numbers, equal, varying, absent = {}, [], [], {}
    steps = {name: stats.within_run(seconds) for name, seconds in _steps(runs).items()}
    table = series_of(runs)
    checks = sum(s.family in ("time", "bytes", "rss") and not stats.agree(s.values) for s in table.values())
    for name, series in table.items():
        if any(value is None for value in series.values):
            absent[name] = series.reason or "missing in some of the runs"
        elif series.family in EXACT or (series.family in ("bytes", "rss") and stats.agree(series.values)):
            (equal if stats.agree(series.values) else varying).append(name)
        elif series.family == "time" or series.unit in ("s", "B"):
            numbers[name] = _number(series.values, max(1, checks)) | {
                "unit": series.unit, "family": series.family, "within_run_sd": steps.get(name),
            }  # fmt: skip
    return {
        "schema": 1,
        "runs": [run.record.id for run in runs],
        "disturbed": [line for run in runs for line in run.disturbed],
        "cohort": cohort.data(),
        "readings": numbers,
        "equal": equal,
        "varying": varying,
        "not_measured": absent,
    }


def _number(values: Sequence[float], checks: int) -> dict[str, Any]:
    """Spread of the runs; interval and smallest visible change as a gate with ``checks`` interval checks has them."""
    spread = stats.spread(values)
    alpha = _ALPHA / checks
    interval = stats.prediction_interval(values, future=_FUTURE_RUNS, alpha=alpha, log=True)
    seen = stats.detectable(values, future=_FUTURE_RUNS, alpha=alpha, log=True)
    return {
        "median": spread.median,
        "lowest": spread.low,
        "highest": spread.high,
        "between_run_sd": spread.relative_sd,
        "interval": [interval.low, interval.high],
        "detectable_percent": 100 * (seen - 1),
    }


def _steps(runs: Sequence[Run]) -> dict[str, list[list[float]]]:
    """Seconds of the counted steps of each run, under the name of the reading they belong to."""
    found: dict[str, list[list[float]]] = {}
    for run in runs:
        for label, record in run.parts:
            seconds = [s.seconds for s in record.steps if not EXCLUDED_TAGS & set(s.tags) and s.seconds > 0]
            if seconds:
                found.setdefault(f"{label}: step" if label else "step", []).append(seconds)
    return found


def write(path: Path, data: dict[str, Any]) -> None:
    """Writes it as JSON, atomically."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def text_of(data: dict[str, Any]) -> str:
    """The table for people."""
    from tabulate import tabulate  # noqa: PLC0415 - not needed by `cogbench check`

    rows = [_row(name, values) for name, values in data["readings"].items()]
    headers = ("reading", "median", "lowest .. highest", "between runs", "within a run", "smallest visible")
    lines = [f"{len(data['runs'])} null runs, cohort {data['cohort']['key'][:8]}", ""]
    lines += [tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True), ""]
    lines.append(f"equal in all runs: {len(data['equal'])} readings")
    lines += [f"differs between null runs, can't be gated exactly: {name}" for name in data["varying"]]
    lines += _not_measured(data["not_measured"])
    lines += [f"disturbed: {line}" for line in data["disturbed"]]
    lines.append(f"smallest visible: by a gate of {_FUTURE_RUNS} runs against these, in 80 % of cases")
    return "\n".join(lines)


def _not_measured(reasons: dict[str, str]) -> list[str]:
    """A line for each reason: readings of every phase have the same one."""
    lines = []
    for reason in dict.fromkeys(reasons.values()):
        names = [name for name, given in reasons.items() if given == reason]
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        lines.append(f"not measured: {', '.join(names[:2])}{more} ({reason})")
    return lines


def _row(name: str, values: dict[str, Any]) -> tuple[str, ...]:
    def shown(value: float) -> str:
        return duration(value) if values["unit"] == "s" else memory(value)

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    visible = values["detectable_percent"]
    return (
        name,
        shown(values["median"]),
        f"{shown(values['lowest'])} .. {shown(values['highest'])}",
        percent(values["between_run_sd"]),
        percent(values["within_run_sd"]),
        f"+{visible:.1f} %" if visible < 1000 else "more than tenfold",
    )
