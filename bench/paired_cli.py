"""``cogbench paired``, command line only: what it does is imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("recipes", nargs="+", type=Path, metavar="RECIPE", help="recipes of kind paired, or folders")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override, such as pairs=6")
    parser.add_argument("--sessions", type=int, default=1, metavar="N", help="sessions, each of fresh processes")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the records (default: below runs/)")


def run(args: argparse.Namespace) -> tuple[int, dict[str, Any], str]:
    """Exit code, data for --json and text."""
    from bench.paired import paired_command  # noqa: PLC0415 - pydantic and ruamel only when needed

    return paired_command(args)
