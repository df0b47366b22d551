"""The weights that come with the recipes: stored in half precision, complete, computed with in fp32."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

import recipes
from core import weights
from core.data.shapes import all_captions
from core.presets import PRESETS
from core.text.tokenizer import Tokenizer, train_tiny_tokenizer

MODEL = Path(recipes.__file__).parent / "tiny" / "world" / "model"
LOADERS = {
    "transformer": weights.load_transformer, "vae": weights.load_vae, "text_encoder": weights.load_text_encoder,
}  # fmt: skip


@pytest.mark.parametrize("part", LOADERS)
def test_every_part_loads_strictly_and_is_cast(part: str) -> None:
    model = LOADERS[part](MODEL / part, "fp32")
    assert model.source_types == {"F16": len(model.table)}
    assert model.compute_dtype == ms.float32
    assert all(np.isfinite(p.asnumpy()).all() for p in model.get_parameters())


def test_the_sizes_are_those_of_the_preset() -> None:
    preset = PRESETS["tiny-world"]
    assert weights.load_transformer(MODEL / "transformer", "fp32").config == preset.transformer
    vae = weights.load_vae(MODEL / "vae", "fp32").config
    assert vae.block_out_channels == preset.vae.block_out_channels
    assert vae.scaling_factor != preset.vae.scaling_factor, "measured by train-vae"


def test_the_tokenizer_is_that_of_todays_captions(tmp_path: Path) -> None:
    """The transformer knows the tokens of its training: other captions make another vocabulary, with other numbers."""
    train_tiny_tokenizer(all_captions(), tmp_path, vocab_size=PRESETS["tiny-world"].text.vocab_size)
    trained, committed = (
        Tokenizer(folder).encode(all_captions(), max_length=16) for folder in (tmp_path, MODEL / "tokenizer")
    )
    np.testing.assert_array_equal(committed.input_ids, trained.input_ids)
    assert not committed.warnings, "16 tokens hold every caption"
