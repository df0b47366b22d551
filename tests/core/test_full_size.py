"""Names and shapes of the published sizes against the reference's, without allocating a parameter."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

import core.text.parameters as text
import core.transformer.parameters as transformer
import core.vae.parameters as vae
from core.presets import PRESETS

_STORED = Path(__file__).parents[1] / "golden" / "parameter_shapes.txt"


def _stored() -> dict[str, dict[str, tuple[int, ...]]]:
    """Part -> name -> shape, as tests/parity/make_golden.py wrote them."""
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    current: dict[str, tuple[int, ...]] = {}
    for line in _STORED.read_text().splitlines():
        if line.startswith("["):
            current = parts.setdefault(line[1:-1], {})
        elif not line.startswith("#"):
            name, size, *count = line.split()
            shape = tuple(int(n) for n in size.split("x"))
            for index in range(int(count[0][1:]) if count else 1):
                current[name.replace("*", str(index))] = shape
    return parts


def _ours(part: str) -> dict[str, tuple[int, ...]]:
    if part.startswith("transformer "):
        table = transformer.parameter_table(PRESETS[part.split()[1]].transformer)
    elif part == "vae":
        table = vae.parameter_table(PRESETS["5b"].vae)
    else:
        table = text.parameter_table(PRESETS["5b"].text)
    return {name: spec.shape for name, spec in table.items()}


def test_every_published_part_is_stored():
    published = {f"transformer {name}" for name, preset in PRESETS.items() if preset.published}
    assert set(_stored()) == published | {"vae", "text_encoder t5-v1_1-xxl"}


@pytest.mark.parametrize("part", sorted(_stored()))
def test_names_and_shapes_equal_the_reference(part):
    assert _ours(part) == _stored()[part]


def test_a_wrong_size_would_be_noticed():
    stored = _stored()
    assert _ours("transformer 5b") != stored["transformer 2b"]
    assert _ours("transformer 1.5-5b") != stored["transformer 1.5-5b-i2v"]


def test_parameter_count_of_the_5b():
    # Published by finetrainers' memory reports (facts/cogvideox.md 4.1).
    assert sum(math.prod(shape) for shape in _ours("transformer 5b").values()) == 5_570_283_072


def test_tables_need_no_mindspore():
    code = (
        "import sys, core.transformer.parameters, core.vae.parameters, core.text.parameters, core.presets; "
        "print('mindspore' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "False"
