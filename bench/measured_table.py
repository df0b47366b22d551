"""How a command ends that compares stored measurements: its table, the page that shows it, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.codes import MISMATCH, PASS


def finish(text: str, doc: Path | None, name: str, problems: Sequence[str]) -> int:
    """Prints ``text``, writes it between the markers ``name`` of ``doc``, prints the problems; the exit code.

    In the page the table is the claim ``name`` (``reports.claims_stored``): who changes it by hand is told.
    """
    print(text)
    if doc:
        from bench.operators import write_between_markers  # noqa: PLC0415

        write_between_markers(doc, f"<!-- claims {name} -->\n{text}\n<!-- /claims -->", name)
    for line in problems:
        print(f"error: {line}", file=sys.stderr)
    return MISMATCH if problems else PASS
