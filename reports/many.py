"""``python -m reports.many``: how long a report over very many records takes, from files to pages."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import record as records
from bench.memory import no_memory
from bench.timer import summarize
from reports.build import build_report

STEPS = 20


def example(number: int) -> dict[str, Any]:
    """A record of a training run with ``STEPS`` steps; its values are invented and its name says so."""
    steps = [
        {"index": i, "seconds": 0.4 + 0.01 * (i * 7 % 5), "loss": 1.0 / (i + 1 + number % 3), "samples": 1}
        for i in range(STEPS)
    ]
    summary, reasons = summarize([records.Step(**s) for s in steps], cards=None, no_cards_reason="invented")
    memory, more = no_memory("invented")
    made = records.make(
        id=f"invented-{number}", status="ok", kind="train", name=f"invented-{number}", recipe={"kind": "train"},
        recipe_digest=f"{number % 50:064x}", command=("cogbench", "run", "invented.yaml"),
        started=f"2000-01-01T{number // 3600 % 24:02d}:{number // 60 % 60:02d}:{number % 60:02d}Z", seconds=12.5,
        code={"commit": "0" * 40, "dirty": False, "digest": "f" * 64}, environment={"cpu": {"model": "invented"}},
        steps=steps, summary=summary, memory=memory, null_reasons=reasons | more | {"compile_seconds": "invented"},
    )  # fmt: skip
    return made.model_dump(mode="json")


def write_examples(folder: Path, count: int) -> None:
    """Writes ``count`` records, each in a folder of its own, and one that is damaged."""
    template = example(0)
    for number in range(count):
        here = folder / f"{number:06d}"
        here.mkdir()
        second = f"2000-01-01T{number // 3600 % 24:02d}:{number // 60 % 60:02d}:{number % 60:02d}Z"
        data = template | {"id": f"invented-{number}", "name": f"invented-{number}", "started": second}
        (here / records.FILE_NAME).write_text(json.dumps(data), encoding="utf-8")
    (folder / "damaged").mkdir()
    (folder / "damaged" / records.FILE_NAME).write_text('{"schema_version": 1, "id": "cut o', encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m reports.many", description=__doc__)
    parser.add_argument("--records", type=int, default=10_000, metavar="N", help="how many (default 10,000)")
    count = parser.parse_args(arguments).records
    with tempfile.TemporaryDirectory() as folder:
        write_examples(Path(folder), count)
        clock, processor = time.perf_counter(), time.process_time()
        paths = build_report([Path(folder)], Path(folder) / "report", html=True)
        took = {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - processor}
        size = paths["html"].stat().st_size
    print(json.dumps({"records": count, "steps_each": STEPS, **took, "html_bytes": size}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
