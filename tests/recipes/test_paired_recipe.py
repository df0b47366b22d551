"""What a recipe of kind paired may not ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

import recipes
from recipes.load import load_recipe
from recipes.problems import RecipeErrors

CPU = Path(recipes.__file__).parent / "cpu"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.recompute=keep_attention", "diffusers does not have"),
        ("runtime.device=ascend", "a pair runs on the CPU"),
        ("runtime.dtype=bf16", "a pair runs on the CPU"),
        ("video.frames=16", "need 8n+1"),
        ("pairs=5", "pairs"),
        ("optimizer.betas=[0.9, 0.95, 0.99]", "betas"),
    ],
)
def test_refused(change, said):
    with pytest.raises(RecipeErrors, match="got") as caught:
        load_recipe(CPU / "train_sft_adamw.yaml", [change])
    assert said in str(caught.value)
