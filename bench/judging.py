"""What ``cogbench calibrate``, ``compare`` and ``gate`` do: (exit code, data for --json, text)."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import baseline, calibration
from bench.bisect import bisect
from bench.codes import FAILED, MISMATCH, PASS
from bench.comparing import compare
from bench.gate import judge, unusable
from bench.gate_output import data_of, text_of, write_junit
from bench.recipe_access import open_recipe
from bench.run_set import Run, execute, read_runs, same_cohort
from bench.runner import new_run_dir, refuse_simulation
from bench.verdict import EXIT_CODES, Check, Judgement, Policy, Verdict, conclude
from core.errors import UserError
from core.files import write_text

_RUNS, _RUNS_TO_ACCEPT = 3, 5


def run(args: argparse.Namespace) -> tuple[int, dict[str, Any], str]:
    """Runs the command that the arguments name."""
    return {"calibrate": _calibrate, "compare": _compare, "gate": _gate}[args.judging](args)


def _calibrate(args: argparse.Namespace) -> tuple[int, dict[str, Any], str]:
    loaded = open_recipe(args.recipe, args.set)
    runs, folder = _runs(args, loaded, "calibrate", args.runs)
    if broken := unusable(runs):
        reason = broken[0].reason
        return FAILED, {"error": reason, "folder": str(folder)}, f"no calibration: {reason}"
    if len(runs) < 2:
        raise UserError(f"calibrate: got {len(runs)} run, need at least 2: a spread takes several")
    data = calibration.calibration(runs, same_cohort(runs)) | {"folder": str(folder)}
    text = calibration.text_of(data)
    if not getattr(args, "from"):
        path = folder / calibration.FILE_NAME
        calibration.write(path, data)
        text += f'\ncalibration: {path}\naccept: cogbench gate {args.recipe} --from {folder} --accept --why "..."'
    return PASS, data, text


def _compare(args: argparse.Namespace) -> tuple[int, dict[str, Any], str]:
    a, b = _read([args.a]), _read([args.b])
    for runs in (a, b):
        if not unusable(runs):
            same_cohort(runs)
    judgement = compare(a, b, args.across, _policy(args))
    data = data_of(judgement) | {"a": [str(run.path) for run in a], "b": [str(run.path) for run in b]}
    title = f"{args.b} (now) against {args.a} (baseline)"
    return EXIT_CODES[judgement.verdict], data, text_of(judgement, title)


def _gate(args: argparse.Namespace) -> tuple[int, dict[str, Any], str]:
    if args.accept and not args.why.strip():
        raise UserError('--accept: needs a sentence for those who read the history: --why "..."')
    loaded = open_recipe(args.recipe, args.set)
    file = baseline.file_of(args.baselines or baseline.FOLDER, loaded.data["name"])
    entries = baseline.read(file)
    if args.bisect:
        return _bisect(args, loaded, entries)
    number = args.runs or (_RUNS_TO_ACCEPT if args.accept else _RUNS)
    runs, folder = _runs(args, loaded, "gate", number)
    judgement, found = judgement_of(runs, loaded.digest, entries, _policy(args))
    data = data_of(judgement) | _about(file, found, runs, folder)
    text = text_of(judgement, f"gate {loaded.data['name']}", every=args.every)
    code = EXIT_CODES[judgement.verdict]
    if found is None and judgement.verdict is Verdict.CALIBRATION_NEEDED and args.new_cohort_ok:
        code = PASS
        data |= {"exit_code": PASS, "new_cohort_ok": True}
        text += "\nnothing was judged, and --new-cohort-ok says that this is no failure"
    if args.junit:
        write_junit(args.junit, judgement, loaded.data["name"])
    if args.accept:
        entry = baseline.accept(file, runs, args.why)
        data |= {"accepted": {"file": str(file), "why": entry.why}, "exit_code": PASS}
        text += f"\naccepted as baseline of cohort {entry.cohort.key[:8]} in {file}: commit this file"
        code = PASS
    elif judgement.verdict in (Verdict.REGRESSION, Verdict.IMPROVED, Verdict.CALIBRATION_NEEDED):
        text += f'\nif that is meant: cogbench gate {args.recipe} --accept --why "..."'
    if not getattr(args, "from"):
        write_text(folder / "gate.json", json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    return code, data, text


def judgement_of(
    runs: Sequence[Run], digest: str, entries: Sequence[baseline.Baseline], policy: Policy
) -> tuple[Judgement, baseline.Baseline | None]:
    """The judgement of ``runs`` of the recipe with ``digest``, and the baseline it rests on if there is one."""
    sizes: dict[str, Any] = {"new_runs": len(runs), "null_runs": 0, "policy": policy}
    if broken := unusable(runs):
        return conclude(broken, **sizes), None
    if other := next((run for run in runs if run.record.recipe_digest != digest), None):
        reason = f"{other.path.name} is a run of recipe {other.record.recipe_digest[:8]}, the gate is of {digest[:8]}"
        check = Check(
            name="recipe", family="status", unit="", verdict=Verdict.RECIPE_MISMATCH, rule="cohort", reason=reason
        )  # fmt: skip
        return conclude([check], **sizes), None
    cohort = same_cohort(runs)
    found = baseline.find(entries, cohort)
    if found is None:
        return conclude([baseline.mismatch(entries, cohort, runs[0].record.recipe)], **sizes), None
    return judge(found.series, len(found.runs), runs, policy), found


def _about(file: Path, found: baseline.Baseline | None, runs: Sequence[Run], folder: Path) -> dict[str, Any]:
    basis = None
    if found is not None:
        basis = {"accepted": found.accepted, "why": found.why, "commit": found.commit, "runs": list(found.runs)}
    return {
        "baseline_file": str(file),
        "baseline": basis,
        "folder": str(folder),
        "runs": [str(run.path) for run in runs],
        "disturbed": [line for run in runs for line in run.disturbed],
    }


def _policy(args: argparse.Namespace) -> Policy:
    changes: dict[str, Any] = {"alpha": args.alpha}
    if args.min_percent is not None:
        changes["min_percent"] = dict.fromkeys(("time", "bytes", "rss"), args.min_percent)
    if args.judging == "gate":
        changes |= {"families": frozenset(args.gate), "require_steady": args.require_steady}
        changes["max_detectable_percent"] = args.max_detectable
    return Policy(**changes)


def _runs(args: argparse.Namespace, loaded: Any, what: str, number: int) -> tuple[list[Run], Path]:
    """The runs named with --from, or new ones, and their folder."""
    if given := getattr(args, "from"):
        return _read(given), given[0]
    refuse_simulation()
    folder = args.out or new_run_dir(f"{what}-{loaded.data['name']}", loaded.digest, 1)
    if args.out and args.out.exists() and any(args.out.iterdir()):
        raise UserError(f"--out {args.out}: is not empty: choose another folder, or judge its runs with --from")
    command = ("cogbench", what, str(args.recipe), *(part for s in args.set for part in ("--set", s)))
    options: dict[str, Any] = {
        "announce": _say,
        "keep_outputs": args.keep_outputs,
        "task_module": getattr(args, "task_module", None),
    }
    return execute(loaded, folder, number, command, **options), folder


def _read(folders: Sequence[Path]) -> list[Run]:
    runs = read_runs(folders)
    if not runs:
        raise UserError(f"{', '.join(map(str, folders))}: no record there: give a run folder or a folder of runs")
    return runs


def _bisect(
    args: argparse.Namespace, loaded: Any, entries: Sequence[baseline.Baseline]
) -> tuple[int, dict[str, Any], str]:
    """Runs the recipe with the code of each commit and judges the records with the code of today."""
    if not entries:
        raise UserError(f"--bisect: {loaded.data['name']} has no baseline: accept one from a good commit first")
    policy, number = _policy(args), args.runs or _RUNS

    def ask(commit: str, folder: Path) -> bool | None:
        with tempfile.TemporaryDirectory(prefix="cogbench-bisect-runs-") as out:
            runs = _runs_of_commit(args, folder, Path(out), number)
            if not runs:
                _say(f"{commit[:12]}: no record")
                return None
            judgement, _ = judgement_of(runs, loaded.digest, entries, policy)
        _say(f"{commit[:12]}: {judgement.verdict}: {judgement.reason}")
        clear = {Verdict.PASS: True, Verdict.REGRESSION: False, Verdict.IMPROVED: False}
        return clear.get(judgement.verdict)

    found = bisect(args.repository, args.bisect[0], args.bisect[1], ask)
    data = {"first_bad": found.first_bad, "suspects": list(found.suspects), "judged": found.judged}
    if found.first_bad is None:
        text = f"the first bad commit is one of {', '.join(c[:12] for c in found.suspects)}: the others can't be judged"
    else:
        text = f"first bad commit: {found.first_bad}"
    return MISMATCH, data | {"exit_code": MISMATCH}, text


def _runs_of_commit(args: argparse.Namespace, code: Path, out: Path, number: int) -> list[Run]:
    """Runs of the recipe as the ``cogbench`` in ``code`` makes them; empty when it can't."""
    # Safe path: the current directory may hold another core and bench, which `-m` would otherwise prefer.
    env = {**os.environ, "PYTHONPATH": str(code.resolve()), "PYTHONSAFEPATH": "1"}
    recipe = [str(args.recipe.resolve()), *(part for s in args.set for part in ("--set", s))]
    for index in range(1, number + 1):
        command = [sys.executable, "-m", "bench.cli", "run", *recipe, "--out", str(out / f"{index:02d}")]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            _say((done.stderr.strip().splitlines() or ["no message"])[-1])
            break
    return read_runs([out]) if any(out.rglob("record.json")) else []


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
