"""Losses have the bits that are stored for this backend and MindSpore version; the comparison itself can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import pytest

from tests.golden.make_losses import COMMAND, golden_file, parsed, problems
from tests.tolerances import GOLDEN_LOSS

ROOT = Path(__file__).resolve().parents[2]
TEXT = f"# instruction sets: avx2\n0 1.5 {(1.5).hex()}\n1 1.25 {(1.25).hex()}\n"


def test_losses_of_this_version_are_the_stored_ones():
    golden = golden_file(ms.__version__)
    assert golden.is_file(), f"no golden losses for MindSpore {ms.__version__}: look at the run, then {COMMAND}"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.golden.make_losses"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert problems(golden.read_text(), done.stdout.partition("GOLDEN\n")[2], GOLDEN_LOSS) == []


def changed(step: int, value: float, sets: str = "avx2") -> str:
    lines = TEXT.splitlines()
    lines[0] = f"# instruction sets: {sets}"
    lines[step + 1] = f"{step} {value!r} {value.hex()}"
    return "\n".join(lines)


def test_equal_losses_have_no_problem():
    assert problems(TEXT, TEXT, 0.0) == []
    assert parsed(TEXT) == ("avx2", {0: (1.5).hex(), 1: (1.25).hex()})


def test_a_flipped_bit_is_a_problem_on_the_same_instruction_sets_only():
    flipped = 1.25 + 2**-52
    (problem,) = problems(TEXT, changed(1, flipped), GOLDEN_LOSS)
    assert problem.startswith("step 1: golden 0x1.4000000000000p+0 (1.25), now 0x1.4000000000001p+0")
    assert problems(TEXT, changed(1, flipped, "avx2 avx512f"), GOLDEN_LOSS) == []


@pytest.mark.parametrize("value", [1.25 * (1 + 2e-5), float("nan")])
def test_more_than_rounding_is_a_problem_on_any(value):
    assert len(problems(TEXT, changed(1, value, "sve"), GOLDEN_LOSS)) == 1


def test_missing_and_new_steps_are_problems():
    short = "\n".join(TEXT.splitlines()[:2])
    assert problems(TEXT, short, GOLDEN_LOSS) == ["step 1 is missing"]
    assert problems(short, TEXT, GOLDEN_LOSS) == ["step 1 is new"]


def test_a_line_whose_numbers_disagree_is_refused():
    with pytest.raises(ValueError, match=r"step 0: 1\.6 is not 0x1\.8"):
        parsed(TEXT.replace("0 1.5", "0 1.6"))
