"""``python -m tests.bench.parent RECIPE.json RUN_DIR [options]``: ``cogbench run`` with test tasks."""

from __future__ import annotations

import functools
import json
import signal
import sys
from pathlib import Path

import bench.run_command
from bench.cli import main
from tests.bench.jobs import MODULE, loaded, stage


def run(recipe: str, out: str, *options: str) -> int:
    """Exit code of the command, whose recipe is a JSON file."""
    data = json.loads(Path(recipe).read_text())
    command = bench.run_command
    # The ignores below: these replace functions of a module on purpose, with looser signatures.
    command.open_recipe = lambda path, overrides: loaded(data)  # type: ignore[assignment]
    command.refuse_unsupported = lambda loaded: None  # type: ignore[assignment]
    command.stage_plans = lambda loaded: [stage(**s) for s in data["stages"]]  # type: ignore[assignment]
    command.run_command = functools.partial(command.run_command, task_module=MODULE)  # type: ignore[assignment]
    return main(["run", recipe, "--out", out, *options])


if __name__ == "__main__":
    # A shell starts background jobs with SIGINT ignored, and so would be everything below it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = run(*sys.argv[1:])
    loaded_modules = {"mindspore", "pandas", "jinja2", "numpy"} & set(sys.modules)
    assert not loaded_modules, f"the parent imported {loaded_modules}"
    sys.exit(code)
