"""``python -m bench.blocks``: what one compiled graph for all blocks saves, beside the other ways to run a transformer.

Each way runs in a process of its own, so that peaks do not mix; docs/design/003 has the table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.operators import write_between_markers

WAYS = {
    "pynative": "PyNative",
    "network": "one graph of all blocks (`ms.jit` over the network)",
    "parameters": "a graph per block, Parameters as arguments",
    "views": "**ours**: one graph for all blocks, views of the parameters as arguments",
}
PATIENCE = 1800.0  # seconds that a process may take
_ROOT = Path(__file__).resolve().parent.parent


def _run(way: str, blocks: int, rounds: int) -> dict[str, Any]:
    """Starts the child of one way and reads its answer."""
    env = os.environ | {"GLOG_v": "4", "PYTHONPATH": str(_ROOT)}
    command = [sys.executable, "-m", "bench.blocks_child", way, str(blocks), str(rounds)]
    with tempfile.TemporaryDirectory() as folder:  # the graph compiler leaves files where it runs
        options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": PATIENCE, "cwd": folder}
        done = subprocess.run(command, env=env, check=False, **options)
    answers = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not answers:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{way} ended with status {done.returncode}: {last}")
    return json.loads(answers[-1])


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown with one line a way."""
    lines = [
        "| how | first forward | forward | first step with gradients | step | peak memory |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        seconds = [f"{row[key]:.2f} s" for key in ("first_forward", "forward", "first_step", "step")]
        cells = [WAYS[row["way"]], *seconds, f"{row['peak_bytes'] / 2**30:.2f} GiB"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.blocks", description="Times the ways to compile blocks.")
    parser.add_argument("--blocks", type=int, default=8, help="transformer blocks (default 8)")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of the later calls (default 5)")
    parser.add_argument("--doc", type=Path, help="rewrite the table between the markers of this file")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS), metavar="WAY")
    options = parser.parse_args(arguments)
    rows = [_run(way, options.blocks, options.rounds) for way in options.ways]
    text = table(rows)
    print(text)
    if options.json:
        from core.files import write_text  # noqa: PLC0415

        write_text(options.json, json.dumps(rows, indent=1) + "\n")
    if options.doc:
        write_between_markers(options.doc, text, "blocks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
