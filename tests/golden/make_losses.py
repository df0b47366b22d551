"""Golden losses: a tiny training run's losses with all bits, one file for each backend and MindSpore version.

``python -m tests.golden.make_losses --write`` writes ``tests/golden/losses/<backend>-<version>.txt`` for what is
installed; without ``--write`` it prints the text. A line is ``step repr(loss) hex``. The run is
``tests.bench.train_world`` (three steps of one block) in a process of its own, composed of MindSpore's
operators: neither a compiler nor what ran before decides any bit. The instruction sets of the processor do, so the
file names those it was made on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from core.files import write_text

FOLDER = Path(__file__).with_name("losses")
BACKEND = "cpu"
COMMAND = "python -m tests.golden.make_losses --write"
_SETS = "# instruction sets: "


def golden_file(version: str) -> Path:
    """The file for a MindSpore version."""
    return FOLDER / f"{BACKEND}-{version}.txt"


def instruction_sets() -> str:
    """Those of this processor, as in a record."""
    from bench.environment import cpu

    return " ".join(cpu({})["instruction_sets"] or ["unknown"])


def made() -> str:
    """The text of the file for this machine; call it in a fresh process."""
    import mindspore as ms

    from bench.context import RunContext
    from bench.events import EventLog
    from bench.tasks import train
    from recipes.load import from_dict
    from tests.bench import train_world

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = train_world.recipe(
            train_world.make_world(root), train={"steps": 3, "gradient_accumulation_steps": 1, "save_every": None}
        )
        data["runtime"] = {"mode": "pynative", "kernels": "operators"}
        recipe, log, out = from_dict(data), root / "events.jsonl", root / "out"
        out.mkdir()
        train.run(recipe, RunContext(recipe, out, recipe.seed, EventLog(log)))
        steps = train_world.events(log, "step")
    head = f"# {BACKEND}, MindSpore {ms.__version__}; made by: {COMMAND}\n{_SETS}{instruction_sets()}\n"
    return head + "".join(f"{step['index']} {step['loss']!r} {step['loss_hex']}\n" for step in steps)


def parsed(text: str) -> tuple[str, dict[int, str]]:
    """The instruction sets and the loss bits by step; ValueError if a line's two numbers are not the same."""
    lines = text.splitlines()
    sets = next(line.removeprefix(_SETS) for line in lines if line.startswith(_SETS))
    losses: dict[int, str] = {}
    for line in lines:
        if not line.startswith("#"):
            step, number, bits = line.split()
            if float(number).hex() != bits:
                raise ValueError(f"step {step}: {number} is not {bits}")
            losses[int(step)] = bits
    return sets, losses


def problems(golden: str, now: str, tolerance: float) -> list[str]:
    """What is not as it should be: bits on the golden file's instruction sets, ``tolerance`` (relative) on others."""
    (sets, old), (here, new) = parsed(golden), parsed(now)
    found = [f"step {step} is missing" for step in sorted(old.keys() - new.keys())]
    found += [f"step {step} is new" for step in sorted(new.keys() - old.keys())]
    for step in sorted(old.keys() & new.keys()):
        one, two = float.fromhex(old[step]), float.fromhex(new[step])
        if one != two and (sets == here or not abs(one - two) <= tolerance * abs(one)):
            found.append(f"step {step}: golden {old[step]} ({one!r}), now {new[step]} ({two!r})")
    return found


def main() -> int:
    """Prints or writes the losses of what is installed."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden.make_losses", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the file of this backend and version")
    arguments, text = parser.parse_args(), made()
    if arguments.write:
        import mindspore as ms

        write_text(golden_file(ms.__version__), text)
    else:
        sys.stdout.write(f"GOLDEN\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
