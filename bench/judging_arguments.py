"""Arguments of ``cogbench calibrate``, ``compare`` and ``gate``; what they do is in ``bench.judging``."""

from __future__ import annotations

import argparse
from pathlib import Path

FAMILIES = ("status", "counts", "bits", "bytes", "rss", "time")
ACROSS = ("recipe", "hardware", "software")


def calibrate(parser: argparse.ArgumentParser) -> None:
    """``cogbench calibrate RECIPE --runs N``."""
    parser.set_defaults(judging="calibrate")
    _recipe(parser)
    parser.add_argument("--runs", type=_at_least(2), default=5, metavar="N", help="null runs of one cohort (5)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the runs (default: a new one below runs/)")
    parser.add_argument("--keep-outputs", action="store_true", help="keep what the runs wrote, not only its digests")
    parser.add_argument("--from", nargs="+", type=Path, metavar="DIR", help="use runs that exist instead of new ones")


def compare(parser: argparse.ArgumentParser) -> None:
    """``cogbench compare A B``."""
    parser.set_defaults(judging="compare")
    parser.add_argument("a", type=Path, metavar="A", help="a record, a run folder or a folder of runs")
    parser.add_argument("b", type=Path, metavar="B", help="the same, compared with A")
    parser.add_argument(
        "--across", nargs="+", choices=ACROSS, default=[], help="what may differ on purpose (default: nothing)"
    )
    _strictness(parser)


def gate(parser: argparse.ArgumentParser) -> None:
    """``cogbench gate RECIPE``."""
    parser.set_defaults(judging="gate")
    _recipe(parser)
    parser.add_argument("--runs", type=_at_least(1), metavar="N", help="new runs (3; 5 with --accept)")
    parser.add_argument("--from", nargs="+", type=Path, metavar="DIR", help="judge runs that exist instead of new ones")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the runs (default: a new one below runs/)")
    parser.add_argument("--keep-outputs", action="store_true", help="keep what the runs wrote, not only its digests")
    parser.add_argument(
        "--baselines", type=Path, metavar="DIR", help="folder of the baseline files (default: reports/baselines)"
    )
    parser.add_argument("--accept", action="store_true", help="make these runs the baseline of their cohort")
    parser.add_argument("--why", default="", metavar="TEXT", help="the reason, kept with an accepted baseline")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="also write the checks as JUnit XML")
    parser.add_argument("--every", action="store_true", help="show every check, also those that are equal")
    parser.add_argument(
        "--new-cohort-ok", action="store_true",
        help="exit 0, not 3, where this kind of machine and software has no baseline (CI on whatever machine it gets)",
    )  # fmt: skip
    parser.add_argument(
        "--gate", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="FAMILY",
        help=f"what is judged: {', '.join(FAMILIES)} (default: all); the rest is shown",
    )  # fmt: skip
    _strictness(parser)
    parser.add_argument("--require-steady", action="store_true", help="UNSTEADY also where steps are too few to tell")
    parser.add_argument(
        "--max-detectable", type=float, metavar="PERCENT", help="UNSTEADY when a time check sees no less than this"
    )
    parser.add_argument(
        "--bisect", nargs=2, metavar=("GOOD", "BAD"), help="search the commits between for the first that fires"
    )
    parser.add_argument("--repository", type=Path, default=Path(), metavar="DIR", help="git checkout for --bisect (.)")


COMMANDS = (
    ("calibrate", calibrate, "null runs of one recipe: how much its readings vary when nothing changed"),
    ("compare", compare, "two sets of runs: table, interval, smallest visible effect, verdict"),
    ("gate", gate, "bits, counts, bytes and time against the accepted baseline"),
)


def _recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, metavar="RECIPE")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, such as train.steps=5"
    )


def _strictness(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--alpha", type=_share, default=0.01, metavar="P", help="chance that an unchanged program fires (0.01)"
    )
    parser.add_argument("--min-percent", type=float, metavar="X", help="smallest change in per cent that fires")


def _at_least(least: int):
    def parse(text: str) -> int:
        value = int(text) if text.isdecimal() else 0
        if value < least:
            raise argparse.ArgumentTypeError(f"got {text!r}, need a whole number from {least}")
        return value

    return parse


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, need a number between 0 and 1")
    return value
