"""The ``cogbench`` command: arguments, exit codes and errors. What the commands do is imported when they run."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import claims_cli, judging_arguments, paired_cli
from bench.codes import FAILED, INTERRUPTED, PASS, USAGE
from core.errors import UserError, unwritable

_EXIT_CODES = (
    "exit codes: 0 pass, 1 regression or mismatch, 2 bad recipe or usage, 3 no baseline, "
    "4 the run failed or ran out of memory, 5 unsteady or underpowered, 130 interrupted"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    args = build_parser().parse_args(arguments)
    # SIGTERM (a cancelled CI job) ends a run as Ctrl-C does: child gone, record written, no half file.
    previous = signal.signal(signal.SIGTERM, _terminated)
    try:
        return args.command(args)
    except UserError as error:
        if args.debug:
            traceback.print_exc()
        return _user_error(error, args.json)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe (`cogbench show x | head`) has what it wanted; Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PASS
    except Exception as error:
        if (place := unwritable(error)) is not None and not args.debug:
            return _user_error(UserError(place), args.json)
        # Python's own exit code for this would be 1, which here means "mismatch".
        traceback.print_exc()
        return FAILED
    finally:
        signal.signal(signal.SIGTERM, previous)


def build_parser() -> argparse.ArgumentParser:
    """The command line with every command."""
    parser = argparse.ArgumentParser(prog="cogbench", description="Reproducible runs of CogVideoX.", epilog=_EXIT_CODES)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    check = _command(commands, "check", _check, "find every error in recipes")
    check.add_argument("recipes", nargs="+", type=Path, metavar="RECIPE")

    show = _command(commands, "show", _show, "the effective recipe, its digest, where each value came from")
    _recipe(show)

    plan = _command(commands, "plan", _plan, "predicted memory by class, FLOPs, time, card hours; fits or not")
    _recipe(plan)
    plan.add_argument("--profile", metavar="NAME", help="hardware profile (recipes/profiles; default: by the device)")
    plan.add_argument("--model", metavar="PRESET", help="sizes of this preset instead of the recipe's folders")
    plan.add_argument("--dry-run", action="store_true", help="also MindSpore's DryRun (Ascend build and CANN)")
    plan.add_argument(
        "--into", type=Path, metavar="RUN",
        help="with --dry-run: folder of a run of this recipe, whose report then shows DryRun's peak as a third column",
    )  # fmt: skip

    _running(commands)
    _repeating(commands)
    _reporting(commands)
    for name, add_arguments, text in judging_arguments.COMMANDS:
        add_arguments(_command(commands, name, _judging, text))

    claims = _command(commands, "claims", _claims, "the figures of README and docs against records and sources")
    claims_cli.add_arguments(claims)

    doctor = _command(commands, "doctor", _doctor, "what this machine can and cannot measure, and why")
    doctor.add_argument(
        "--roofline", nargs="?", const="tiny-1.5", metavar="PRESET",
        help="also measure the rate of matrix products on a preset's shapes (default: tiny-1.5)",
    )  # fmt: skip
    return parser


def _running(commands: Any) -> None:
    run = _command(commands, "run", _run, "run a recipe and write records")
    _recipe(run)
    run.add_argument("--repeats", type=_positive, metavar="N", help="process runs, each in a fresh process (recipe: 1)")
    run.add_argument("--workers", type=_positive, metavar="N", help="processes over all nodes, one a card (recipe: 1)")
    run.add_argument("--nodes", type=_positive, metavar="N", help="machines; the same command on each (default: 1)")
    run.add_argument("--node-rank", type=int, metavar="I", help="which machine this is, from 0 (with --nodes)")
    run.add_argument("--master", metavar="HOST:PORT", help="where node 0 listens (with --nodes)")
    run.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: a new one below runs/)")
    run.add_argument(
        "--resume", action="store_true", help="go on with the recipe's interrupted run, in its folder (kind train)"
    )
    run.add_argument("-v", "--verbose", action="store_true", help="show the log even when not on a terminal")
    run.add_argument("--require-steady", action="store_true", help="exit 5 unless the step times are proven steady")

    paired = _command(commands, "paired", _paired, "ours and diffusers in turn on the same work, with their ratio")
    paired_cli.add_arguments(paired)


def _repeating(commands: Any) -> None:
    replay = _command(commands, "replay", _replay, "run a record's recipe again: the same bits, or where they differ")
    replay.add_argument("record", type=Path, metavar="RECORD", help="a record.json or its run folder")
    replay.add_argument("--out", type=Path, metavar="DIR", help="folder of the replay (default: a new one below runs/)")
    replay.add_argument("-v", "--verbose", action="store_true", help="show the log even when not on a terminal")

    sweep = _command(
        commands, "sweep", _sweep, "a recipe at every combination of some values; goes on where it stopped"
    )
    sweep.add_argument("sweep", type=Path, metavar="SWEEP")
    sweep.add_argument("--out", type=Path, metavar="DIR", help="folder of the rows (default: runs/sweep-<name>)")
    sweep.add_argument("--retry-failed", action="store_true", help="run failed rows again")
    sweep.add_argument("--predict", action="append", default=[], metavar="AXIS=NUMBER", help="ask the fits for a value")
    sweep.add_argument("-v", "--verbose", action="store_true", help="show the rows' logs")

    limit = _command(commands, "limit", _limit, "the largest value of an axis that fits into memory, by real runs")
    _recipe(limit)
    limit.add_argument(
        "--axis", required=True, metavar="KEY", help="a whole number of the recipe, such as video.frames"
    )
    limit.add_argument("--cap", metavar="SIZE", help="memory of the process, such as 4GiB (Ascend: of the device)")
    limit.add_argument(
        "--max", type=_positive, metavar="N", help="largest value to try (default: 16 times the recipe's)"
    )
    limit.add_argument("--out", type=Path, metavar="DIR", help="folder of the runs (default: runs/limit-<name>-<axis>)")
    limit.add_argument("-v", "--verbose", action="store_true", help="show the runs' logs")


def _reporting(commands: Any) -> None:
    report = _command(commands, "report", _report, "tables, or one self-contained page, from records")
    report.add_argument("folders", nargs="*", type=Path, metavar="DIR", help="run folders (default: runs)")
    report.add_argument("--html", action="store_true", help="write a page (report.html and report.md)")
    report.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write report.md there (and report.html with --html)"
    )

    report.add_argument("--tensorboard", type=Path, metavar="DIR", help="write TensorBoard event files, a folder a run")
    report.add_argument("--jsonl", type=Path, metavar="DIR", help="write steps and metrics as JSON lines, a file a run")


def _command(commands: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text, epilog=_EXIT_CODES)
    parser.set_defaults(command=function)
    parser.add_argument("--json", action="store_true", help="print JSON on stdout")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    return parser


def _recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, metavar="RECIPE")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, such as train.steps=5"
    )


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, need a whole number from 1")
    return value


def _paired(args: argparse.Namespace) -> int:
    return _shown(args, paired_cli.run(args))


def _claims(args: argparse.Namespace) -> int:
    return _shown(args, claims_cli.run(args))


def _shown(args: argparse.Namespace, result: tuple[int, dict[str, Any], str]) -> int:
    code, data, text = result
    print_json(data) if args.json else print(text)
    return code


def _check(args: argparse.Namespace) -> int:
    from bench.recipe_access import open_recipe  # noqa: PLC0415 - pydantic and ruamel only when needed

    results, code = [], PASS
    for path in args.recipes:
        try:
            loaded = open_recipe(path, [])
            results.append({"recipe": str(path), "ok": True, "kind": loaded.data["kind"], "digest": loaded.digest})
            line = f"{path}: ok ({loaded.data['kind']}, {loaded.digest[:8]})"
        except UserError as error:
            code = USAGE
            results.append({"recipe": str(path), "ok": False, **describe(error)})
            line = str(error)
        if not args.json:
            print(line, file=sys.stdout if results[-1]["ok"] else sys.stderr)
    if args.json:
        print_json({"ok": code == PASS, "recipes": results})
    return code


def _show(args: argparse.Namespace) -> int:
    from bench.recipe_access import open_recipe, shown  # noqa: PLC0415

    loaded = open_recipe(args.recipe, args.set)
    if args.json:
        fields = {"recipe": loaded.data, "digest": loaded.digest, "origins": loaded.origins}
        print_json({"path": str(args.recipe), **fields})
    else:
        print(shown(loaded).rstrip("\n"))
    return PASS


def _plan(args: argparse.Namespace) -> int:
    from bench.plan.command import plan_command  # noqa: PLC0415

    options = {"profile": args.profile, "model": args.model, "dry": args.dry_run, "into": args.into}
    code, data, text = plan_command(args.recipe, args.set, **options)
    print_json(data) if args.json else print(text)
    return code


def _run(args: argparse.Namespace) -> int:
    from bench.run_command import run_command  # noqa: PLC0415

    command = ("cogbench", "run", str(args.recipe), *(part for s in args.set for part in ("--set", s)))
    options = {"--repeats": args.repeats, "--out": args.out, "--workers": args.workers, "--nodes": args.nodes}
    options |= {"--node-rank": args.node_rank, "--master": args.master}
    command += tuple(part for name, value in options.items() if value is not None for part in (name, str(value)))
    flags = {"--require-steady": args.require_steady, "--resume": args.resume}
    command += tuple(name for name, given in flags.items() if given)
    code, data, text = run_command(args, command)
    print_json(data) if args.json else print(text)
    return code


def _replay(args: argparse.Namespace) -> int:
    from bench.replay_command import replay_command  # noqa: PLC0415

    command = ("cogbench", "replay", str(args.record), *(("--out", str(args.out)) if args.out else ()))
    forward = args.verbose or sys.stderr.isatty()
    code, data, text = replay_command(args.record, out=args.out, command=command, forward=forward)
    print_json(data) if args.json else print(text)
    return code


def _sweep(args: argparse.Namespace) -> int:
    from bench.sweep import sweep_command  # noqa: PLC0415

    code, data, text = sweep_command(args, ("cogbench", "sweep", str(args.sweep)))
    print_json(data) if args.json else print(text)
    return code


def _limit(args: argparse.Namespace) -> int:
    from bench.limit import limit_command  # noqa: PLC0415

    command = ("cogbench", "limit", str(args.recipe), "--axis", args.axis)
    command += tuple(part for s in args.set for part in ("--set", s))
    code, data, text = limit_command(args, (*command, *(("--cap", args.cap) if args.cap else ())))
    print_json(data) if args.json else print(text)
    return code


def _report(args: argparse.Namespace) -> int:
    from bench.report_command import report_command  # noqa: PLC0415

    options = {"html": args.html, "out": args.out, "tensorboard": args.tensorboard, "jsonl": args.jsonl}
    return _shown(args, report_command(args.folders or [Path("runs")], **options))


def _judging(args: argparse.Namespace) -> int:
    from bench.judging import run  # noqa: PLC0415

    code, data, text = run(args)
    print_json(data) if args.json else print(text)
    return code


def _doctor(args: argparse.Namespace) -> int:
    from bench.doctor import examine, lines, usable  # noqa: PLC0415
    from core.presets import PRESETS  # noqa: PLC0415

    if args.roofline is not None and args.roofline not in PRESETS:
        raise UserError(f"--roofline: got {args.roofline!r}, need a preset: {', '.join(PRESETS)}")
    findings = examine(args.roofline)
    works = usable(findings)
    if args.json:
        print_json({"ok": works, "findings": findings})
    else:
        print("\n".join(lines(findings)))
    return PASS if works else FAILED


def describe(error: UserError) -> dict[str, Any]:
    """An error as data: its text, and for a recipe each problem with its place."""
    problems = [vars(p) if hasattr(p, "__dict__") else {"message": str(p)} for p in getattr(error, "problems", [])]
    return {"error": str(error)} | ({"problems": problems} if problems else {})


def print_json(data: Any) -> None:
    """Writes ``data`` to stdout; refuses NaN."""
    print(json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False))


def _user_error(error: UserError, as_json: bool) -> int:
    if as_json:
        print_json(describe(error))
    else:
        # A recipe's problems come one per line, each with its own place; anything else is one line.
        located = bool(getattr(error, "problems", None)) and "\n" in str(error)
        print(str(error) if located else f"error: {error}", file=sys.stderr)
    return USAGE


def _terminated(_signum: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
