"""make-model: a preset's components with random weights, as a diffusers folder."""

from __future__ import annotations

from typing import Any

from bench.context import RunContext
from bench.device import start_mindspore
from core.errors import UserError
from core.presets import PRESETS


def run(recipe: Any, ctx: RunContext) -> None:
    """Writes transformer, vae, text_encoder, tokenizer, scheduler and model_index.json to ``ctx.out``.

    Raises:
        UserError: a published size; its text encoder alone has 4.8 billion parameters.
    """
    preset = PRESETS[recipe.model.preset]
    if preset.published or not recipe.model.preset.startswith("tiny"):
        raise UserError(
            f"model.preset: got {recipe.model.preset!r}, need a tiny preset; the published sizes come with weights"
        )
    ctx.note("runtime", start_mindspore(recipe.runtime, recipe.seed))
    from core import weights  # noqa: PLC0415 - imports mindspore, so not before the device is chosen
    from core.data.shapes import all_captions  # noqa: PLC0415
    from core.text.t5 import T5EncoderModel  # noqa: PLC0415
    from core.text.tokenizer import train_tiny_tokenizer  # noqa: PLC0415
    from core.transformer.model import CogVideoXTransformer3DModel  # noqa: PLC0415
    from core.vae.model import AutoencoderKLCogVideoX  # noqa: PLC0415

    seed, dtype, out = recipe.model.init_seed, recipe.runtime.dtype, ctx.out
    with ctx.stage("tokenizer"):
        tokens = train_tiny_tokenizer(all_captions(), out / "tokenizer", vocab_size=preset.text.vocab_size)
    parts = (
        ("transformer", CogVideoXTransformer3DModel(preset.transformer), weights.save_transformer),
        ("vae", AutoencoderKLCogVideoX(preset.vae), weights.save_vae),
        ("text_encoder", T5EncoderModel(preset.text), weights.save_text_encoder),
    )
    for name, model, save in parts:
        with ctx.stage(name):
            save(model.initialize(seed), out / name, dtype)
        ctx.note(name, {"parameters": sum(spec.size for spec in model.table.values())})
        ctx.artifact("checkpoint", next((out / name).glob("*.safetensors")))
    weights.save_scheduler(weights.make_scheduler(preset.scheduler, "ddim"), out / "scheduler")
    weights.save_model_index(out)
    ctx.note("preset", {"name": recipe.model.preset, "note": preset.note, "tokenizer_tokens": tokens})
