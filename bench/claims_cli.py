"""``cogbench claims``, command line only; the ledger belongs to the reports package, which is reached by name."""

from __future__ import annotations

import argparse
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

OURS = EntryPoint(name="claims", value="reports.claims:claims_command", group="cogbench.reports")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "documents", nargs="*", type=Path, metavar="DOC", help="default: README.md and docs, but the log"
    )
    parser.add_argument("--fix", action="store_true", help="write what the sources say between the markers")


def run(args: argparse.Namespace) -> tuple[int, dict[str, Any], str]:
    """Exit code, data for --json and text."""
    return OURS.load()(args.documents, fix=args.fix)
