"""The two records of a session of a pair. The pair's verdict (ratio, interval, error) stands in ours."""

from __future__ import annotations

import os
from pathlib import Path
from statistics import median
from typing import Any

from bench import record as records
from bench.environment import code, collect
from bench.memory import CPU_COUNTERS, memory_of
from bench.paired_session import SIDES, Session, SideResult, environment_of
from bench.paired_stats import Ratio, ratio
from bench.record import Record
from bench.start import log_tail
from bench.timer import compile_seconds, summarize

KIND = "paired"


def write_records(
    loaded: Any, session: Session, folder: Path, *, number: int, started: str, command: tuple[str, ...]
) -> dict[str, Record]:
    """Writes ``folder/<side>/record.json`` for both sides and returns them by side."""
    verdict = _verdict(session)
    made = {}
    for side in SIDES:
        reasons: dict[str, str] = {}
        environment, more = collect(environment_of(loaded.data, side))
        result = session.sides[side]
        summary, why = summarize(result.steps, cards=None, no_cards_reason="ran on the CPU: there is no card")
        compiling, no_compile = compile_seconds(result.steps, ())
        memory, why_memory = memory_of(None, _reported(result))
        facts = {"environment": environment, "code": code(reasons), "started": started}
        reasons |= more | why | why_memory | ({"compile_seconds": no_compile} if no_compile else {})
        made[side] = records.make(
            id=f"{folder.name}-{side}",
            status="failed" if session.problem else "ok",
            reason=session.problem,
            kind=KIND,
            name=f"{loaded.data['name']}.{side}",
            recipe=loaded.data,
            recipe_digest=loaded.digest,
            origins=loaded.origins,
            command=command,
            seconds=session.seconds,
            seeds={"recipe": loaded.data["seed"]},
            stages=_stages(result),
            compile_seconds=compiling,
            steps=result.steps,
            summary=summary,
            memory=memory,
            null_reasons=reasons,
            metrics=_metrics(session, result, verdict if side == "ours" else None),
            notes=_notes(session, side, number),
            log_tail=log_tail(folder / f"{side}.log") if session.problem else None,
            **facts,
        )
        records.write(made[side], folder / side)
    return made


def _verdict(session: Session) -> Ratio | None:
    if session.problem:
        return None
    return ratio(session.sides["ours"].counted(), session.sides["diffusers"].counted())


def _reported(result: SideResult) -> dict[str, Any] | None:
    """The memory that a side's process reported at its end; a pair runs on the CPU, which has no device counters."""
    if result.ended is None:
        return None
    return {"hwm": result.ended["hwm"], "device": {"allocated": None, "reserved": None, "reason": CPU_COUNTERS}}


def _stages(result: SideResult) -> list[dict[str, Any]]:
    return [{"name": "prepare", "seconds": result.prepared["seconds"]}] if result.prepared else []


def _metrics(session: Session, result: SideResult, verdict: Ratio | None) -> dict[str, dict[str, Any]]:
    cpu = median(result.cpu_seconds) if result.cpu_seconds else None
    no_calls = None if cpu is not None else "the session ended before a measured call"
    metrics: dict[str, dict[str, Any]] = {"cpu_seconds_median": {"value": cpu, "unit": "s", "reason": no_calls}}
    if verdict is None:
        return metrics
    for name, value in (("median", verdict.median), ("low", verdict.low), ("high", verdict.high)):
        metrics[f"ratio_{name}"] = {"value": value, "unit": "1"}
    metrics["ratio_confidence"] = {"value": verdict.confidence, "unit": "1"}
    metrics["output_error"] = {"value": session.error, "unit": "1"}
    return metrics


def _notes(session: Session, side: str, number: int) -> dict[str, Any]:
    result = session.sides[side]
    prepared, ended = result.prepared or {}, result.ended or {}
    return {
        "side": side,
        "session": number,
        "inputs": prepared.get("inputs"),
        "threads": ended.get("threads"),
        "load_average": list(os.getloadavg()),
        **prepared.get("facts", {}),
    }
