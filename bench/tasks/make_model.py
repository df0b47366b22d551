"""make-model: a diffusers folder of a preset's components, with random weights or copied from elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from bench.context import RunContext
from bench.device import start_mindspore
from core.errors import UserError
from core.layout import find_folders
from core.presets import PRESETS, ModelPreset

# Not every file: a T5 folder may hold the weights beside its tokenizer.
_TOKENIZER_FILES = (
    "spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip


def run(recipe: Any, ctx: RunContext) -> None:
    """Writes transformer, vae, text_encoder, tokenizer, scheduler and model_index.json to ``ctx.out``.

    A part named in ``components`` is read (strictly) and written again in ``runtime.dtype``, the others are drawn.

    Raises:
        UserError: a published size, whose text encoder alone has 4.8 billion parameters; parts that don't fit
            together; a folder that doesn't hold the part.
    """
    preset = PRESETS[recipe.model.preset]
    if preset.published or not recipe.model.preset.startswith("tiny"):
        raise UserError(
            f"model.preset: got {recipe.model.preset!r}, need a tiny preset; the published sizes come with weights"
        )
    given = {name: folder for name, folder in recipe.components.model_dump().items() if folder is not None}
    ctx.note("runtime", start_mindspore(recipe.runtime, recipe.seed))
    from core import weights  # noqa: PLC0415 - imports mindspore, so not before the device is chosen

    parts = _parts(recipe, preset, given)
    with ctx.stage("tokenizer"):
        vocabulary = parts["text_encoder"].config.vocab_size
        tokens = _write_tokenizer(given.get("tokenizer"), ctx.out / "tokenizer", vocabulary)
    _check(parts, tokens)
    savers = {"transformer": weights.save_transformer, "vae": weights.save_vae}
    for name, model in parts.items():
        with ctx.stage(name):
            savers.get(name, weights.save_text_encoder)(model, ctx.out / name, recipe.runtime.dtype)
        origin = {"from": given[name], "stored_types": model.source_types} if name in given else {"from": "drawn"}
        ctx.note(name, {"parameters": sum(spec.size for spec in model.table.values()), **origin})
        ctx.artifact("checkpoint", next((ctx.out / name).glob("*.safetensors")))
    weights.save_scheduler(weights.make_scheduler(preset.scheduler, "ddim"), ctx.out / "scheduler")
    weights.save_model_index(ctx.out)
    ctx.note("preset", {"name": recipe.model.preset, "note": preset.note, "tokenizer_tokens": tokens})


def _parts(recipe: Any, preset: ModelPreset, given: dict[str, str]) -> dict[str, Any]:
    from core import weights  # noqa: PLC0415
    from core.text.t5 import T5EncoderModel  # noqa: PLC0415
    from core.transformer.model import CogVideoXTransformer3DModel  # noqa: PLC0415
    from core.vae.model import AutoencoderKLCogVideoX  # noqa: PLC0415

    makers = {
        "transformer": (weights.load_transformer, lambda: CogVideoXTransformer3DModel(preset.transformer)),
        "vae": (weights.load_vae, lambda: AutoencoderKLCogVideoX(preset.vae)),
        "text_encoder": (weights.load_text_encoder, lambda: T5EncoderModel(preset.text)),
    }
    seed = recipe.model.init_seed
    return {
        name: load(given[name]) if name in given else draw().initialize(seed) for name, (load, draw) in makers.items()
    }


def _write_tokenizer(source: str | None, target: Path, vocab_size: int) -> int:
    """Copies the tokenizer's files, or trains one on the captions of the moving shapes; returns its size."""
    from core.data.shapes import all_captions  # noqa: PLC0415
    from core.text.tokenizer import Tokenizer, train_tiny_tokenizer  # noqa: PLC0415

    if source is None:
        return train_tiny_tokenizer(all_captions(), target, vocab_size=vocab_size)
    folder = Path(source)
    if (nested := find_folders(folder).tokenizer if folder.is_dir() else None) is not None:
        folder = nested
    size = len(Tokenizer(folder))  # first, because it says what is wrong with the folder
    target.mkdir(parents=True, exist_ok=True)
    for name in _TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    return size


def _check(parts: dict[str, Any], tokens: int) -> None:
    """The parts must be of one model: sizes where they meet."""
    transformer, vae, text = (parts[name].config for name in ("transformer", "vae", "text_encoder"))
    pairs = (
        ("transformer", "in_channels", transformer.in_channels, "vae", "latent_channels", vae.latent_channels),
        ("transformer", "text_embed_dim", transformer.text_embed_dim, "text_encoder", "d_model", text.d_model),
        (
            "transformer", "temporal_compression_ratio", transformer.temporal_compression_ratio,
            "vae", "temporal_compression_ratio", int(vae.temporal_compression_ratio),
        ),
    )  # fmt: skip
    for one, key, got, other, wanted, need in pairs:
        if got != need:
            raise UserError(
                f"components: the {one} has {key} {got}, the {other} {wanted} {need}; need parts of the same sizes"
            )
    if tokens > text.vocab_size:
        raise UserError(
            f"components: got a tokenizer of {tokens} tokens, the text encoder has {text.vocab_size}; need a tokenizer "
            "and a text encoder of the same model"
        )
