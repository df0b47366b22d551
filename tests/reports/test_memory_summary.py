"""The README's table of memory is made of published figures and stored measurements, and says what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from reports import memory_summary
from reports.claims_source import Sources

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "bench").mkdir()
    for name in memory_summary._FILES:
        shutil.copy(REPOSITORY / "bench" / f"{name}.json", tmp_path / "bench")
    return tmp_path


def _text(root: Path) -> str:
    text = memory_summary.summary({}, Sources(root)).text
    assert text is not None
    return text


def test_every_published_row_and_both_kinds_of_cases_are_there(root: Path) -> None:
    text = _text(root)
    assert text.count("mindone cogvideox_factory") == 8
    assert text.count("THUDM/CogVideo finetune") == 6
    assert text.count("CPU cases, one process") == text.count("CPU cases, two ranks") == 2
    assert text.count("VAE, tiled") == 5
    assert text.count("training step, recomputed") == 3


def test_a_changed_measurement_changes_the_table(root: Path) -> None:
    before = _text(root)
    path = root / "bench" / "load_memory.json"
    stored = json.loads(path.read_text())
    stored["marks"]["loading"] += 2**30
    path.write_text(json.dumps(stored))
    assert _text(root) != before


def test_without_a_file_there_is_a_reason(root: Path) -> None:
    (root / "bench" / "train_memory.json").unlink()
    said = memory_summary.summary({}, Sources(root))
    assert (said.text, said.reason) == (None, "no bench/train_memory.json")
