"""Both sides of a pair for real, at tiny sizes: they agree far better than the bound that refuses other work."""

from __future__ import annotations

from pathlib import Path

import pytest

import recipes
from bench.paired_session import SIDES, run_session
from bench.recipe_access import open_recipe
from tests.tolerances import PIPELINE

CPU = Path(recipes.__file__).parent / "cpu"
SMALL = ["pairs=6", "warmup=1", "video.frames=9", "video.height=64", "video.width=64"]
TRANSFORMER = ["model.num_layers=1", "model.num_attention_heads=2", "text_length=32"]
# Far below the norm of the gradients, so that a factor that differs would show in the losses of the next steps.
CLIPPED = ["train.max_grad_norm=0.01", "optimizer.lr=0.01"]
CASES = [
    ("transformer.yaml", TRANSFORMER),
    ("train_sft_came.yaml", TRANSFORMER),
    ("train_sft_adamw.yaml", [*TRANSFORMER, "train.optimizer_in_backward=true", *CLIPPED]),
    ("train_sft_recompute.yaml", TRANSFORMER),
    ("train_sft_recompute.yaml", [*TRANSFORMER, "train.feed_forward_chunk=20"]),
    ("train_lora_adamw.yaml", [*TRANSFORMER, "optimizer.lr=0.01"]),
    ("vae_encode_tiled.yaml", ["video.height=96"]),
    ("vae_decode_tiled.yaml", ["video.height=96"]),
    ("text_encode.yaml", ["model.text_layers=2"]),
    ("generate.yaml", [*TRANSFORMER, "sampling.steps=2"]),
]


@pytest.mark.parametrize(("name", "values"), CASES)
def test_the_sides_do_the_same_work(name, values, tmp_path):
    session = run_session(open_recipe(CPU / name, [*SMALL, *values]).data, tmp_path)
    assert session.problem is None
    assert session.error is not None
    assert session.error <= PIPELINE
    assert all(len(session.sides[side].counted()) == 6 for side in SIDES)
    assert all(session.sides[side].ended for side in SIDES)


def test_a_session_of_different_work_is_noticed(tmp_path, monkeypatch):
    """Weights drawn from another seed on one side: what would happen if a loader dropped a tensor."""
    data = open_recipe(CPU / "transformer.yaml", [*SMALL, *TRANSFORMER]).data
    modules = {"diffusers": "tests.parity.other_weights"}
    session = run_session(data, tmp_path, modules)
    assert "did not do the same work" in (session.problem or "")
