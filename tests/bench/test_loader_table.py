"""The command behind the loader's table of docs/design/008."""

from __future__ import annotations

import pytest

from bench import loader

SMALL = loader.Size(frames=9, height=16, width=32, tokens=3, width_text=4)


def test_every_sample_is_read_once_from_disk_and_once_from_memory(monkeypatch):
    read = []
    whole = loader.CachedClips.batch
    monkeypatch.setattr(loader.CachedClips, "batch", lambda *a: read.append(whole(*a)["item"][0]) or whole(*a))
    row = loader.measure(SMALL, 3)
    assert sorted(read) == [0, 0, 1, 1, 2, 2]
    assert row["size"] == "9x16x32"
    # 2 x 16 x 3 x 2 x 4 latents and 3 x 4 text numbers of 4 bytes, and the zip's own.
    assert 2 * 16 * 3 * 2 * 4 * 4 + 3 * 4 * 4 < row["sample_bytes"] < 6000


def test_the_table_says_what_share_of_the_published_step_it_is():
    rows = [
        {"size": "a", "sample_bytes": 2_000_000, "from_disk": 0.516, "from_memory": 0.25},
        {"size": "b", "sample_bytes": 1000, "from_disk": 0.001, "from_memory": 0.0005},
    ]
    text = loader.table(rows)
    assert "| a | 2,000,000 | 0.5160 | 0.2500 | 4 |" in text
    assert "10.0% of the fastest published step (5.16 s) for one sample of a" in text


def test_no_clips_are_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        loader.main(["--clips", "0"])
    assert stop.value.code == 2
    assert "got 0, need 1 or more" in capsys.readouterr().err
