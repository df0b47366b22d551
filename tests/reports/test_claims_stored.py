"""Tables of stored measurements are bound to their files: whoever changes a digit, or a formula, is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import train_memory
from bench.measured_table import finish
from core.errors import UserError
from reports.claims import claims_command

REPOSITORY = Path(__file__).resolve().parents[2]
STORED = "bench/train_memory.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("bench", "reports"):
        (tmp_path / folder).mkdir()
    (tmp_path / STORED).write_bytes((REPOSITORY / STORED).read_bytes())
    claim = f"claims: {{}}\ntables:\n  train-memory: {{render: stored, stored: {STORED}}}\n"
    (tmp_path / "reports" / "claims.yaml").write_text(claim)
    page = "`python -m bench.train_memory`\n<!-- train-memory: begin -->\n<!-- train-memory: end -->\n"
    (tmp_path / "page.md").write_text(page)
    text = train_memory.table(json.loads((tmp_path / STORED).read_text()))
    assert finish(text, tmp_path / "page.md", "train-memory", []) == 0
    return tmp_path


def _status(root: Path) -> str:
    _, data, _ = claims_command([root / "page.md"], fix=False, root=root)
    return data["findings"][0]["status"]


def test_what_the_command_wrote_is_verified(root: Path) -> None:
    assert _status(root) == "verified"


def test_a_changed_digit_and_a_changed_file_are_refuted(root: Path) -> None:
    page = root / "page.md"
    right = page.read_text()
    page.write_text(right.replace("| 1.00 |", "| 1.01 |", 1))
    assert _status(root) == "refuted"
    page.write_text(right)
    stored = json.loads((root / STORED).read_text())
    stored[next(iter(stored))][train_memory.REFERENCE]["steady"] += 50 * 2**20
    (root / STORED).write_text(json.dumps(stored))
    assert _status(root) == "refuted"


def test_no_file_is_unverified_and_no_command_an_error(root: Path) -> None:
    (root / STORED).unlink()
    assert _status(root) == "unverified"
    ledger = root / "reports" / "claims.yaml"
    ledger.write_text(ledger.read_text().replace(STORED, "bench/other.json"))
    with pytest.raises(UserError, match=r"stored is 'bench/other.json', need one of bench/vae_memory.json"):
        _status(root)
