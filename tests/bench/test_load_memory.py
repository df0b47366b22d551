"""Loading a sharded checkpoint holds the model and a few tensors, not the files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench import load_memory
from core.presets import PRESETS
from core.transformer.parameters import parameter_table

SIZES = {"num_attention_heads": 8, "attention_head_dim": 64, "num_layers": 16, "time_embed_dim": 256}
CONFIG = replace(PRESETS["tiny-1.5"].transformer, **SIZES)


def test_bounds_by_hand() -> None:
    found = load_memory.bounds(parameter_table(CONFIG), 2)
    assert found["largest"] == 4 * 512 * 4 * 512
    assert found["model"] == 2 * found["parameters"]
    assert found["bound"] == found["model"] + found["largest"] + load_memory.ALLOWANCE


@pytest.mark.parametrize(("grown", "problems"), [(100, 0), (101, 1)])
def test_more_than_the_bound_is_refused(grown: int, problems: int) -> None:
    assert len(load_memory.verdict({"empty": 50, "loading": 50 + grown}, {"bound": 100})) == problems


def test_shards_are_loaded_tensor_by_tensor(tmp_path: Path) -> None:
    written = load_memory.generate(CONFIG, tmp_path, 50_000_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    limits = load_memory.bounds(parameter_table(CONFIG), 2)
    marks = load_memory.measure(tmp_path, "bf16", None)
    assert load_memory.verdict(marks, limits) == []
    # With the files' pages resident as well, the same bound would be exceeded.
    assert limits["model"] + written > limits["bound"]
