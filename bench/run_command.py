"""``cogbench run``: from a recipe file to records, a result table and, for pipelines that ask for it, a report."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench import record as records
from bench.cluster import LAUNCHER_LOG, parse_nodes, rank_log
from bench.codes import FAILED, PASS
from bench.pipeline import StagePlan, run_pipeline
from bench.recipe_access import open_recipe, refuse_unsupported, stage_plans
from bench.record import Record
from bench.render import brief, problems, results_table
from bench.report_hook import build_report
from bench.resume import archive_attempt, find_interrupted, with_resume
from bench.runner import Job, claim_run_dir, exit_code_of, new_run_dir, refuse_simulation, run_job
from core.errors import UserError


@dataclass
class _Result:
    """One repeat: its folder, its record and, for a pipeline, the stages' records."""

    run_dir: Path
    record: Record
    parts: list[Record] = field(default_factory=list)
    report: Path | None = None
    report_error: str | None = None


def run_command(
    args: argparse.Namespace, command: tuple[str, ...], task_module: str | None = None
) -> tuple[int, dict, str]:
    """Exit code, data for --json and text of ``cogbench run``; plan and progress go to stderr as they happen."""
    refuse_simulation()
    nodes = parse_nodes(args.nodes, args.node_rank, args.master)
    workers = [f"runtime.workers={args.workers}"] if args.workers else []
    loaded = open_recipe(args.recipe, [*args.set, *workers])
    refuse_unsupported(loaded)
    stages = stage_plans(loaded) if loaded.data["kind"] == "pipeline" else None
    repeats = args.repeats or int((loaded.data.get("runtime") or {}).get("repeats") or 1)
    if nodes.count > 1 and (stages is not None or repeats > 1):
        what = "a pipeline" if stages is not None else f"{repeats} repeats"
        raise UserError(f"--nodes: got {what}, need one recipe run once: nothing would keep the nodes in step")
    if args.resume and repeats > 1:
        raise UserError(f"--resume: got {repeats} repeats, need 1: each has a run of its own")
    if repeats > 1:
        _refuse_shared_outputs(repeats, [loaded.data, *(stage.data for stage in stages or [])])
    what = f"pipeline of {len(stages)} stages" if stages is not None else loaded.data["kind"]
    times = f", {repeats} times" if repeats > 1 else ""
    _say(f"run {loaded.data['name']} ({what}, recipe {loaded.digest[:8]}{times})")
    results: list[_Result] = []
    for repeat in range(1, repeats + 1):
        job = replace(_job(loaded, args, command, repeat=repeat, of=repeats, task_module=task_module), nodes=nodes)
        _say(f"repeat {repeat}/{repeats}: {job.run_dir}" if repeats > 1 else f"folder: {job.run_dir}")
        results.append(_run_once(job, stages, bool(loaded.data.get("report"))))
    code = next((c for c in (_exit_code(r) for r in results) if c != PASS), PASS)
    return code, _data(results, code), _text(results)


def _refuse_shared_outputs(repeats: int, recipes: list[dict[str, Any]]) -> None:
    for data in recipes:
        if folder := (data.get("output") or {}).get("folder"):
            why = f"output.folder of {data['name']} is {folder}"
            raise UserError(f"got {repeats} repeats, each needs its own outputs, but {why}: remove output.folder")


def _job(
    loaded: Any, args: argparse.Namespace, command: tuple[str, ...], *, repeat: int, of: int, task_module: str | None
) -> Job:
    name, data = loaded.data["name"], loaded.data
    interrupted = None
    if args.resume:
        data = with_resume(data)
        interrupted = find_interrupted(name, loaded.digest, args.out)
    if interrupted is not None:
        run_dir = interrupted
        attempts = archive_attempt(run_dir)
        _say(f"resume: attempt {attempts + 1}")
    elif args.out is None:
        run_dir = new_run_dir(name, loaded.digest, repeat)
    else:
        run_dir = claim_run_dir(args.out / f"{repeat:02d}" if of > 1 else args.out)
    return Job(
        kind=loaded.data["kind"],
        name=name,
        data=data,
        digest=loaded.digest,
        run_dir=run_dir,
        command=command,
        origins=loaded.origins,
        repeat=repeat,
        of=of,
        forward=args.verbose or sys.stderr.isatty(),
        require_steady=args.require_steady,
        task_module=task_module,
    )


def _run_once(job: Job, stages: list[StagePlan] | None, report: bool) -> _Result:
    if stages is None:
        return _Result(job.run_dir, run_job(job))
    result = _Result(job.run_dir, *run_pipeline(job, stages, announce=_say))
    if report:
        try:
            result.report = build_report([job.run_dir], job.run_dir, html=True)
        except UserError as error:
            result.report_error = str(error)
    return result


def _exit_code(result: _Result) -> int:
    code = exit_code_of(result.record)
    return FAILED if code == PASS and result.report_error else code


def _data(results: list[_Result], code: int) -> dict[str, Any]:
    runs = []
    for result in results:
        run = {"record": str(result.run_dir / records.FILE_NAME), **brief(result.record)}
        run |= {"children": [brief(part) for part in result.parts]}
        run |= {"report": str(result.report) if result.report else None, "report_error": result.report_error}
        runs.append(run)
    return {"exit_code": code, "runs": runs}


def _text(results: list[_Result]) -> str:
    rows: list[tuple[str, Record]] = []
    for result in results:
        suffix = f" {result.record.repeat.index}" if len(results) > 1 else ""
        rows += [(part.name.rsplit("/", 1)[-1] + suffix, part) for part in result.parts]
        rows.append((("all stages" if result.parts else result.record.name) + suffix, result.record))
    lines = ["", results_table(rows), ""]
    for result in results:
        lines += problems(result.record)
        if result.record.status not in ("ok", "skipped"):
            lines.append(f"log: {_log_of(result)}")
        lines.append(f"record: {result.run_dir / records.FILE_NAME}")
        if result.report:
            lines.append(f"report: {result.report}")
        if result.report_error:
            lines.append(f"no report: {result.report_error}")
    return "\n".join(lines)


def _log_of(result: _Result) -> Path:
    """The log of the stage that failed (the last one that ran), of the rank that failed, or of the run itself."""
    children, rank = result.record.children, result.record.failing_rank
    if rank is not None and not children:
        return rank_log(result.run_dir, rank)
    return (result.run_dir / children[-1] if children else result.run_dir / records.FILE_NAME).parent / LAUNCHER_LOG


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
