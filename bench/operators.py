"""``python -m bench.operators``: our operators beside plain MindSpore and torch, in one paired, interleaved run.

Every implementation lives in its own process (the instruction set of oneDNN is fixed per process); in each round
every process times the same operator once, so a busy moment of the machine hits all of them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from statistics import median
from typing import Any

from bench.operator_child import SHAPES
from core.errors import UserError
from core.files import atomic_path

# ours-operators: without the compiled kernels; -avx2: oneDNN limited to AVX2.
IMPLEMENTATIONS = ("ours", "ours-operators", "ours-avx2", "mindspore", "mindspore-avx2", "torch")
PATIENCE = 120.0  # seconds that a process may take for one answer
DIRECTIONS = ("forward", "forward+backward")
BEGIN, END = "<!-- operators: begin -->", "<!-- operators: end -->"
COMPARED = ("gelu_tanh", "silu")  # the first must not cost more than the second
_ROOT = Path(__file__).resolve().parent.parent


class Child:
    """A process of one implementation, asked over a pipe."""

    def __init__(self, name: str):
        env = {k: v for k, v in os.environ.items() if k != "ONEDNN_MAX_CPU_ISA"}
        env |= {"GLOG_v": "4", "PYTHONPATH": str(_ROOT)}
        if name.endswith("-avx2"):
            env["ONEDNN_MAX_CPU_ISA"] = "AVX2"
        command = [sys.executable, "-m", "bench.operator_child", name]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (lives as long as the process)
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(command, env=env, text=True, **pipes)
        self.answer()

    def ask(self, case: str, direction: str, repeats: int) -> dict[str, list[float]]:
        """Times ``case`` ``repeats`` times."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{case} {direction} {repeats}\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next JSON line; MindSpore prints other things in between."""
        assert self.process.stdout is not None
        watchdog = threading.Timer(PATIENCE, self.process.kill)
        watchdog.start()
        try:
            for line in self.process.stdout:
                if line.startswith("{"):
                    return json.loads(line)
        finally:
            watchdog.cancel()
        status = self.process.wait()
        self.errors.seek(0)
        last = (self.errors.read().strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{self.process.args} ended with status {status}: {last}")

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(cases: list[str], names: list[str], rounds: int) -> list[dict[str, Any]]:
    """One row per (case, direction, implementation): median and minimum seconds, median processor seconds.

    Each case has processes of its own, so that one that hangs or dies names its case.
    """
    rows = []
    for case in cases:
        print(case, file=sys.stderr, flush=True)
        children = {name: Child(name) for name in names}
        try:
            rows += [row for direction in DIRECTIONS for row in _rows(children, case, direction, rounds)]
        finally:
            for child in children.values():
                child.close()
    return rows


def _rows(children: dict[str, Child], case: str, direction: str, rounds: int) -> list[dict[str, Any]]:
    seconds: dict[str, list[float]] = {name: [] for name in children}
    cpu: dict[str, list[float]] = {name: [] for name in children}
    for index in range(rounds):
        # Alternating order, so that nobody always follows the same neighbour.
        for name in list(children)[:: 1 if index % 2 else -1]:
            answer = children[name].ask(case, direction, 3)
            seconds[name].append(min(answer["seconds"]))
            cpu[name].append(min(answer["cpu_seconds"]))
    return [
        {"case": case, "direction": direction, "implementation": name, "seconds_median": median(seconds[name])}
        | {"seconds_min": min(seconds[name]), "cpu_seconds_median": median(cpu[name])}
        for name in children
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: medians in ms, and how many times longer plain MindSpore and torch take than ours."""
    names = list(dict.fromkeys(row["implementation"] for row in rows))
    times = {(r["case"], r["direction"], r["implementation"]): r["seconds_median"] * 1e3 for r in rows}
    ratios = [name for name in ("mindspore", "torch") if name in names and "ours" in names]
    head = ["operator", "", *(f"{name}, ms" for name in names), *(f"{name} / ours" for name in ratios)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * 2 + "---:|" * (len(head) - 2)]
    for case, direction in dict.fromkeys((r["case"], r["direction"]) for r in rows):
        cells = [f"{times[case, direction, name]:.2f}" for name in names]
        cells += [f"{times[case, direction, name] / times[case, direction, 'ours']:.1f}x" for name in ratios]
        lines.append(f"| {case} | {direction} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + _compared(times, names)


def _compared(times: dict[tuple[str, str, str], float], names: list[str]) -> str:
    """One sentence: what a GELU costs in units of a SiLU, as each implementation has them."""
    first, second = COMPARED
    parts = []
    for name in names:
        pairs = [(times.get((first, d, name)), times.get((second, d, name))) for d in DIRECTIONS]
        ratios = [f"{a / b:.2f}" for a, b in pairs if a and b]
        parts += [f"{name} {' and '.join(ratios)}"] if ratios else []
    return f"\n\n`{first}` over `{second}`, forward and forward+backward: {'; '.join(parts)}." if parts else ""


def write_between_markers(document: Path, text: str, name: str = "operators") -> None:
    """Replaces what stands between the two marker lines ``name: begin`` and ``name: end`` of ``document``."""
    begin, end = BEGIN.replace("operators", name), END.replace("operators", name)
    old = document.read_text(encoding="utf-8")
    if old.count(begin) != 1 or old.count(end) != 1:
        raise UserError(f"{document}: need one line {begin!r} and one line {end!r} around the table; add them")
    new = old[: old.index(begin) + len(begin)] + "\n" + text + "\n" + old[old.index(end) :]
    with atomic_path(document) as temporary:
        Path(temporary).write_text(new, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.operators", description="Times every operator of core.ops.")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--doc", type=Path, help="rewrite the table between the markers of this file")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default 7)")
    parser.add_argument("--cases", nargs="*", default=list(SHAPES), choices=list(SHAPES), metavar="CASE")
    options = parser.parse_args(arguments)
    names = [n for n in IMPLEMENTATIONS if n != "torch" or importlib.util.find_spec("torch")]
    rows = measure(options.cases, names, options.rounds)
    text = table(rows)
    print(text)
    if options.json:
        with atomic_path(options.json) as temporary:
            Path(temporary).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if options.doc:
        write_between_markers(options.doc, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
