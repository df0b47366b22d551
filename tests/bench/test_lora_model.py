"""``model.lora`` of a recipe: attached by generate, scaled, noted in the record."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench.context import RunContext
from bench.events import EventLog
from bench.tasks import generate
from bench.tasks import models as models_module
from core import weights
from core.errors import UserError
from core.lora import attach, save_lora
from core.lora_spec import LoRAConfig
from core.presets import PRESETS
from core.transformer.model import CogVideoXTransformer3DModel
from recipes.load import from_dict

TEXT_LENGTH = 16


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A transformer folder, a LoRA for it and prompt embeddings."""
    monkeypatch.setattr(models_module, "start_mindspore", lambda runtime, seed: {})
    config = PRESETS["tiny-1.5"].transformer
    model = CogVideoXTransformer3DModel(config).initialize(0)
    weights.save_transformer(model, tmp_path / "transformer")
    lora, rng = attach(model, LoRAConfig(rank=4, alpha=2.0), seed=0), np.random.default_rng(0)
    lora.assign({n: (0.2 * rng.standard_normal(v.shape)).astype(np.float32) for n, v in lora.arrays().items()})
    save_lora(lora, tmp_path / "lora")
    weights.save_transformer(lora.merge(), tmp_path / "merged_transformer")
    np.savez(
        tmp_path / "text.npz", prompt_embeds=rng.standard_normal((1, TEXT_LENGTH, config.text_embed_dim), np.float32)
    )
    return tmp_path


def _run(world, name, model):
    recipe = {
        "schema": 1, "name": name, "kind": "generate", "model": model,
        "inputs": {"prompt_embeds": str(world / "text.npz")}, "save": {"decode": False, "latents": True},
        "video": {"height": 32, "width": 48, "frames": 9}, "sampling": {"steps": 2, "guidance_scale": 1.0},
    }  # fmt: skip
    out = world / name
    out.mkdir()
    loaded = from_dict(recipe)
    generate.run(loaded, RunContext(loaded, out, loaded.seed, EventLog(world / f"{name}.jsonl")))
    events = [json.loads(line) for line in (world / f"{name}.jsonl").read_text().splitlines()]
    with np.load(next(out.glob("*.npz"))) as stored:
        return stored["latents"], {e["key"]: e["value"] for e in events if e["type"] == "note"}


def test_generate_uses_the_lora_and_notes_it(world):
    base = {"transformer": str(world / "transformer")}
    lora = {**base, "lora": str(world / "lora")}
    plain, notes = _run(world, "plain", base)
    assert "lora" not in notes
    tuned, notes = _run(world, "tuned", lora)
    assert notes["lora"] == {
        "rank": 4, "alpha": 2.0, "alpha_from": "metadata", "scale": 1.0, "layers": 16,
        "parameters": 16 * 2 * 4 * 128,
    }  # fmt: skip
    merged, _ = _run(world, "merged", {"transformer": str(world / "merged_transformer")})
    assert np.linalg.norm(tuned - merged) <= 1e-5 * np.linalg.norm(merged)
    assert np.linalg.norm(tuned - plain) > 0.01 * np.linalg.norm(plain)
    off, notes = _run(world, "off", {**lora, "lora_scale": 0.0})
    assert notes["lora"]["scale"] == 0.0
    assert np.array_equal(off, plain)


def test_a_folder_without_a_lora_is_named(world):
    with pytest.raises(UserError, match=r"diffusion_pytorch_model\.safetensors: 1 problem: no LoRA tensors in it"):
        _run(world, "wrong", {"transformer": str(world / "transformer"), "lora": str(world / "transformer")})
