"""Files that stay in memory: read once while there is room, always the same values."""

from pathlib import Path

import numpy as np
import pytest

from core.data import cache
from core.data.held import Held


def _file(folder: Path, name: str, length: int) -> Path:
    path = folder / f"{name}.npz"
    mask = np.ones(length, np.uint8)
    cache.write_text_cache(path, cache.TextCache(text_emb=np.full((length, 3), ord(name), np.float32), mask=mask))
    return path


@pytest.mark.parametrize(("budget", "reads"), [(0, 6), (13 * 4, 4), (13 * 4 - 1, 6), (13 * 8, 2)])
def test_what_fits_is_read_once(tmp_path, budget, reads):
    files, count = [_file(tmp_path, name, 4) for name in "ab"], []

    def read(path):
        count.append(path)
        return cache.read_text_cache(path)

    held = Held(budget)
    for _ in range(3):
        for path, name in zip(files, "ab", strict=True):
            assert (held(read, path).text_emb == ord(name)).all()
    assert len(count) == reads
    assert held.bytes <= budget


def test_a_file_that_cannot_be_read_is_asked_for_again(tmp_path):
    held, path = Held(1000), tmp_path / "a.npz"
    with pytest.raises(cache.UserError):
        held(cache.read_text_cache, path)
    _file(tmp_path, "a", 2)
    assert held(cache.read_text_cache, path).text_emb.shape == (2, 3)
