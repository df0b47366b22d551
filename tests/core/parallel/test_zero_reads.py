"""A rank of ZeRO-3 reads its own rows of a checkpoint, and holds what it would have cut out of the whole."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from core import weights
from core.parallel.cut import Cut
from core.parallel.mesh import held
from core.parallel.zero import Zero
from core.presets import PRESETS
from core.transformer.model import CogVideoXTransformer3DModel

RANKS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("stored") / "transformer"
    model = CogVideoXTransformer3DModel(PRESETS["tiny-1.5"].transformer).initialize(0)
    weights.save_transformer(model, where, "fp32", 1_000_000)
    return where


def _group(index: int) -> Any:
    return SimpleNamespace(size=RANKS, index=index)


def _parts(zero: Zero) -> dict[str, np.ndarray]:
    return {name: part.asnumpy() for name, part in zip(zero.names, zero.parameters, strict=True)}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("index", range(RANKS))
def test_a_rank_reads_its_rows_alone(folder: Path, index: int, dtype: str) -> None:
    model, stored = weights.stored_transformer(folder, dtype)
    ours = Zero(model, model.trainable_params(), _group(index), 3, stored=stored)
    expected_bytes = 0
    for name in ours.names:
        cut = Cut(model.table[name].shape, RANKS)
        row = 4 * model.table[name].size // cut.rows_shape[0]
        mine = len(held(cut.rows_shape[0], RANKS, index))
        expected_bytes += row * (mine if cut.rows_shape[0] == cut.shape[0] else cut.rows_shape[0])
    assert stored.bytes_read == expected_bytes
    assert stored.bytes_read < 0.6 * sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    whole = weights.load_transformer(folder, dtype)
    expected = _parts(Zero(whole, whole.trainable_params(), _group(index), 3))
    for name, part in _parts(ours).items():
        np.testing.assert_array_equal(part, expected[name])


def test_stages_that_keep_whole_parameters_cannot_read_parts(folder: Path) -> None:
    model, stored = weights.stored_transformer(folder)
    with pytest.raises(AssertionError, match="stages below 3"):
        Zero(model, model.trainable_params(), _group(0), 2, stored=stored)


def test_a_piece_is_read_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.checkpoint.PIECE_BYTES", 1000)
    _, stored = weights.stored_transformer(folder)
    name = "transformer_blocks.0.ff.net.0.proj.weight"
    whole = weights.load_transformer(folder).parameters_dict()[name].asnumpy()
    np.testing.assert_array_equal(stored.rows(name, 3, 50), whole[3:50])
    np.testing.assert_array_equal(stored.whole(name), whole)
