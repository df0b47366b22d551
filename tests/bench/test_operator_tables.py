"""The commands behind the tables of docs/design/002 and 003."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from bench import blocks, operators


def _row(case, direction, name, seconds):
    return {"case": case, "direction": direction, "implementation": name, "seconds_median": seconds}


def test_what_a_gelu_costs_in_silus():
    rows = [
        _row(case, direction, name, seconds)
        for name, times in {"ours": (0.001, 0.002, 0.002, 0.008), "torch": (0.003, 0.003, 0.002, 0.002)}.items()
        for (case, direction), seconds in zip(
            [(c, d) for c in operators.COMPARED for d in operators.DIRECTIONS], times, strict=True
        )
    ]
    text = operators.table(rows)
    assert "| gelu_tanh | forward+backward | 2.00 | 3.00 | 1.5x |" in text
    assert text.endswith("forward and forward+backward: ours 0.50 and 0.25; torch 1.50 and 1.50.")
    assert "`silu`" not in operators.table(rows[:1])


def test_the_blocks_table_is_written_between_its_markers(tmp_path, monkeypatch, capsys):
    def measured(way, blocks, rounds):
        seconds = {"first_forward": 4.0, "forward": 0.5, "first_step": 9.0, "step": 1.25}
        return {"way": way, **seconds, "peak_bytes": blocks * 2**30 + rounds * 2**29}

    monkeypatch.setattr(blocks, "_run", measured)
    document, rows = tmp_path / "page.md", tmp_path / "rows.json"
    document.write_text("a\n<!-- blocks: begin -->\nold\n<!-- blocks: end -->\nb\n")
    choice = ["--ways", "pynative", "views", "--blocks", "2", "--rounds", "1", "--doc", str(document)]
    assert blocks.main([*choice, "--json", str(rows)]) == 0
    text = document.read_text()
    assert "| PyNative | 4.00 s | 0.50 s | 9.00 s | 1.25 s | 2.50 GiB |" in text
    assert "old" not in text
    assert capsys.readouterr().out.strip() in text
    assert [row["way"] for row in json.loads(rows.read_text())] == ["pynative", "views"]


def test_a_way_that_dies_is_named(monkeypatch):
    monkeypatch.setattr(blocks, "PATIENCE", 60.0)
    with pytest.raises(RuntimeError, match=r"views ended with status 1: .*invalid literal"):
        blocks._run("views", cast(Any, "many"), 1)  # no number: the process must die of it
